#include "guest/hostile_child.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "base/fd.h"
#include "guest/disk.h"
#include "guest/nvsp_bytes.h"
#include "guest/stor_client.h"
#include "netvsp/nvsp.h"
#include "netvsp/rndis.h"
#include "partition/attach_protocol.h"

namespace vmbusd::guest {

using ring::PacketType;

namespace {

constexpr std::uint64_t kRamBytes = 128 << 20;
constexpr std::uint64_t kPulledGpa = 1 << 30;  // behind a hole, as MMIO leaves one
constexpr std::uint64_t kPulledBytes = 1 << 20;
constexpr std::uint32_t kLootPages = 64;
constexpr std::uint32_t kCrimesMax = 12;  // a round

// The host may be reading, so byte by byte, each at once.
void poke(std::byte* at, std::span<const std::byte> bytes) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::atomic_ref(reinterpret_cast<std::uint8_t&>(at[i]))
        .store(std::to_integer<std::uint8_t>(bytes[i]), std::memory_order_relaxed);
  }
}

}  // namespace

const HostileChild::Crime HostileChild::kCrimes[] = {
    {"ring indices", &HostileChild::corrupt_indices},
    {"packet descriptors", &HostileChild::forge_packets},
    {"page lists", &HostileChild::forge_page_lists},
    {"SCSI commands whose ids repeat and whose answers stay", &HostileChild::send_commands},
    {"storage packets", &HostileChild::send_storage_packets},
    {"NVSP messages", &HostileChild::send_nvsp_messages},
    {"RNDIS messages", &HostileChild::send_frames},
    {"completions", &HostileChild::complete_what_nobody_asked},
    {"GPADLs", &HostileChild::lend_anything},
    {"GPADLs taken back in use", &HostileChild::take_back_gpadls},
    {"opens", &HostileChild::open_anything},
    {"closes", &HostileChild::close_anything},
    {"target VPs", &HostileChild::retarget_anything},
    {"connections begun anew", &HostileChild::start_over},
    {"relids released", &HostileChild::release_relids},
    {"control messages", &HostileChild::post_garbage},
    {"doorbells", &HostileChild::storm_doorbells},
    {"SynIC pages", &HostileChild::move_synic_pages},
    {"memory pulled out", &HostileChild::pull_memory},
    {"sub-channels", &HostileChild::ask_for_sub_channels},
    {"second VMMs", &HostileChild::intrude},
};

HostileChild::~HostileChild() {
  leave();
}

std::vector<HostileChild::Deed> HostileChild::deeds() const {
  std::vector<Deed> deeds;
  for (std::size_t i = 0; i < times_.size(); ++i) deeds.push_back({kCrimes[i].what, times_[i]});
  return deeds;
}

Result<void> HostileChild::round() {
  times_.resize(std::size(kCrimes));
  VMBUSD_CHECK(be_born());
  if (one_in(2)) {
    stop_vandal_ = false;
    vandal_ = std::thread([this, seed = static_cast<std::uint32_t>(random_())] { vandalise(seed); });
  }
  const std::uint32_t count = 1 + below(kCrimesMax);
  for (std::uint32_t i = 0; i < count && connected(); ++i) {
    const std::uint32_t crime = below(std::size(kCrimes));
    ++times_[crime];
    (this->*kCrimes[crime].commit)();
    if (takes_messages_) drain_messages();
  }
  stop_vandal();
  if (connected() && one_in(4)) post(vmbus::Unload{});
  if (one_in(2)) leave();
  return {};
}

void HostileChild::leave() {
  stop_vandal();
  forget_life();
  child_.reset();
}

void HostileChild::forget_life() {
  victims_.clear();
  bus_.reset();
  offers_.clear();
  gpadls_.clear();
  loot_.abandon();  // the host has it until the reset is done
}

// --- A guest that behaves ---

Result<void> HostileChild::be_born() {
  if (connected()) {
    VMBUSD_CHECK(child_->reset());
    forget_life();
    // The pages of all lives: none of them is anybody's now, but they are few. A new child has new ones.
    if (one_in(8)) leave();
  }
  if (!connected()) {
    leave();
    VMBUSD_CHECK(attach());
  }
  VMBUSD_TRY(loot_, child_->ram().take(kLootPages));
  takes_messages_ = !one_in(4);
  bus_.emplace(*child_);
  const vmbus::Version version = kAllVersions[below(kAllVersions.size())];
  const std::uint32_t vp = version >= vmbus::Version::k3_0 ? below(child_->vp_count()) : 0;
  VMBUSD_CHECK(bus_->contact(version, {.target_vp = vp, .feature_flags = 0}));
  VMBUSD_TRY(offers_, bus_->request_offers());
  for (const vmbus::OfferChannel& offer : offers_) {
    if (offer.sub_channel_index == 0 && !one_in(4)) VMBUSD_CHECK(open(offer));
  }
  return {};
}

Result<void> HostileChild::attach() {
  std::string error_text;
  // A worker that is being replaced, or one that drains, takes its time.
  const Clock::time_point deadline = Clock::now() + kPatience;
  for (;;) {
    auto attached = ChildPartition::attach(
        {.socket_path = options_.socket_path, .vp_count = 1 + below(4), .memory_bytes = kRamBytes},
        error_text);
    if (attached) {
      child_ = std::move(*attached);
      break;
    }
    if (Clock::now() > deadline) return tl::unexpected(attached.error());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  VMBUSD_TRY(pulled_, Ram::create(kPulledBytes));
  VMBUSD_CHECK(child_->client().add_memory(kPulledGpa, kPulledBytes, pulled_->fd(), 0, true));
  pulled_is_there_ = true;
  return {};
}

Result<void> HostileChild::open(const vmbus::OfferChannel& offer) {
  const bool contiguous = !one_in(4);
  GuestChannel::Options options;
  options.to_host_pages = 3 + below(30);
  options.from_host_pages = 3 + below(30);
  options.target_vp = bus_->version() >= vmbus::Version::k2_4 ? below(child_->vp_count()) : 0;
  options.layout = contiguous ? Layout::kContiguous : Layout::kScattered;
  Victim victim;
  VMBUSD_TRY(victim.channel, GuestChannel::open(*bus_, offer, options));
  victim.contiguous = contiguous;
  if (offer.interface_type == vmbus::kClassScsi) {
    victim.kind = Kind::kDisk;
    VMBUSD_CHECK(start_disk(*victim.channel));
  } else if (offer.interface_type == vmbus::kClassNetwork) {
    victim.kind = Kind::kNic;
    VMBUSD_CHECK(start_nic(victim));
  }
  victims_.push_back(std::move(victim));
  return {};
}

Result<void> HostileChild::start_disk(GuestChannel& channel) {
  StorClient client(channel, 4);
  VMBUSD_CHECK(client.initialize());
  Disk disk(client);
  VMBUSD_CHECK(disk.ready());
  std::array<std::byte, 4096> block;
  return disk.read(0, block);
}

// Half of the NICs are brought up by the rules. For the rest the buffers are loot_, so that what is sent can
// be anything; whether the NIC takes them nobody looks.
Result<void> HostileChild::start_nic(Victim& victim) {
  GuestChannel& channel = *victim.channel;
  if (one_in(2)) {
    victim.nic = std::make_unique<NetClient>(channel);
    // A fraction of what drivers lend: after some lives few free pages of this memory follow each other.
    return victim.nic->initialize({.receive_pages = 512, .send_pages = 64});
  }
  VMBUSD_TRY(const std::uint32_t gpadl, bus_->create_gpadl(channel.relid(), loot_.gpns()));
  gpadls_.push_back(gpadl);
  const auto message = [&](const auto& body) {
    const NvspBytes bytes = nvsp_bytes(body);
    return channel.to_host().write({.completion_requested = true, .transaction_id = 1, .payload = bytes});
  };
  VMBUSD_CHECK(
      message(netvsp::NvspInit{netvsp::NvspType::kInit, netvsp::NvspVersion::k5, netvsp::NvspVersion::k5}));
  VMBUSD_CHECK(message(netvsp::NvspSendNdisVersion{netvsp::NvspType::kSendNdisVersion, 6, 30}));
  VMBUSD_CHECK(message(netvsp::NvspSendBuffer{netvsp::NvspType::kSendReceiveBuffer, gpadl, 0xcafe, 0}));
  VMBUSD_CHECK(message(netvsp::NvspSendBuffer{netvsp::NvspType::kSendSendBuffer, gpadl, 0, 0}));
  VMBUSD_CHECK(channel.to_host().commit());
  channel.ring_doorbell();
  return {};
}

// --- What is likely to be mishandled ---

std::uint32_t HostileChild::any_number() {
  constexpr std::array<std::uint32_t, 12> kEdges = {
      0, 1, 7, 8, 0xfff, 0x1000, 0x7fffffff, 0x80000000, 0xffff, 0xfffffff8, 0xfffff000, 0xffffffff};
  switch (below(3)) {
    case 0:
      return kEdges[below(kEdges.size())];
    case 1:
      return below(64);
    default:
      return static_cast<std::uint32_t>(random_());
  }
}

std::uint32_t HostileChild::any_index(std::uint32_t ring_size) {
  switch (below(4)) {
    case 0:
      return any_number();
    case 1:
      return ring_size - 8 * below(3);
    case 2:
      return below(ring_size);
    default:
      return below(ring_size) & ~7u;
  }
}

std::uint32_t HostileChild::any_relid() {
  return offers_.empty() || one_in(6) ? any_number() : offers_[below(offers_.size())].relid;
}

std::uint32_t HostileChild::any_gpadl() {
  // Those of channels follow each other from 0xe1e10 on.
  if (one_in(3)) return 0xe1e10 + below(8);
  return gpadls_.empty() || one_in(6) ? any_number() : gpadls_[below(gpadls_.size())];
}

std::uint32_t HostileChild::any_vp() {
  return one_in(3) ? any_number() : below(child_->vp_count() + 1);
}

Gpn HostileChild::any_page() {
  switch (below(8)) {
    case 0:
      return kRamBytes / kPageSize + below(1000);  // in the hole, or just behind the end
    case 1:
      return std::uint64_t{any_number()} << below(33);
    case 2:
      return kPulledGpa / kPageSize + below(kPulledBytes / kPageSize + 2);
    case 3:  // rings, SynIC pages, monitor pages: they are taken from the front
      return below(256);
    default:
      return loot_.gpns()[below(kLootPages)];
  }
}

HostileChild::Victim* HostileChild::any_victim() {
  return victims_.empty() ? nullptr : &victims_[below(victims_.size())];
}

HostileChild::Victim* HostileChild::any_victim(Kind kind) {
  std::vector<Victim*> found;
  for (Victim& victim : victims_) {
    if (victim.kind == kind) found.push_back(&victim);
  }
  return found.empty() ? nullptr : found[below(found.size())];
}

// --- Means ---

void HostileChild::post(std::span<const std::byte> message) {
  const std::span<const std::uint8_t> bytes(reinterpret_cast<const std::uint8_t*>(message.data()),
                                            message.size());
  const std::uint32_t connection = one_in(50)  ? any_number()
                                   : one_in(4) ? vmbus::kMessageConnectionBelow5
                                               : vmbus::kMessageConnectionFrom5;
  const std::uint32_t vp = below(child_->vp_count());
  for (int attempt = 0; attempt < 100; ++attempt) {
    const Result<void> posted = child_->client().post_guest_message(vp, connection, 1, bytes);
    if (posted || posted.error().code != Errc::kLimit) return;
    // Full: the host waits for its own messages to be taken.
    drain_messages();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void HostileChild::drain_messages() {
  for (std::uint32_t vp = 0; vp < child_->vp_count(); ++vp) {
    while (child_->take_message(vp, Clock::time_point())) {
    }
  }
}

void HostileChild::send(Victim& victim, PacketType type, std::span<const std::byte> extension,
                        std::span<const std::byte> payload) {
  const Result<bool> written = victim.channel->to_host().write({.type = type,
                                                                .completion_requested = !one_in(8),
                                                                .transaction_id = one_in(2) ? 1 : random_(),
                                                                .extension = extension,
                                                                .payload = payload});
  const Result<bool> committed = victim.channel->to_host().commit();
  // Its own rings may be in ruins.
  if (written && committed) victim.channel->ring_doorbell();
}

std::vector<std::uint64_t> HostileChild::one_range(std::uint32_t pages) {
  const std::uint32_t offset = one_in(3) ? below(kPageSize) : 0;
  const ring::GpaDirectHeader header = {.reserved = 0, .range_count = 1};
  const ring::GpaRange range = {.byte_count = pages * kPageSize - offset, .byte_offset = offset};
  std::vector<std::uint64_t> words = {std::bit_cast<std::uint64_t>(header),
                                      std::bit_cast<std::uint64_t>(range)};
  const bool honest = !one_in(4);
  for (std::uint32_t i = 0; i < pages; ++i) {
    words.push_back(honest ? loot_.gpns()[below(kLootPages)] : any_page());
  }
  return words;
}

// Bytes that change while they are read: rings, and what I/O goes through.
void HostileChild::vandalise(std::uint32_t seed) {
  std::mt19937 random(seed);
  while (!stop_vandal_) {
    std::byte* at = loot_.host(random() % kLootPages) + random() % 256;
    if (!victims_.empty() && random() % 2 == 0) {
      Victim& victim = victims_[random() % victims_.size()];
      auto& control =
          random() % 4 == 0 ? victim.channel->from_host_control() : victim.channel->to_host_control();
      const bool index = !victim.contiguous || random() % 16 == 0;
      at = reinterpret_cast<std::byte*>(&control) + (index ? random() % 20 : kPageSize + random() % 2048);
    }
    const std::byte value{static_cast<std::uint8_t>(random() % 4 == 0 ? random() : random() % 16)};
    poke(at, std::span(&value, 1));
  }
}

void HostileChild::stop_vandal() {
  stop_vandal_ = true;
  if (vandal_.joinable()) vandal_.join();
}

// --- Crimes: rings ---

void HostileChild::corrupt_indices() {
  Victim* const victim = any_victim();
  if (victim == nullptr) return;
  constexpr std::array kFields = {&ring::ControlPage::write_index, &ring::ControlPage::read_index,
                                  &ring::ControlPage::interrupt_mask, &ring::ControlPage::pending_send_size,
                                  &ring::ControlPage::feature_bits};
  for (std::uint32_t i = 1 + below(3); i > 0; --i) {
    auto& control = one_in(2) ? victim->channel->to_host_control() : victim->channel->from_host_control();
    const auto field = kFields[below(kFields.size())];
    std::atomic_ref(control.*field).store(any_index(victim->channel->to_host().size()));
    victim->channel->ring_doorbell();
  }
}

void HostileChild::forge_packets() {
  Victim* const victim = any_victim();
  if (victim == nullptr || !victim->contiguous) return;
  auto& control = victim->channel->to_host_control();
  const std::uint32_t size = victim->channel->to_host().size();
  const std::uint32_t begin = std::atomic_ref(control.write_index).load() % size & ~7u;
  constexpr std::array<std::uint64_t, 8> kTypes = {6, 7, 9, 11, 0, 8, 12, 0xffff};
  std::uint32_t at = begin;
  for (std::uint32_t i = 1 + below(4); i > 0; --i) {
    const std::uint64_t length8 = one_in(3) ? any_number() & 0xffff : 2 + below(24);
    const std::uint64_t offset8 = one_in(3) ? any_number() & 0xffff : 2 + below(4);
    const std::uint64_t flags = one_in(6) ? any_number() & 0xffff : below(2);
    const std::array<std::uint64_t, 4> words = {
        kTypes[below(kTypes.size())] | offset8 << 16 | length8 << 32 | flags << 48, below(4),
        std::uint64_t{any_number()} << 32, std::uint64_t{any_number()} << 32 | any_number()};
    for (const std::uint64_t& word : words) {
      poke(reinterpret_cast<std::byte*>(&control) + kPageSize + at, std::as_bytes(std::span(&word, 1)));
      at = (at + 8) % size;
    }
    at = (at + static_cast<std::uint32_t>(length8 * 8)) % size;
  }
  std::atomic_ref(control.write_index).store(at);
  victim->channel->ring_doorbell();
}

void HostileChild::forge_page_lists() {
  Victim* const victim = any_victim();
  if (victim == nullptr) return;
  std::vector<std::uint64_t> words = {std::uint64_t{one_in(3) ? any_number() : below(4)} << 32};
  for (std::uint32_t ranges = below(4); ranges > 0; --ranges) {
    const std::uint64_t bytes = one_in(3) ? any_number() : below(4 * kPageSize);
    const std::uint64_t offset = one_in(3) ? any_number() : below(kPageSize);
    words.push_back(offset << 32 | bytes);
    for (std::uint32_t pages = below(6); pages > 0; --pages) words.push_back(any_page());
  }
  std::array<std::byte, vstor::kPacketSize> payload{};
  for (std::byte& byte : payload) byte = std::byte{static_cast<std::uint8_t>(below(4))};
  payload[0] = std::byte{victim->kind == Kind::kDisk ? std::uint8_t{3}
                                                     : std::uint8_t{107}};  // EXECUTE_SRB; an RNDIS message
  send(*victim, PacketType::kGpaDirect, std::as_bytes(std::span(words)),
       std::span(payload).first(victim->kind == Kind::kDisk ? vstor::kPacketSize : netvsp::kNvspMessageSize));
}

void HostileChild::complete_what_nobody_asked() {
  Victim* const victim = any_victim();
  if (victim == nullptr) return;
  for (std::uint32_t i = 1 + below(16); i > 0; --i) {
    std::array<std::uint32_t, 10> payload{};
    for (std::uint32_t& word : payload) word = any_number();
    payload[0] = one_in(2) ? 108 : any_number();  // what a NIC's frames are completed by
    send(*victim, one_in(4) ? PacketType::kTransferPages : PacketType::kCompletion,
         std::as_bytes(std::span(payload)).first(one_in(4) ? 8 : 0),
         std::as_bytes(std::span(payload)).first(below(11) * 4));
  }
}

void HostileChild::storm_doorbells() {
  for (Victim& victim : victims_) {
    for (std::uint32_t i = below(1000); i > 0; --i) victim.channel->ring_doorbell();
  }
}

// --- Crimes: disks and NICs ---

void HostileChild::send_commands() {
  Victim* const victim = any_victim(Kind::kDisk);
  if (victim == nullptr) return;
  constexpr std::array<std::uint8_t, 28> kOpcodes = {
      0x00, 0x03, 0x08, 0x0a, 0x12, 0x16, 0x17, 0x1a, 0x1b, 0x25, 0x28, 0x2a, 0x2e, 0x2f,
      0x35, 0x41, 0x42, 0x55, 0x5e, 0x5f, 0x88, 0x89, 0x8a, 0x8f, 0x93, 0x9e, 0xa0, 0xa3};
  for (std::uint32_t i = 1 + below(64); i > 0; --i) {
    const std::uint32_t pages = 1 + below(16);
    vstor::SrbPacket packet{};
    packet.header = {vstor::Operation::kExecuteSrb, any_number(), vstor::Status::kSuccess};
    packet.srb.length = sizeof packet.srb;
    packet.srb.path_id = static_cast<std::uint8_t>(one_in(16) ? any_number() : 0);
    packet.srb.target_id = static_cast<std::uint8_t>(one_in(16) ? any_number() : 0);
    packet.srb.lun = static_cast<std::uint8_t>(one_in(8) ? any_number() : below(2));
    packet.srb.cdb_length = static_cast<std::uint8_t>(one_in(8) ? any_number() : 16);
    packet.srb.sense_info_length = static_cast<std::uint8_t>(one_in(8) ? any_number() : vstor::kSenseSizeMax);
    packet.srb.data_in =
        one_in(8) ? static_cast<vstor::DataIn>(any_number()) : static_cast<vstor::DataIn>(below(3));
    packet.srb.data_transfer_length = one_in(8) ? any_number() : pages * kPageSize;
    for (std::uint8_t& byte : packet.srb.cdb_or_sense) {
      byte = static_cast<std::uint8_t>(one_in(3) ? any_number() : 0);
    }
    packet.srb.cdb_or_sense[0] =
        one_in(16) ? static_cast<std::uint8_t>(any_number()) : kOpcodes[below(kOpcodes.size())];
    if (one_in(2)) {  // reads and writes that are in order, so that I/O is under way
      const auto opcode = one_in(2) ? scsi::Opcode::kRead16 : scsi::Opcode::kWrite16;
      const StorCommand command = block_command(opcode, below(1024), pages * 8);
      std::copy(command.cdb.begin(), command.cdb.end(), packet.srb.cdb_or_sense.begin());
      packet.srb.data_in = command.direction;
      packet.srb.cdb_length = command.cdb_length;
    }
    const std::vector<std::uint64_t> extension = one_range(pages);
    send(*victim, PacketType::kGpaDirect, std::as_bytes(std::span(extension)), wire_bytes(packet));
  }
}

void HostileChild::send_storage_packets() {
  Victim* const victim = any_victim(Kind::kDisk);
  if (victim == nullptr) return;
  for (std::uint32_t i = 1 + below(8); i > 0; --i) {
    std::array<std::uint32_t, 32> words{};
    for (std::uint32_t& word : words) word = one_in(3) ? any_number() : 0;
    words[0] = one_in(6) ? any_number() : 1 + below(14);
    const std::size_t bytes = one_in(3) ? below(sizeof words) : vstor::kPacketSize;
    send(*victim, PacketType::kInband, {}, std::as_bytes(std::span(words)).first(bytes));
  }
}

void HostileChild::send_nvsp_messages() {
  Victim* const victim = any_victim(Kind::kNic);
  if (victim == nullptr) return;
  constexpr std::array<std::uint32_t, 15> kTypes = {1,   100, 101, 103, 104, 106, 107, 108,
                                                    125, 128, 129, 131, 133, 134, 135};
  for (std::uint32_t i = 1 + below(8); i > 0; --i) {
    std::array<std::uint32_t, 30> words{};
    for (std::uint32_t& word : words) word = one_in(2) ? any_number() : 0;
    words[0] = one_in(8) ? any_number() : kTypes[below(kTypes.size())];
    words[1] = one_in(3) ? any_number() : one_in(2) ? any_gpadl() : below(3);
    const std::size_t bytes = one_in(3) ? below(sizeof words) : netvsp::kNvspMessageSize;
    send(*victim, PacketType::kInband, {}, std::as_bytes(std::span(words)).first(bytes));
  }
}

// RNDIS messages out of a send section and out of pages, which the vandal changes meanwhile.
void HostileChild::send_frames() {
  Victim* const victim = any_victim(Kind::kNic);
  if (victim == nullptr) return;
  constexpr std::array<std::uint32_t, 9> kTypes = {1, 1, 1, 2, 3, 4, 5, 8, 9};
  for (std::uint32_t i = 1 + below(32); i > 0; --i) {
    const std::uint32_t page = below(kLootPages);
    std::array<std::uint32_t, 64> message{};
    for (std::uint32_t& word : message) word = one_in(6) ? any_number() : below(200);
    message[0] = one_in(10) ? any_number() : kTypes[below(kTypes.size())];
    message[1] = one_in(4) ? any_number() : sizeof message;
    if (message[0] == 1 && one_in(2)) {  // a frame that can be sent, with one info in front of it
      message[2] = 0x50 - 8;
      message[3] = 100;
      message[4] = message[5] = message[6] = 0;
      message[7] = 0x2c - 8;
      message[8] = 16;
      message[11] = 16;
      message[12] = below(12);
      message[13] = 12;
    }
    poke(loot_.host(page), std::as_bytes(std::span(message)));
    netvsp::NvspSendRndisPacket packet{};
    packet.type = netvsp::NvspType::kSendRndisPacket;
    packet.channel_type = static_cast<netvsp::NvspChannelType>(one_in(8) ? any_number() : below(2));
    packet.send_section_index = one_in(3)   ? any_number()
                                : one_in(2) ? below(kLootPages)
                                            : netvsp::kNoSendSection;
    packet.send_section_size = one_in(3) ? any_number() : sizeof message;
    std::array<std::byte, netvsp::kNvspMessageSize> payload{};
    std::memcpy(payload.data(), &packet, sizeof packet);
    if (packet.send_section_index == netvsp::kNoSendSection) {
      std::vector<std::uint64_t> extension = one_range(1);
      extension[1] = sizeof message;
      extension[2] = loot_.gpns()[page];
      send(*victim, PacketType::kGpaDirect, std::as_bytes(std::span(extension)), payload);
    } else {
      send(*victim, PacketType::kInband, {}, payload);
    }
  }
}

void HostileChild::ask_for_sub_channels() {
  if (Victim* const victim = any_victim(Kind::kDisk)) {
    vstor::Packet packet{};
    packet.header.operation = vstor::Operation::kCreateSubChannels;
    const vstor::SubChannelRequest request{static_cast<std::uint16_t>(one_in(2) ? below(5) : any_number())};
    std::memcpy(packet.body.data(), &request, sizeof request);
    send(*victim, PacketType::kInband, {}, wire_bytes(packet));
  }
  if (Victim* const victim = any_victim(Kind::kNic)) {
    std::array<std::uint32_t, 10> message = {133, 1, one_in(2) ? below(5) : any_number()};
    send(*victim, PacketType::kInband, {}, std::as_bytes(std::span(message)));
  }
  // Opened in any order, before they are offered or never.
  for (std::uint32_t i = 0; i < 4; ++i) {
    vmbus::OpenChannel open;
    open.relid = below(16);
    open.ring_gpadl = any_gpadl();
    open.downstream_page_offset = 2;
    post(open);
  }
}

// --- Crimes: the bus ---

void HostileChild::lend_anything() {
  for (std::uint32_t i = 1 + below(16); i > 0; --i) {
    const std::uint32_t pages = one_in(4) ? below(200) : 1 + below(20);
    vmbus::GpaRangeHeader range;
    range.byte_count = one_in(4) ? any_number() : pages * kPageSize;
    range.byte_offset = one_in(4) ? any_number() : 0;
    std::vector<std::uint64_t> values = {std::bit_cast<std::uint64_t>(range)};
    const bool honest = one_in(2);
    for (std::uint32_t page = 0; page < pages; ++page) {
      values.push_back(honest ? loot_.gpns()[below(kLootPages)] : any_page());
    }
    vmbus::GpadlHeader header;
    header.relid = any_relid();
    header.gpadl = one_in(4) ? any_gpadl() : 0x1000 + below(64);
    header.range_buflen = static_cast<std::uint16_t>(one_in(4) ? any_number() : values.size() * 8);
    header.rangecount = static_cast<std::uint16_t>(one_in(4) ? any_number() : 1);
    gpadls_.push_back(header.gpadl);
    vmbus::GpadlBody body;
    body.gpadl = one_in(8) ? any_gpadl() : header.gpadl;
    std::span<const std::uint64_t> left(values);
    const auto post_part = [&](std::span<const std::byte> fixed, std::size_t values_max) {
      const std::span<const std::uint64_t> part = left.first(std::min(values_max, left.size()));
      left = left.subspan(part.size());
      std::vector<std::byte> message(fixed.begin(), fixed.end());
      const std::span<const std::byte> bytes = std::as_bytes(part);
      message.insert(message.end(), bytes.begin(), bytes.end());
      post(std::span<const std::byte>(message));
    };
    post_part(wire_bytes(header), vmbus::kGpadlHeaderValuesMax);
    while (!left.empty() && !one_in(16)) {  // some are never finished
      post_part(wire_bytes(body), vmbus::kGpadlBodyValuesMax);
      body.msgnumber = one_in(8) ? any_number() : body.msgnumber + 1;
    }
  }
}

void HostileChild::take_back_gpadls() {
  if (one_in(2)) send_commands();
  for (std::uint32_t i = 1 + below(16); i > 0; --i) {
    vmbus::GpadlTeardown message;
    message.relid = any_relid();
    message.gpadl = any_gpadl();
    post(message);
  }
}

void HostileChild::open_anything() {
  for (std::uint32_t i = 1 + below(one_in(4) ? 200 : 8); i > 0; --i) {
    vmbus::OpenChannel message;
    message.relid = any_relid();
    message.openid = any_number();
    message.ring_gpadl = any_gpadl();
    message.target_vp = any_vp();
    message.downstream_page_offset = one_in(2) ? any_number() : 1 + below(20);
    post(message);
    if (one_in(2)) {
      vmbus::CloseChannel close;
      close.relid = message.relid;
      post(close);
    }
  }
}

void HostileChild::close_anything() {
  if (one_in(2)) send_commands();
  for (std::uint32_t i = 1 + below(8); i > 0; --i) {
    vmbus::CloseChannel message;
    message.relid = any_relid();
    post(message);
  }
}

void HostileChild::retarget_anything() {
  for (std::uint32_t i = 1 + below(64); i > 0; --i) {
    vmbus::ModifyChannel message;
    message.relid = any_relid();
    message.target_vp = any_vp();
    post(message);
  }
}

void HostileChild::start_over() {
  if (one_in(2)) send_commands();
  for (std::uint32_t i = 1 + below(8); i > 0; --i) {
    vmbus::InitiateContact message;
    message.version = one_in(4) ? vmbus::Version{any_number()} : kAllVersions[below(kAllVersions.size())];
    message.target_vp = any_vp();
    message.target.sint = static_cast<std::uint8_t>(one_in(4) ? any_number() : vmbus::kMessageSint);
    message.target.feature_flags = one_in(2) ? any_number() : 0;
    message.parent_to_child_monitor_gpa = any_page() * kPageSize;
    message.child_to_parent_monitor_gpa = any_page() * kPageSize + (one_in(4) ? below(kPageSize) : 0);
    post(message);
    if (one_in(2)) post(vmbus::RequestOffers{});
    if (one_in(4)) post(vmbus::Unload{});
  }
}

void HostileChild::release_relids() {
  for (std::uint32_t i = 1 + below(8); i > 0; --i) {
    vmbus::RelidReleased message;
    message.relid = any_relid();
    post(message);
  }
}

void HostileChild::post_garbage() {
  for (std::uint32_t i = 1 + below(200); i > 0; --i) {
    std::vector<std::byte> message(below(vmbus::kMessagePayloadBytesMax + 1));
    for (std::byte& byte : message) byte = static_cast<std::byte>(one_in(4) ? random_() : 0);
    if (message.size() >= 12) {
      const std::uint32_t type = below(32);
      const std::uint32_t relid = any_relid();
      std::memcpy(message.data(), &type, sizeof type);
      std::memcpy(message.data() + 8, &relid, sizeof relid);
    }
    post(std::span<const std::byte>(message));
  }
}

// --- Crimes: the VMM ---

void HostileChild::move_synic_pages() {
  for (std::uint32_t i = 1 + below(4); i > 0; --i) {
    const std::uint32_t flags = one_in(4) ? any_number() : below(8);
    (void)child_->client().set_synic_state(any_vp(), flags, any_page() * kPageSize, any_page() * kPageSize);
  }
}

void HostileChild::pull_memory() {
  partition::AttachClient& client = child_->client();
  // Under I/O, some of which is into it.
  if (Victim* const victim = any_victim(Kind::kDisk)) {
    for (std::uint32_t i = below(32); i > 0; --i) {
      const StorCommand command = block_command(scsi::Opcode::kRead16, below(1024), 32);
      vstor::SrbPacket packet{};
      packet.header.operation = vstor::Operation::kExecuteSrb;
      packet.srb.length = sizeof packet.srb;
      packet.srb.cdb_length = command.cdb_length;
      packet.srb.data_in = vstor::DataIn::kRead;
      packet.srb.data_transfer_length = 4 * kPageSize;
      std::copy(command.cdb.begin(), command.cdb.end(), packet.srb.cdb_or_sense.begin());
      std::vector<std::uint64_t> extension = one_range(4);
      for (std::size_t page = 2; page < extension.size(); ++page) {
        extension[page] = kPulledGpa / kPageSize + below(kPulledBytes / kPageSize);
      }
      extension[1] = std::uint64_t{4} * kPageSize;
      send(*victim, PacketType::kGpaDirect, std::as_bytes(std::span(extension)), wire_bytes(packet));
    }
  }
  for (std::uint32_t i = 1 + below(4); i > 0; --i) {
    if (one_in(4)) {
      // Refused while any of it is lent; else it is put back.
      if (client.remove_memory(0, kRamBytes)) {
        (void)client.add_memory(0, kRamBytes, child_->ram().fd(), 0, true);
      }
      (void)client.add_memory(std::uint64_t{any_number()} << below(33), any_number(), pulled_->fd(),
                              any_number(), one_in(2));
      (void)client.remove_memory(kPulledGpa + any_number(), any_number());
    }
    const Result<void> done = pulled_is_there_
                                  ? client.remove_memory(kPulledGpa, kPulledBytes)
                                  : client.add_memory(kPulledGpa, kPulledBytes, pulled_->fd(), 0, !one_in(4));
    if (done) pulled_is_there_ = !pulled_is_there_;
  }
}

// Somebody else at the same socket, who may say anything.
void HostileChild::intrude() {
  const UniqueFd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  options_.socket_path.copy(address.sun_path, sizeof address.sun_path - 1);
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return;
  for (std::uint32_t i = 1 + below(4); i > 0; --i) {
    std::array<std::uint32_t, 80> words{};
    for (std::uint32_t& word : words) word = one_in(4) ? any_number() : 0;
    const std::uint32_t bytes = one_in(2) ? below(sizeof words) : 40;
    words[0] = one_in(2) ? 1 : below(8);
    words[1] = one_in(4) ? any_number() : bytes;
    if (one_in(2)) words[4] = 0x41424d56;
    (void)::send(socket.get(), words.data(), bytes, MSG_NOSIGNAL);
  }
}

}  // namespace vmbusd::guest
