// Frames as tests build them, and checks of their fields written without the code under test.
#pragma once

#include <cstdint>
#include <random>

#include "tests/netvsp/bytes.h"

namespace vmbusd::netvsp {

// 32 bits at a time, the same for the same seed everywhere.
class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  std::uint32_t operator()() { return static_cast<std::uint32_t>(engine_()); }

 private:
  std::mt19937 engine_;
};

struct FrameSpec {
  int ip_version = 4;  // 4 or 6
  bool udp = false;
  bool vlan = false;              // a tag in the frame
  std::uint32_t ip_options = 0;   // IPv4: bytes; IPv6: bytes of a hop-by-hop header; multiples of 8
  std::uint32_t tcp_options = 0;  // bytes, a multiple of 4
  std::uint32_t payload = 100;    // bytes
  std::uint8_t tcp_flags = 0x10;  // ACK
  std::uint16_t ip_id = 0x1234;
  std::uint32_t sequence = 0x01020304;
};

struct BuiltFrame {
  Bytes bytes;           // all checksums right
  std::uint32_t ip = 0;  // offsets
  std::uint32_t transport = 0;
  std::uint32_t payload = 0;
};

inline void put16(Bytes& bytes, std::size_t at, std::uint32_t value) {
  bytes[at] = static_cast<std::byte>(value >> 8 & 0xff);
  bytes[at + 1] = static_cast<std::byte>(value & 0xff);
}
inline void put32(Bytes& bytes, std::size_t at, std::uint32_t value) {
  put16(bytes, at, value >> 16);
  put16(bytes, at + 2, value & 0xffff);
}
inline std::uint32_t get16(std::span<const std::byte> bytes, std::size_t at) {
  return static_cast<std::uint32_t>(bytes[at]) << 8 | static_cast<std::uint32_t>(bytes[at + 1]);
}

// The Internet checksum by the book, a byte at a time.
inline std::uint32_t plain_sum(std::span<const std::byte> bytes, std::uint32_t start = 0) {
  std::uint32_t sum = start;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    sum += static_cast<std::uint32_t>(bytes[i]) << (i % 2 == 0 ? 8 : 0);
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return sum;
}

// Sum over the pseudo-header of the frame's packet.
inline std::uint32_t plain_pseudo_sum(const Bytes& frame, std::uint32_t ip, std::uint32_t protocol,
                                      std::uint32_t transport_size) {
  const bool v4 = static_cast<unsigned>(frame[ip]) >> 4 == 4;
  Bytes pseudo(frame.begin() + ip + (v4 ? 12 : 8), frame.begin() + ip + (v4 ? 20 : 40));
  pseudo.resize(pseudo.size() + 8);
  put32(pseudo, pseudo.size() - 8, transport_size);
  put32(pseudo, pseudo.size() - 4, protocol);
  return plain_sum(pseudo);
}

// Whether transport and IPv4 header checksums are right.
inline bool transport_good(const Bytes& frame, std::uint32_t ip, std::uint32_t transport, bool udp) {
  const std::span<const std::byte> all(frame);
  const auto size = static_cast<std::uint32_t>(frame.size() - transport);
  return plain_sum(all.subspan(transport), plain_pseudo_sum(frame, ip, udp ? 17 : 6, size)) == 0xffff;
}
inline bool ip_good(const Bytes& frame, std::uint32_t ip) {
  if (static_cast<unsigned>(frame[ip]) >> 4 == 6) return true;
  const std::size_t size = (static_cast<unsigned>(frame[ip]) & 0xf) * 4;
  return plain_sum(std::span<const std::byte>(frame).subspan(ip, size)) == 0xffff;
}

inline BuiltFrame build_frame(const FrameSpec& spec, Random& random) {
  BuiltFrame f;
  f.bytes = hex("02000000000a 02000000000b");
  if (spec.vlan) append(f.bytes, hex("8100 2064"));
  append(f.bytes, spec.ip_version == 4 ? hex("0800") : hex("86dd"));
  f.ip = static_cast<std::uint32_t>(f.bytes.size());
  const std::uint32_t transport_header = spec.udp ? 8 : 20 + spec.tcp_options;
  const std::uint32_t transport_size = transport_header + spec.payload;
  const std::uint32_t ip_header = (spec.ip_version == 4 ? 20 : 40) + spec.ip_options;
  f.bytes.resize(f.ip + ip_header);
  if (spec.ip_version == 4) {
    f.bytes[f.ip] = static_cast<std::byte>(0x40 | ip_header / 4);
    put16(f.bytes, f.ip + 2, ip_header + transport_size);
    put16(f.bytes, f.ip + 4, spec.ip_id);
    put16(f.bytes, f.ip + 6, 0x4000);  // do not fragment
    f.bytes[f.ip + 8] = std::byte{64};
    f.bytes[f.ip + 9] = static_cast<std::byte>(spec.udp ? 17 : 6);
    put32(f.bytes, f.ip + 12, 0x0a000001);
    put32(f.bytes, f.ip + 16, 0x0a0000fe);
    for (std::uint32_t i = 20; i < ip_header; ++i) f.bytes[f.ip + i] = std::byte{1};  // no operation
    put16(f.bytes, f.ip + 10, ~plain_sum(std::span(f.bytes).subspan(f.ip)) & 0xffff);
  } else {
    f.bytes[f.ip] = std::byte{0x60};
    put16(f.bytes, f.ip + 4, spec.ip_options + transport_size);
    f.bytes[f.ip + 6] = static_cast<std::byte>(spec.ip_options != 0 ? 0 : spec.udp ? 17 : 6);
    f.bytes[f.ip + 7] = std::byte{64};
    for (std::uint32_t i = 8; i < 40; ++i) f.bytes[f.ip + i] = static_cast<std::byte>(random());
    if (spec.ip_options != 0) {
      f.bytes[f.ip + 40] = static_cast<std::byte>(spec.udp ? 17 : 6);
      f.bytes[f.ip + 41] = static_cast<std::byte>(spec.ip_options / 8 - 1);
    }
  }
  f.transport = static_cast<std::uint32_t>(f.bytes.size());
  f.payload = f.transport + transport_header;
  f.bytes.resize(f.payload);
  put16(f.bytes, f.transport, 0x1389);
  put16(f.bytes, f.transport + 2, 0x0050);
  if (spec.udp) {
    put16(f.bytes, f.transport + 4, transport_size);
  } else {
    put32(f.bytes, f.transport + 4, spec.sequence);
    f.bytes[f.transport + 12] = static_cast<std::byte>(transport_header / 4 << 4);
    f.bytes[f.transport + 13] = static_cast<std::byte>(spec.tcp_flags);
    for (std::uint32_t i = 20; i < transport_header; ++i) f.bytes[f.transport + i] = std::byte{1};
  }
  for (std::uint32_t i = 0; i < spec.payload; ++i) f.bytes.push_back(static_cast<std::byte>(random()));
  const std::uint32_t pseudo = plain_pseudo_sum(f.bytes, f.ip, spec.udp ? 17 : 6, transport_size);
  std::uint32_t checksum = ~plain_sum(std::span(f.bytes).subspan(f.transport), pseudo) & 0xffff;
  if (spec.udp && checksum == 0) checksum = 0xffff;
  put16(f.bytes, f.transport + (spec.udp ? 6 : 16), checksum);
  return f;
}

}  // namespace vmbusd::netvsp
