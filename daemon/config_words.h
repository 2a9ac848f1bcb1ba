// The values that keys of the configuration accept by name, for who reads it and who writes it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

#include "daemon/config.h"

namespace vmbusd::daemon {

// What is written and what it means. Words are written as strings, numbers as integers.
template <typename Written, typename Meaning, std::size_t Count>
using Words = std::array<std::pair<Written, Meaning>, Count>;

// How it is written; `meaning` is one of them.
template <typename Written, typename Meaning, std::size_t Count>
constexpr Written written(const Words<Written, Meaning, Count>& words, Meaning meaning) {
  for (const auto& [text, value] : words) {
    if (value == meaning) return text;
  }
  return {};
}

inline constexpr Words<std::string_view, storvsp::DiskConfig::Backend, 3> kBackends = {
    {{"file", storvsp::DiskConfig::Backend::kFile},
     {"nbd", storvsp::DiskConfig::Backend::kNbd},
     {"null", storvsp::DiskConfig::Backend::kNull}}};
inline constexpr Words<std::string_view, DirectIo, 3> kDirectIoWords = {
    {{"auto", DirectIo::kAuto}, {"on", DirectIo::kOn}, {"off", DirectIo::kOff}}};
inline constexpr Words<std::string_view, storvsp::CacheMode, 3> kCacheModes = {
    {{"writeback", storvsp::CacheMode::kWriteback},
     {"writethrough", storvsp::CacheMode::kWritethrough},
     {"unsafe", storvsp::CacheMode::kUnsafe}}};
inline constexpr Words<std::string_view, SeccompAction, 4> kSeccompActions = {
    {{"kill", SeccompAction::kKill},
     {"trap", SeccompAction::kTrap},
     {"log", SeccompAction::kLog},
     {"none", SeccompAction::kNone}}};
inline constexpr Words<std::string_view, netvsp::NicConfig::Backend, 4> kNicBackends = {
    {{"tap", netvsp::NicConfig::Backend::kTap},
     {"stream", netvsp::NicConfig::Backend::kStream},
     {"null", netvsp::NicConfig::Backend::kNull},
     {"loopback", netvsp::NicConfig::Backend::kLoopback}}};
inline constexpr Words<std::int64_t, std::uint32_t, 2> kBlockSizes = {{{512, 512}, {4096, 4096}}};
inline constexpr Words<std::int64_t, std::uint32_t, 8> kPhysicalBlockSizes = {{{512, 512},
                                                                               {1024, 1024},
                                                                               {2048, 2048},
                                                                               {4096, 4096},
                                                                               {8192, 8192},
                                                                               {16384, 16384},
                                                                               {32768, 32768},
                                                                               {65536, 65536}}};

}  // namespace vmbusd::daemon
