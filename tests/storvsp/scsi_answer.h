// A small LUN, and what it answers.
#pragma once

#include <cstring>
#include <string>

#include "tests/storvsp/ram_lun.h"

namespace vmbusd::storvsp {

inline constexpr std::uint64_t kBlocks = 2048;  // 1 MiB of 512-byte blocks
inline constexpr std::uint8_t kFill = 0xa5;     // what a buffer holds that nothing was written to

inline RamLun small_lun() {
  return RamLun(ram_lun_options(kBlocks * 512));
}

inline Bytes sense_of(const ScsiResult& result) {
  Bytes bytes(sizeof result.sense);
  std::memcpy(bytes.data(), &result.sense, bytes.size());
  return bytes;
}

// What a command with data to the guest gave: the bytes that it says it transferred.
struct Answer {
  ScsiResult result;
  Bytes data;
  bool rest_untouched = true;
};

inline Answer ask(RamLun& lun, Bytes cdb, std::size_t buffer_size = 4096, std::size_t piece = 4096) {
  Bytes buffer(buffer_size, kFill);
  Answer answer;
  answer.result = lun.run(cdb, kIn, std::as_writable_bytes(std::span(buffer)), piece);
  answer.data.assign(buffer.begin(), buffer.begin() + answer.result.transferred);
  for (std::size_t i = answer.result.transferred; i < buffer.size(); ++i)
    answer.rest_untouched &= buffer[i] == kFill;
  return answer;
}

inline std::string text(const Bytes& bytes, std::size_t at, std::size_t size) {
  return {bytes.begin() + static_cast<std::ptrdiff_t>(at),
          bytes.begin() + static_cast<std::ptrdiff_t>(at + size)};
}

}  // namespace vmbusd::storvsp
