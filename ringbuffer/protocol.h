// What stands in a VMBus ring: the control page, packet descriptors, GPA-direct and transfer-page extensions.
// Facts from [linux: include/linux/hyperv.h] and reference tests of [openvmm: vm/devices/vmbus/vmbus_ring].
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/wire.h"

namespace vmbusd::ring {

inline constexpr std::uint32_t kPageSize = 4096;  // of VMBus, whatever the guest's own is
inline constexpr std::uint32_t kPacketAlign = 8;
inline constexpr std::uint32_t kTrailerSize =
    8;  // behind every packet: u32 0, u32 ring offset where the packet began

// First page of each ring. [linux: struct hv_ring_buffer]
struct ControlPage {
  std::uint32_t write_index;        // producer: byte offset where the next packet will start
  std::uint32_t read_index;         // consumer: byte offset of the next packet to read
  std::uint32_t interrupt_mask;     // consumer: nonzero = polling, do not signal
  std::uint32_t pending_send_size;  // producer: nonzero = blocked, signal when so many bytes are free
  std::uint32_t reserved1[12];
  std::uint32_t feature_bits;  // kFeaturePendingSendSize
  std::uint32_t reserved2[1007];
};
static_assert(kIsWire<ControlPage, kPageSize>);
static_assert(offsetof(ControlPage, read_index) == 4 && offsetof(ControlPage, interrupt_mask) == 8 &&
              offsetof(ControlPage, pending_send_size) == 12 && offsetof(ControlPage, feature_bits) == 64);

inline constexpr std::uint32_t kFeaturePendingSendSize = 1u << 0;

enum class PacketType : std::uint16_t {
  kInband = 6,
  kTransferPages = 7,
  kGpaDirect = 9,
  kCompletion = 11,
};

inline constexpr std::uint16_t kFlagCompletionRequested = 1;

// First bytes of every packet in a ring. [linux: struct vmpacket_descriptor]
struct PacketDescriptor {
  PacketType type;               // values unknown to us do occur
  std::uint16_t data_offset8;    // payload start, in 8-byte units from this header
  std::uint16_t length8;         // whole packet, this header included, trailer not, in 8-byte units
  std::uint16_t flags;           // kFlagCompletionRequested
  std::uint64_t transaction_id;  // the sender's cookie: echoed, never interpreted
};
static_assert(kIsWire<PacketDescriptor, 16>);
static_assert(offsetof(PacketDescriptor, data_offset8) == 2 && offsetof(PacketDescriptor, length8) == 4 &&
              offsetof(PacketDescriptor, flags) == 6 && offsetof(PacketDescriptor, transaction_id) == 8);

inline constexpr std::uint32_t kMaxPacketSize = 0xffff * 8;  // without trailer

// Between descriptor and payload of kGpaDirect; `range_count` GpaRanges with their page numbers follow.
// [linux: struct vmbus_channel_packet_multipage_buffer]
struct GpaDirectHeader {
  std::uint32_t reserved;  // may hold garbage
  std::uint32_t range_count;
};
static_assert(kIsWire<GpaDirectHeader, 8>);

struct GpaRange {  // followed by ceil((byte_offset + byte_count) / 4096) u64 page numbers
  std::uint32_t byte_count;
  std::uint32_t byte_offset;  // into the first page
};
static_assert(kIsWire<GpaRange, 8>);

// Between descriptor and payload of kTransferPages; `range_count` TransferPageRanges follow.
// [linux: struct vmtransfer_page_packet_header]
struct TransferPageHeader {
  std::uint16_t transfer_page_set_id;
  std::uint8_t sender_owns_set;
  std::uint8_t reserved;
  std::uint32_t range_count;
};
static_assert(kIsWire<TransferPageHeader, 8>);

struct TransferPageRange {
  std::uint32_t byte_count;
  std::uint32_t byte_offset;  // into the receive buffer
};
static_assert(kIsWire<TransferPageRange, 8>);

}  // namespace vmbusd::ring
