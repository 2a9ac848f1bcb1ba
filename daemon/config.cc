#include "daemon/config.h"

#include <fmt/format.h>
#include <unistd.h>

// Header-only and without exceptions: Debian's shared library is built with them, under another inline
// namespace. toml++ 3.3 asserts where a key begins with a character that no key has ("[[="), and with NDEBUG
// has the compiler take that for impossible; a few lines on it reports the error. So its assertions are made
// void in every build.
#define TOML_HEADER_ONLY 1
#define TOML_EXCEPTIONS 0
#define TOML_ASSERT(expr) static_cast<void>(0)
#pragma push_macro("NDEBUG")
#undef NDEBUG
#include <toml++/toml.h>
#pragma pop_macro("NDEBUG")

#include <algorithm>
#include <array>
#include <charconv>
#include <climits>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <type_traits>
#include <utility>

namespace vmbusd::daemon {

namespace {

constexpr std::size_t kNameBytesMax = 64;
constexpr std::size_t kPathBytesMax = 4095;        // PATH_MAX without its NUL
constexpr std::size_t kSocketBytesMax = 107;       // sockaddr_un::sun_path without its NUL
constexpr std::size_t kFriendlyNameBytesMax = 64;  // netvsp's bound
constexpr std::uint32_t kFrameBytesMin = 60;       // without its checksum
constexpr std::uint32_t kEthernetHeaderBytes = 14;
constexpr std::uint32_t kLinkSpeedMbpsMax = 400'000;
constexpr std::uint32_t kTapQueuesDefault = 8;  // each costs descriptors in two processes, used or not
// [SPC-4: standard INQUIRY data, Unit Serial Number VPD page]; the bounds are storvsp's.
constexpr std::size_t kVendorBytesMax = 8;
constexpr std::size_t kProductBytesMax = 16;
constexpr std::size_t kRevisionBytesMax = 4;
constexpr std::size_t kSerialBytesMax = 36;
constexpr std::uint64_t kDiskBytesMax = std::uint64_t{1} << 50;  // of a disk without an image

// Text of the operator's file as it may stand in a message: no control characters, not endless.
std::string printable(std::string_view text, std::size_t size_max = 80) {
  std::string out;
  for (const char c : text.substr(0, size_max)) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    out += control ? '?' : c;
  }
  if (text.size() > size_max) out += "...";
  return out;
}

std::string in_quotes(std::string_view text) {
  return '"' + printable(text) + '"';
}

std::string join(const std::vector<std::string_view>& words) {
  std::string out;
  for (const std::string_view word : words) {
    if (!out.empty()) out += ", ";
    out += word;
  }
  return out;
}

// Levenshtein's distance; short words only.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, substituted}));
    }
  }
  return row[b.size()];
}

// The known word that a mistyped one most probably means; empty where none is near.
std::string_view nearest(std::string_view word, const std::vector<std::string_view>& known) {
  constexpr std::size_t kWordBytesMax = 32;
  if (word.size() > kWordBytesMax) return {};
  std::string_view best;
  std::size_t best_distance = std::max<std::size_t>(1, word.size() / 3) + 1;
  for (const std::string_view candidate : known) {
    const std::size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

const char* type_name(toml::node_type type) {
  switch (type) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "an array";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a floating-point number";
    case toml::node_type::boolean:
      return "a boolean";
    default:
      return "a date or time";
  }
}

bool is_name(std::string_view text) {
  return !text.empty() && text.size() <= kNameBytesMax && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

// [linux: dev_valid_name], and none that a shell or a person would trip over.
bool is_interface_name(std::string_view text) {
  constexpr std::size_t kInterfaceBytesMax = 15;  // IFNAMSIZ less its NUL
  return is_name(text) && text.size() <= kInterfaceBytesMax && text != "." && text != "..";
}

// The characters that SCSI allows in its text fields [SPC-4: ASCII data field requirements], and a NIC's
// name.
bool is_ascii_text(std::string_view text, std::size_t size_max) {
  return text.size() <= size_max &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

std::uint32_t line_of(const toml::node& node) {
  return static_cast<std::uint32_t>(node.source().begin.line);
}

// "10G" as bytes; empty where it is none or out of bounds.
std::optional<std::uint64_t> parse_size(std::string_view text) {
  constexpr std::string_view kSuffixes = "KMGT";
  std::uint64_t count = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), count);
  if (error != std::errc() || end + 1 != text.data() + text.size()) return std::nullopt;
  const std::size_t suffix = kSuffixes.find(*end);
  if (suffix == std::string_view::npos) return std::nullopt;
  const std::size_t shift = 10 * (suffix + 1);
  if (count == 0 || count > kDiskBytesMax >> shift) return std::nullopt;
  return count << shift;
}

// A key's accepted values and what they mean. Words are written as strings, numbers as integers.
template <typename Written, typename Meaning, std::size_t Count>
using Words = std::array<std::pair<Written, Meaning>, Count>;

constexpr Words<std::string_view, storvsp::DiskConfig::Backend, 2> kBackends = {
    {{"file", storvsp::DiskConfig::Backend::kFile}, {"null", storvsp::DiskConfig::Backend::kNull}}};
constexpr Words<std::string_view, DirectIo, 3> kDirectIoWords = {
    {{"auto", DirectIo::kAuto}, {"on", DirectIo::kOn}, {"off", DirectIo::kOff}}};
constexpr Words<std::string_view, storvsp::CacheMode, 3> kCacheModes = {
    {{"writeback", storvsp::CacheMode::kWriteback},
     {"writethrough", storvsp::CacheMode::kWritethrough},
     {"unsafe", storvsp::CacheMode::kUnsafe}}};
constexpr Words<std::string_view, netvsp::NicConfig::Backend, 4> kNicBackends = {
    {{"tap", netvsp::NicConfig::Backend::kTap},
     {"stream", netvsp::NicConfig::Backend::kStream},
     {"null", netvsp::NicConfig::Backend::kNull},
     {"loopback", netvsp::NicConfig::Backend::kLoopback}}};
constexpr Words<std::int64_t, std::uint32_t, 2> kBlockSizes = {{{512, 512}, {4096, 4096}}};
constexpr Words<std::int64_t, std::uint32_t, 8> kPhysicalBlockSizes = {{{512, 512},
                                                                        {1024, 1024},
                                                                        {2048, 2048},
                                                                        {4096, 4096},
                                                                        {8192, 8192},
                                                                        {16384, 16384},
                                                                        {32768, 32768},
                                                                        {65536, 65536}}};

std::string shown(std::string_view word) {
  return in_quotes(word);
}
std::string shown(std::int64_t number) {
  return std::to_string(number);
}

// "A", "B", "C"
template <typename Written, typename Meaning, std::size_t Count>
std::string words_of(const Words<Written, Meaning, Count>& words) {
  std::string all;
  for (const auto& [written, meaning] : words) all += (all.empty() ? "" : ", ") + shown(written);
  return all;
}

class Problems {
 public:
  void add(std::uint32_t line, std::string key, std::string text) {
    if (list_.size() < kProblemsMax) list_.push_back({line, std::move(key), std::move(text)});
  }
  [[nodiscard]] std::vector<ConfigProblem> take() {
    std::stable_sort(list_.begin(), list_.end(),
                     [](const ConfigProblem& a, const ConfigProblem& b) { return a.line < b.line; });
    return std::move(list_);
  }

 private:
  std::vector<ConfigProblem> list_;
};

// Reads one table key by key. Each getter reports what it cannot accept and returns empty then, as it does
// for a key that is absent; finish() reports every key that no getter asked for.
class TableReader {
 public:
  TableReader(const toml::table& table, std::string path, Problems& problems)
      : table_(table), path_(std::move(path)), problems_(problems) {}

  [[nodiscard]] std::uint32_t line() const { return line_of(table_); }
  [[nodiscard]] std::string definition() const {
    std::ostringstream text;
    text << toml::json_formatter(table_);
    return text.str();
  }
  [[nodiscard]] std::string key_path(std::string_view key) const {
    return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
  }

  void refuse(std::string_view key, std::string text) {
    const toml::node* node = table_.get(key);
    problems_.add(node != nullptr ? line_of(*node) : line(), key_path(key), std::move(text));
  }
  void refuse_value(std::string_view key, std::string_view value, std::string_view accepted) {
    refuse(key, fmt::format("{} is not accepted; accepted: {}", value, accepted));
  }
  void require(std::string_view key, std::string_view accepted) {
    if (table_.get(key) == nullptr) refuse(key, fmt::format("is missing; accepted: {}", accepted));
  }

  std::optional<std::string> text(std::string_view key, std::string_view accepted) {
    return value<std::string>(key, accepted);
  }
  std::optional<bool> boolean(std::string_view key) { return value<bool>(key, "true, false"); }
  std::optional<std::uint32_t> integer(std::string_view key, std::uint32_t min, std::uint32_t max) {
    const std::string accepted = fmt::format("an integer from {} to {}", min, max);
    const std::optional<std::int64_t> found = value<std::int64_t>(key, accepted);
    if (!found) return std::nullopt;
    if (*found < min || *found > max) {
      refuse_value(key, std::to_string(*found), accepted);
      return std::nullopt;
    }
    return static_cast<std::uint32_t>(*found);
  }
  std::optional<std::string> name(std::string_view key) {
    constexpr std::string_view kAccepted = "1 to 64 of the characters A-Z a-z 0-9 . _ -";
    require(key, kAccepted);
    std::optional<std::string> found = text(key, kAccepted);
    if (found && !is_name(*found)) {
      refuse_value(key, in_quotes(*found), kAccepted);
      return std::nullopt;
    }
    return found;
  }
  // Made absolute with `directory`.
  std::optional<std::string> path(std::string_view key, std::string_view directory, std::size_t size_max,
                                  std::string_view accepted) {
    std::optional<std::string> found = text(key, accepted);
    if (!found) return std::nullopt;
    if (found->empty() || found->find('\0') != std::string::npos) {
      refuse_value(key, in_quotes(*found), accepted);
      return std::nullopt;
    }
    if (found->front() != '/') found = fmt::format("{}/{}", directory == "/" ? "" : directory, *found);
    if (found->size() > size_max) {
      refuse(key, fmt::format("{} has {} bytes; accepted: {}", in_quotes(*found), found->size(), accepted));
      return std::nullopt;
    }
    return found;
  }
  std::optional<std::string> ascii_text(std::string_view key, std::size_t size_min, std::size_t size_max) {
    const std::string accepted = fmt::format("{} to {} printable ASCII characters", size_min, size_max);
    std::optional<std::string> found = text(key, accepted);
    if (found && (found->size() < size_min || !is_ascii_text(*found, size_max))) {
      refuse_value(key, in_quotes(*found), accepted);
      return std::nullopt;
    }
    return found;
  }

  std::optional<Guid> guid(std::string_view key) {
    constexpr std::string_view kAccepted = "a GUID such as \"6ba7b810-9dad-11d1-80b4-00c04fd430c8\"";
    const std::optional<std::string> found = text(key, kAccepted);
    if (!found) return std::nullopt;
    const std::optional<Guid> parsed = Guid::parse(*found);
    if (!parsed) refuse_value(key, in_quotes(*found), kAccepted);
    return parsed;
  }
  template <typename Written, typename Meaning, std::size_t Count>
  std::optional<Meaning> word(std::string_view key, const Words<Written, Meaning, Count>& words) {
    using Stored = std::conditional_t<std::is_same_v<Written, std::string_view>, std::string, std::int64_t>;
    const std::string accepted = words_of(words);
    const std::optional<Stored> found = value<Stored>(key, accepted);
    if (!found) return std::nullopt;
    for (const auto& [written, meaning] : words) {
      if (*found == written) return meaning;
    }
    refuse_value(key, shown(*found), accepted);
    return std::nullopt;
  }

  // Descriptors by number. None at all where they were refused, empty where the key is absent.
  std::optional<std::vector<int>> descriptors(std::string_view key, std::size_t count_max) {
    known_.push_back(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return std::nullopt;
    const std::string accepted =
        fmt::format("an array of 1 to {} integers, numbers of descriptors from 3 on, each once", count_max);
    const toml::array* array = node->as_array();
    std::vector<int> fds;
    bool good = array != nullptr && !array->empty() && array->size() <= count_max;
    for (std::size_t i = 0; good && i < array->size(); ++i) {
      const std::int64_t fd = array->get(i)->value_exact<std::int64_t>().value_or(-1);
      good = fd > STDERR_FILENO && fd <= INT_MAX && std::find(fds.begin(), fds.end(), fd) == fds.end();
      fds.push_back(static_cast<int>(fd));
    }
    if (good) return fds;
    refuse(key, fmt::format("is something else; accepted: {}", accepted));
    return std::vector<int>();
  }

  // Calls `read` with a reader for each table of [[key]].
  template <typename Read>
  void tables(std::string_view key, std::size_t count_max, Read&& read) {
    known_.push_back(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return;
    const std::string written = fmt::format("tables, each begun by [[{}]]", key_path(key));
    const toml::array* array = node->as_array();
    if (array == nullptr) {
      refuse(key, fmt::format("is {}; accepted: {}", type_name(node->type()), written));
      return;
    }
    if (array->size() > count_max) {
      refuse(key, fmt::format("there are {}; accepted: at most {}", array->size(), count_max));
      return;
    }
    for (const toml::node& element : *array) {
      if (const toml::table* table = element.as_table(); table != nullptr) {
        TableReader reader(*table, key_path(key), problems_);
        read(reader);
        reader.finish();
      } else {
        problems_.add(line_of(element), key_path(key),
                      fmt::format("is {}; accepted: {}", type_name(element.type()), written));
      }
    }
  }

  void finish() {
    std::sort(known_.begin(), known_.end());
    known_.erase(std::unique(known_.begin(), known_.end()), known_.end());
    for (const auto& [key, node] : table_) {
      if (std::binary_search(known_.begin(), known_.end(), key.str())) continue;
      const std::string_view meant = nearest(key.str(), known_);
      problems_.add(static_cast<std::uint32_t>(key.source().begin.line), key_path(printable(key.str())),
                    fmt::format("unknown key{}; accepted: {}",
                                meant.empty() ? "" : fmt::format(" (did you mean {}?)", in_quotes(meant)),
                                join(known_)));
    }
  }

 private:
  template <typename T>
  std::optional<T> value(std::string_view key, std::string_view accepted) {
    known_.push_back(key);
    const toml::node* node = table_.get(key);
    if (node == nullptr) return std::nullopt;
    std::optional<T> found = node->value_exact<T>();
    if (!found) refuse(key, fmt::format("is {}; accepted: {}", type_name(node->type()), accepted));
    return found;
  }

  const toml::table& table_;
  std::string path_;
  Problems& problems_;
  std::vector<std::string_view> known_;
};

// Who had a value first, for values that must be unique.
class Uniqueness {
 public:
  // Reports a second use. `what` names the value: "name \"demo\"".
  void claim(TableReader& reader, std::string_view key, const std::string& value, std::string_view what) {
    const auto [first, fresh] = first_lines_.emplace(value, reader.line());
    if (fresh) return;
    reader.refuse(key, first->second == 0
                           ? fmt::format("{} is taken by another table", what)
                           : fmt::format("{} is taken by the table at line {}", what, first->second));
  }

 private:
  std::map<std::string, std::uint32_t> first_lines_;
};

class ConfigReader {
 public:
  ConfigReader(Problems& problems, std::string_view directory) : problems_(problems), directory_(directory) {}

  Config read(const toml::table& root) {
    Config config;
    TableReader reader(root, "", problems_);
    constexpr std::string_view kControl = "control_socket";
    config.control_socket =
        reader.path(kControl, directory_, kSocketBytesMax, "a path of at most 107 bytes").value_or("");
    config.socket_group = reader.ascii_text("socket_group", 1, kNameBytesMax).value_or("");
    reader.tables("partition", kPartitionsMax,
                  [&](TableReader& table) { config.partitions.push_back(read_partition(table)); });
    reader.finish();
    if (root.get("partition") == nullptr && config.control_socket.empty()) {
      problems_.add(
          1, "partition",
          "is missing; accepted: at least one table begun by [[partition]], or control_socket for those "
          "to come");
    }
    return config;
  }

 private:
  PartitionConfig read_partition(TableReader& table) {
    PartitionConfig partition;
    partition.line = table.line();
    partition.definition = table.definition();
    if (auto name = table.name("name")) {
      partition_names_.claim(table, "name", *name, fmt::format("the name {}", in_quotes(*name)));
      partition.name = std::move(*name);
    }
    table.require("socket", "a path of at most 107 bytes");
    if (auto path = table.path("socket", directory_, kSocketBytesMax, "a path of at most 107 bytes")) {
      sockets_.claim(table, "socket", *path, fmt::format("the socket {}", in_quotes(*path)));
      partition.socket = std::move(*path);
    }
    partition.io_threads = table.integer("io_threads", 1, kIoThreadsMax).value_or(0);
    partition.poll_us = table.integer("poll_us", 0, kPollUsMax).value_or(kPollUsDefault);

    DeviceIdentities identities;
    table.tables("scsi", kDevicesMax, [&](TableReader& scsi) {
      partition.scsi.push_back(read_scsi(scsi, partition, identities));
    });
    table.tables("nic", kDevicesMax,
                 [&](TableReader& nic) { partition.nics.push_back(read_nic(nic, partition, identities)); });
    return partition;
  }

  struct DeviceIdentities {
    Uniqueness names;
    Uniqueness instances;
  };

  static void read_identity(TableReader& table, DeviceIdentities& identities, std::string& name,
                            std::optional<Guid>& instance) {
    if (auto found = table.name("name")) {
      identities.names.claim(table, "name", *found, fmt::format("the device name {}", in_quotes(*found)));
      name = std::move(*found);
    }
    instance = table.guid("instance");
    if (!instance) return;
    const std::string text = instance->to_string();
    identities.instances.claim(table, "instance", text, fmt::format("the instance {}", text));
  }

  ScsiConfig read_scsi(TableReader& table, const PartitionConfig& partition, DeviceIdentities& identities) {
    ScsiConfig scsi;
    storvsp::ControllerConfig& controller = scsi.controller;
    scsi.line = table.line();
    scsi.definition = table.definition();
    controller.partition = partition.name;
    read_identity(table, identities, controller.name, controller.instance);
    controller.channels = table.integer("channels", 1, storvsp::kMaxChannels).value_or(0);

    Uniqueness luns;
    table.tables("disk", storvsp::kMaxLuns, [&](TableReader& disk) {
      scsi.images.emplace_back();
      controller.disks.push_back(read_disk(disk, scsi.images.back(), luns));
    });
    return scsi;
  }

  storvsp::DiskConfig read_disk(TableReader& table, ImageConfig& image, Uniqueness& luns) {
    storvsp::DiskConfig disk;
    image.line = table.line();
    table.require("lun", fmt::format("an integer from 0 to {}", storvsp::kMaxLuns - 1));
    if (const auto lun = table.integer("lun", 0, storvsp::kMaxLuns - 1)) {
      luns.claim(table, "lun", std::to_string(*lun), fmt::format("LUN {}", *lun));
      disk.lun = static_cast<std::uint8_t>(*lun);
    }
    disk.backend = table.word("backend", kBackends).value_or(storvsp::DiskConfig::Backend::kFile);
    if (disk.backend == storvsp::DiskConfig::Backend::kNull) {
      disk.size_bytes = read_null_size(table);
    } else {
      table.require("path", "the path of a raw image or a block device");
      image.path = table.path("path", directory_, kPathBytesMax, "the path of a raw image or a block device")
                       .value_or("");
      image.direct = table.word("direct", kDirectIoWords).value_or(DirectIo::kAuto);
    }
    disk.read_only = table.boolean("readonly").value_or(false);
    disk.discard = table.boolean("discard").value_or(true);
    disk.cache = table.word("cache", kCacheModes).value_or(storvsp::CacheMode::kWriteback);
    disk.logical_block_bytes = table.word("block_size", kBlockSizes).value_or(0);
    disk.physical_block_bytes = table.word("physical_block_size", kPhysicalBlockSizes).value_or(0);
    if (disk.physical_block_bytes != 0 && disk.physical_block_bytes < disk.logical_block_bytes) {
      table.refuse("physical_block_size", "is smaller than block_size; accepted: the same or larger");
    }
    if (auto text = table.ascii_text("vendor", 1, kVendorBytesMax)) disk.vendor = std::move(*text);
    if (auto text = table.ascii_text("product", 1, kProductBytesMax)) disk.product = std::move(*text);
    if (auto text = table.ascii_text("revision", 1, kRevisionBytesMax)) disk.revision = std::move(*text);
    if (auto text = table.ascii_text("serial", 1, kSerialBytesMax)) disk.serial = std::move(*text);
    disk.identity = table.guid("identity");
    return disk;
  }

  NicConfig read_nic(TableReader& table, const PartitionConfig& partition, DeviceIdentities& identities) {
    NicConfig config;
    netvsp::NicConfig& nic = config.nic;
    config.line = table.line();
    config.definition = table.definition();
    nic.partition = partition.name;
    read_identity(table, identities, nic.name, nic.instance);
    nic.mac = read_mac(table);
    nic.mtu = table.integer("mtu", netvsp::kMtuMin, netvsp::kMtuMax).value_or(netvsp::kMtuDefault);
    nic.link_speed_mbps =
        table.integer("link_speed_mbps", 1, kLinkSpeedMbpsMax).value_or(nic.link_speed_mbps);
    nic.check_source_mac = table.boolean("check_source_mac").value_or(false);
    nic.monitored = table.boolean("monitor").value_or(false);
    nic.friendly_name = table.ascii_text("friendly_name", 1, kFriendlyNameBytesMax).value_or("");
    table.require("backend", words_of(kNicBackends));
    nic.backend = table.word("backend", kNicBackends).value_or(netvsp::NicConfig::Backend::kNull);
    switch (nic.backend) {
      case netvsp::NicConfig::Backend::kTap:
        read_tap(table, config);
        break;
      case netvsp::NicConfig::Backend::kStream:
        read_stream(table, config.source);
        break;
      case netvsp::NicConfig::Backend::kNull:
        nic.queues = read_queues(table).value_or(1);
        nic.null_receive_bytes =
            table.integer("receive_bytes", kFrameBytesMin, nic.mtu + kEthernetHeaderBytes).value_or(0);
        break;
      case netvsp::NicConfig::Backend::kLoopback:
        nic.queues = read_queues(table).value_or(1);
        break;
    }
    return config;
  }

  static std::optional<std::uint32_t> read_queues(TableReader& table) {
    return table.integer("queues", 1, netvsp::kMaxQueues);
  }

  void read_tap(TableReader& table, NicConfig& config) {
    constexpr std::string_view kAccepted = "an interface name: 1 to 15 of the characters A-Z a-z 0-9 . _ -";
    if (auto fds = table.descriptors("fds", netvsp::kMaxQueues)) {
      config.nic.queues = static_cast<std::uint32_t>(fds->size());
      config.source.fds = *std::move(fds);
      return;
    }
    const std::optional<std::uint32_t> queues = read_queues(table);
    config.nic.queues = queues.value_or(kTapQueuesDefault);
    config.source.any_queues = !queues;
    table.require("tap", kAccepted);
    const auto name = table.text("tap", kAccepted);
    if (!name) return;
    if (!is_interface_name(*name)) return table.refuse_value("tap", in_quotes(*name), kAccepted);
    taps_.claim(table, "tap", *name, fmt::format("the interface {}", in_quotes(*name)));
    config.source.tap = *name;
  }

  void read_stream(TableReader& table, NicSource& source) {
    if (auto fds = table.descriptors("fds", 1)) {
      source.fds = *std::move(fds);
      return;
    }
    table.require("socket", "a path of at most 107 bytes");
    source.socket =
        table.path("socket", directory_, kSocketBytesMax, "a path of at most 107 bytes").value_or("");
  }

  std::optional<netvsp::MacAddress> read_mac(TableReader& table) {
    constexpr std::string_view kAccepted = "a unicast MAC address such as \"02:1a:4b:00:c3:9d\"";
    const auto text = table.text("mac", kAccepted);
    if (!text) return std::nullopt;
    const std::optional<netvsp::MacAddress> mac = netvsp::MacAddress::parse(*text);
    if (!mac || !mac->valid_unicast()) {
      table.refuse_value("mac", in_quotes(*text), kAccepted);
      return std::nullopt;
    }
    macs_.claim(table, "mac", mac->to_string(), fmt::format("the MAC address {}", mac->to_string()));
    return mac;
  }

  // The size in bytes of a disk without an image; 0 where it was refused.
  static std::uint64_t read_null_size(TableReader& table) {
    constexpr std::string_view kAccepted =
        "bytes with a binary suffix, such as \"512M\", \"10G\", \"2T\", up to \"1024T\"";
    table.require("size", kAccepted);
    const auto text = table.text("size", kAccepted);
    if (!text) return 0;
    const std::optional<std::uint64_t> size = parse_size(*text);
    if (!size) table.refuse_value("size", in_quotes(*text), kAccepted);
    return size.value_or(0);
  }

  Problems& problems_;
  std::string_view directory_;
  Uniqueness partition_names_;
  Uniqueness sockets_;
  Uniqueness taps_;
  Uniqueness macs_;
};

// JSON as the same tree that TOML makes; false where it holds what no key accepts. The depth of `json` is
// bounded.
bool insert_json(toml::table& table, const nlohmann::json& json);

bool append_json(toml::array& array, const nlohmann::json& json) {
  for (const nlohmann::json& element : json) {
    if (element.is_object()) {
      toml::table table;
      if (!insert_json(table, element)) return false;
      array.push_back(std::move(table));
    } else if (element.is_number_integer()) {
      array.push_back(element.get<std::int64_t>());
    } else {
      return false;
    }
  }
  return true;
}

bool insert_json(toml::table& table, const nlohmann::json& json) {
  for (const auto& [key, value] : json.items()) {
    if (value.is_string()) {
      table.insert_or_assign(key, value.get_ref<const std::string&>());
    } else if (value.is_boolean()) {
      table.insert_or_assign(key, value.get<bool>());
    } else if (value.is_number_integer()) {
      table.insert_or_assign(key, value.get<std::int64_t>());
    } else if (value.is_array()) {
      toml::array array;
      if (!append_json(array, value)) return false;
      table.insert_or_assign(key, std::move(array));
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace

ParsedConfig parse_config(std::string_view text, std::string_view directory) {
  Problems problems;
  Config config;
  const toml::parse_result parsed = toml::parse(text);
  if (parsed) {
    config = ConfigReader(problems, directory).read(parsed.table());
  } else {
    const toml::parse_error& error = parsed.error();
    problems.add(static_cast<std::uint32_t>(error.source().begin.line), "",
                 fmt::format("not TOML: {}", printable(error.description(), 300)));
  }
  return {std::move(config), problems.take()};
}

ParsedConfig parse_partition(std::string_view json, std::string_view directory) {
  constexpr int kDepthMax = 6;  // partition, scsi, its element, disk, its element, value
  Problems problems;
  Config config;
  const nlohmann::json parsed = nlohmann::json::parse(
      json,
      [](int depth, nlohmann::json::parse_event_t, const nlohmann::json&) { return depth <= kDepthMax; },
      false);
  toml::table table;
  if (!parsed.is_object()) {
    problems.add(0, "", "not a JSON object; accepted: an object with the keys of a [[partition]] table");
  } else if (!insert_json(table, parsed)) {
    problems.add(0, "",
                 "holds a value that no key has; accepted: strings, integers, booleans, arrays of objects");
  } else {
    toml::table root;
    toml::array partitions;
    partitions.push_back(std::move(table));
    root.insert("partition", std::move(partitions));
    config = ConfigReader(problems, directory).read(root);
  }
  return {std::move(config), problems.take()};
}

std::string format_problem(std::string_view file, const ConfigProblem& problem) {
  std::string out(file);
  if (problem.line != 0) out += fmt::format(":{}", problem.line);
  for (const std::string_view part : {std::string_view(problem.key), std::string_view(problem.text)}) {
    if (part.empty()) continue;
    if (!out.empty()) out += ": ";
    out += part;
  }
  return out;
}

}  // namespace vmbusd::daemon
