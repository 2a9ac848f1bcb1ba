// Plain structures one after the other in a buffer: writing them, and reading them back from a writer that is
// not trusted.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/wire.h"

namespace vmbusd {

class SerialWriter {
 public:
  template <WireStruct T>
  void put(const T& value) {
    put_bytes(wire_bytes(value));
  }
  void put_bytes(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }

  [[nodiscard]] std::span<const std::byte> bytes() const { return bytes_; }
  // Keeps the memory.
  void clear() { bytes_.clear(); }

 private:
  std::vector<std::byte> bytes_;
};

class SerialReader {
 public:
  // `bytes` outlives the reader.
  explicit SerialReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  // Errc::kProtocol where too few bytes are left.
  template <WireStruct T>
  [[nodiscard]] Result<T> get() {
    VMBUSD_TRY(const std::span<const std::byte> bytes, get_bytes(sizeof(T)));
    T value;
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
  [[nodiscard]] Result<std::span<const std::byte>> get_bytes(std::size_t size) {
    if (size > bytes_.size()) return fail(Errc::kProtocol, "it ends too early");
    const std::span<const std::byte> taken = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    return taken;
  }
  [[nodiscard]] bool at_end() const { return bytes_.empty(); }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace vmbusd
