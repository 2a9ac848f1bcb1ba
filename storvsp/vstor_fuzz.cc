// Packet sequences into a storage channel, through its rings: negotiation in any order, SRBs with any
// buffers, malformed packets, slow and failing disks. Each input is a list of actions.
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>

#include "storvsp/stor_channel.h"
#include "tests/storvsp/fuzz_input.h"
#include "tests/storvsp/ram_disk.h"
#include "tests/storvsp/ram_lun.h"
#include "tests/storvsp/stor_guest.h"

namespace vmbusd::storvsp {
namespace {

constexpr std::size_t kActionsMax = 128;
constexpr std::uint64_t kDiskBytes = 64 * 1024;
constexpr std::uint64_t kRomPage = StorGuest::kPages;  // pages behind RAM that the host may only read
constexpr std::uint64_t kRomPages = 2;
// Buffer pages that ranges name; those behind must stay as they are.
constexpr std::uint64_t kBufferPages = 40;
constexpr std::array<int, 5> kErrors = {0, 0, EIO, ENOSPC, ENODEV};

ControllerState& fill(ControllerState& state, RamDisk*& disk) {
  state.limits = {.max_transfer_bytes = 64 * 1024, .max_sub_channels = 2};
  for (const std::size_t lun : {0, 1}) {
    LunOptions options = ram_lun_options(kDiskBytes);
    options.read_only = lun == 1;
    auto ram = std::make_unique<RamDisk>(options.geometry);
    disk = lun == 0 ? ram.get() : disk;
    state.luns[lun].disk = std::move(ram);
    state.luns[lun].unit = std::make_unique<LogicalUnit>(options);
  }
  return state;
}

class Session {
 public:
  explicit Session(FuzzInput& input)
      : input_(input),
        guest_(std::make_unique<StorChannel>(fill(state_, disk_), [](std::uint32_t) {}),
               {.incoming_pages = 4, .outgoing_pages = 2, .sub_channel_index = 0, .own_thread = false}) {
    VMBUSD_ASSERT(
        guest_.partition.memory().add(kRomPage * 4096, rom_.size(), rom_.fd(), 0, false).has_value());
    std::memset(rom_.page(0), 0x77, rom_.size());
    std::memset(guest_.memory.page(StorGuest::kDataPage + kBufferPages), 0x33, 4096);
    if (input.below(4) != 0) {
      begin(vstor::Operation::kBeginInitialization, {});
      begin(vstor::Operation::kQueryProtocolVersion,
            {0x02, static_cast<std::uint8_t>(input.below(4) == 0 ? 4 : 6)});
      begin(vstor::Operation::kQueryProperties, {});
      begin(vstor::Operation::kEndInitialization, {});
    }
  }

  void run() {
    for (std::size_t i = 0; i < kActionsMax && !input_.empty(); ++i) act();
    disk_->hold = false;
    disk_->release_held();
    // Every request that wanted an answer has it, in the end.
    if (!broken()) {
      for (int i = 0; i < 1000 && !expected_.empty(); ++i) drain();
      VMBUSD_ASSERT(expected_.empty());
      VMBUSD_ASSERT(guest_.channel->in_flight() == 0);
    }
    check_memory();
    guest_.stop();
  }

 private:
  [[nodiscard]] bool broken() const { return guest_.channel->stopping(); }

  void act() {
    switch (input_.below(8)) {
      case 0:
        control();
        break;
      case 1:
        raw();
        break;
      case 2:
        drain();
        break;
      case 3:
        disk_->hold = input_.below(2) == 0;
        if (!disk_->hold) disk_->release_held();
        break;
      case 4:
        disk_->error = kErrors[input_.below(kErrors.size())];
        break;
      default:
        srb();
        break;
    }
  }

  void begin(vstor::Operation operation, const Bytes& body) {
    vstor::Packet packet{};
    packet.header.operation = operation;
    std::transform(body.begin(), body.end(), packet.body.begin(),
                   [](std::uint8_t byte) { return std::byte{byte}; });
    send(ring::PacketType::kInband, {}, wire_bytes(packet), true);
  }

  void control() {
    vstor::Packet packet{};
    packet.header.operation = static_cast<vstor::Operation>(input_.below(16));
    for (std::size_t i = 0; i < 8; ++i) packet.body[i] = static_cast<std::byte>(input_.byte());
    const std::size_t size = input_.below(4) == 0 ? input_.below(9) * 8 : sizeof packet;
    send(ring::PacketType::kInband, {}, wire_bytes(packet).first(size), input_.below(8) != 0);
  }

  void srb() {
    Bytes cdb(6 + input_.below(11));
    static constexpr std::array<std::uint8_t, 20> kOpcodes = {0x00, 0x12, 0x1a, 0x28, 0x2a, 0x28, 0x2a,
                                                              0x35, 0xa0, 0x9e, 0x88, 0x8a, 0x15, 0x2e,
                                                              0x2f, 0x41, 0x42, 0x89, 0x93, 0xa3};
    cdb[0] = input_.below(8) == 0 ? input_.byte() : kOpcodes[input_.below(kOpcodes.size())];
    if (input_.below(2) == 0) {
      for (std::size_t i = 1; i < cdb.size(); ++i) cdb[i] = input_.byte();
    } else {
      // A few blocks near the start, in the ten-byte form.
      cdb.resize(10);
      cdb[5] = static_cast<std::uint8_t>(input_.below(140));
      cdb[8] = static_cast<std::uint8_t>(input_.below(20));
    }
    const std::size_t length = input_.below(3) == 0 ? input_.below(65536) : input_.below(20) * 512;
    vstor::SrbPacket packet =
        StorGuest::srb(cdb, static_cast<vstor::DataIn>(input_.below(3)), static_cast<std::uint32_t>(length),
                       static_cast<std::uint8_t>(input_.below(3)));
    packet.srb.srb_flags = input_.byte();
    if (input_.below(16) == 0) packet.srb.cdb_length = input_.byte();
    if (input_.below(16) == 0) packet.srb.target_id = input_.byte();
    if (input_.below(8) == 0) packet.srb.sense_info_length = input_.byte();
    const Bytes extension = ranges(static_cast<std::uint32_t>(length));
    send(length == 0 ? ring::PacketType::kInband : ring::PacketType::kGpaDirect,
         length == 0 ? std::span<const std::byte>() : std::as_bytes(std::span(extension)), wire_bytes(packet),
         input_.below(16) != 0);
  }

  // A range list for `length` bytes, most often a right one.
  Bytes ranges(std::uint32_t length) {
    std::vector<std::uint64_t> words;
    const std::size_t count = 1 + input_.below(3);
    words.push_back(count << 32);
    const bool right = input_.below(4) != 0;
    for (std::size_t i = 0; i < count; ++i) {
      const std::uint32_t bytes =
          right ? (i + 1 == count ? length : length / 4) : static_cast<std::uint32_t>(input_.word());
      length -= right ? bytes : 0;
      const std::uint32_t offset = static_cast<std::uint32_t>(input_.below(right ? 4096 : 5000));
      words.push_back(std::uint64_t{offset} << 32 | bytes);
      const std::size_t pages = right ? (offset + bytes + 4095) / 4096 : input_.below(20);
      for (std::size_t page = 0; page < pages; ++page) {
        const std::size_t kind = input_.below(16);
        words.push_back(kind == 0   ? kRomPage + input_.below(kRomPages + 1)
                        : kind == 1 ? input_.word() | std::uint64_t{1} << 32
                                    : StorGuest::kDataPage + input_.below(kBufferPages));
      }
    }
    Bytes extension(words.size() * 8);
    std::memcpy(extension.data(), words.data(), extension.size());
    return extension;
  }

  void raw() {
    Bytes bytes((1 + input_.below(20)) * 8);
    for (std::uint8_t& byte : bytes) byte = input_.byte();
    static constexpr std::array<ring::PacketType, 4> kTypes = {
        ring::PacketType::kInband, ring::PacketType::kGpaDirect, ring::PacketType::kCompletion,
        ring::PacketType::kTransferPages};
    const ring::PacketType type = kTypes[input_.below(kTypes.size())];
    const bool extended = type == ring::PacketType::kGpaDirect || type == ring::PacketType::kTransferPages;
    const std::size_t extension = extended ? std::min<std::size_t>(bytes.size(), 8 + input_.below(8) * 8) : 0;
    const std::span<const std::byte> all = std::as_bytes(std::span(bytes));
    const bool answered = type == ring::PacketType::kInband || type == ring::PacketType::kGpaDirect;
    send(type, all.first(extension), all.subspan(extension), answered);
  }

  void send(ring::PacketType type, std::span<const std::byte> extension, std::span<const std::byte> payload,
            bool wants_answer) {
    if (broken()) return;
    // Few distinct ids: a guest may use one twice.
    const std::uint64_t id = input_.below(8);
    ring::PacketToWrite packet;
    packet.type = type;
    packet.completion_requested = wants_answer;
    packet.transaction_id = id;
    packet.extension = extension;
    packet.payload = payload;
    if (!guest_.to_host->write(packet).value()) return drain();  // full
    if (wants_answer) ++expected_[id];
    (void)guest_.to_host->commit().value();
    guest_.poll();
  }

  void drain() {
    for (int i = 0; i < 4 && !broken(); ++i) {
      guest_.poll();
      while (const std::optional<Completion> completion = guest_.try_receive()) check(*completion);
    }
  }

  // No answer without a request, and each of the form that drivers insist on.
  void check(const Completion& completion) {
    const auto expected = expected_.find(completion.id);
    VMBUSD_ASSERT(expected != expected_.end());
    if (--expected->second == 0) expected_.erase(expected);
    VMBUSD_ASSERT(completion.type == ring::PacketType::kCompletion);
    VMBUSD_ASSERT(completion.payload_size == 64 || completion.payload_size == 48);
    VMBUSD_ASSERT(completion.packet.header.operation == vstor::Operation::kCompleteIo);
    VMBUSD_ASSERT(completion.packet.header.flags == 0);
    VMBUSD_ASSERT((completion.packet.srb.srb_status & vstor::kSrbQueueFrozen) == 0);
  }

  void check_memory() const {
    const auto same = [](const std::byte* bytes, std::size_t size, std::uint8_t value) {
      return std::all_of(bytes, bytes + size, [value](std::byte b) { return b == std::byte{value}; });
    };
    VMBUSD_ASSERT(same(rom_.page(0), rom_.size(), 0x77));
    VMBUSD_ASSERT(same(guest_.memory.page(StorGuest::kDataPage + kBufferPages), 4096, 0x33));
  }

  FuzzInput& input_;
  ControllerState state_;
  RamDisk* disk_ = nullptr;
  devices::TestMemory rom_{kRomPages};
  StorGuest guest_;
  std::map<std::uint64_t, int> expected_;  // answers that are due, by transaction id
};

}  // namespace
}  // namespace vmbusd::storvsp

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  vmbusd::storvsp::FuzzInput input({data, size});
  vmbusd::storvsp::Session(input).run();
  return 0;
}
