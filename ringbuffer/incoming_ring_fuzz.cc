// Fuzz target of the incoming ring and the GPA-direct list: a guest that writes anything into the control
// page and the data between any two steps of the consumer. Beside the code runs a model, byte by byte over a
// flat copy of the ring; whatever both say must agree.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "ringbuffer/gpa_direct.h"
#include "ringbuffer/incoming_ring.h"
#include "ringbuffer/ring_fuzz_input.h"

namespace vmbusd::ring {
namespace {

using fuzz::promise;

constexpr std::uint32_t kMaxRanges = 8;
constexpr std::uint64_t kMaxBytes = 64 << 10;
constexpr std::size_t kMaxSegments = 16;

// The ring as a reader with all the time in the world would see it.
struct Model {
  std::vector<std::byte> bytes;
  std::uint32_t read = 0;
  std::uint32_t released = 0;
  std::uint32_t written = 0;  // as far as the consumer has looked

  [[nodiscard]] std::uint32_t size() const { return static_cast<std::uint32_t>(bytes.size()); }
  [[nodiscard]] std::vector<std::byte> copy(std::uint32_t offset, std::uint32_t count) const {
    std::vector<std::byte> out;
    for (std::uint32_t i = 0; i < count; ++i) out.push_back(bytes[(offset + i) % size()]);
    return out;
  }
  [[nodiscard]] std::uint64_t number(std::uint32_t offset, std::uint32_t count) const {
    std::uint64_t value = 0;
    for (std::uint32_t i = 0; i < count; ++i) {
      value |= std::to_integer<std::uint64_t>(bytes[(offset + i) % size()]) << 8 * i;
    }
    return value;
  }
  [[nodiscard]] bool is_index(std::uint32_t value) const { return value < size() && value % 8 == 0; }
  [[nodiscard]] std::uint32_t distance(std::uint32_t from, std::uint32_t to) const {
    return (to + size() - from) % size();
  }

  struct Outcome {
    std::optional<Errc> error{};
    bool packet = false;
    std::uint32_t end = 0;
  };
  // What next() must say.
  Outcome next(std::uint32_t write_index) {
    if (read == written) {
      if (!is_index(write_index)) return {Errc::kRingCorrupt};
      written = write_index;
      if (read == written) return {};
    }
    const std::uint64_t type = number(read, 2);
    const std::uint64_t offset = number(read + 2, 2) * 8;
    const std::uint64_t length = number(read + 4, 2) * 8;
    const std::uint64_t flags = number(read + 6, 2);
    const bool extended = type == 7 || type == 9;
    if (length + 8 > distance(read, written)) return {Errc::kBadPacket};
    if (!extended && type != 6 && type != 11) return {Errc::kBadPacket};
    if (offset < (extended ? 24u : 16u) || offset > length) return {Errc::kBadPacket};
    if (flags > 1) return {Errc::kBadPacket};
    return {.error = std::nullopt,
            .packet = true,
            .end = static_cast<std::uint32_t>((read + length + 8) % size())};
  }

  // What release() must say, `pending` and `write_index` as they are now. `read` is new.
  [[nodiscard]] bool signals(std::uint32_t pending, std::uint32_t write_index) const {
    if (read == released || pending == 0) return false;
    if (!is_index(write_index) || write_index == read) return true;
    const std::uint32_t wanted = std::min(pending, size() - 1) / 8 * 8;
    const std::uint32_t before = size() - 8 - distance(released, write_index);
    const std::uint32_t now = size() - 8 - distance(read, write_index);
    return before < wanted && now >= wanted;
  }
};

void check_packet(const IncomingRing& ring, const Model& model, std::uint32_t begin, const Packet& packet) {
  promise(packet.payload != nullptr || packet.position == begin, "a packet begins at the read position");
  promise(static_cast<std::uint64_t>(packet.type) == model.number(begin, 2), "type");
  promise(packet.transaction_id == model.number(begin + 8, 8), "transaction id");
  promise(packet.completion_requested() == (model.number(begin + 6, 2) == 1), "completion flag");
  const std::uint64_t offset = model.number(begin + 2, 2) * 8;
  promise(packet.extension_size == offset - 16, "extension size");
  promise(packet.payload_size == model.number(begin + 4, 2) * 8 - offset, "payload size");

  std::vector<std::byte> payload(packet.payload_size);
  ring.read_payload(packet, 0, payload);
  promise(payload == model.copy(begin + static_cast<std::uint32_t>(offset), packet.payload_size), "payload");
  std::vector<std::byte> extension(packet.extension_size);
  ring.read_extension(packet, 0, extension);
  promise(extension == model.copy(begin + 16, packet.extension_size), "extension");
}

void check_gpa_list(const IncomingRing& ring, const Packet& packet) {
  std::array<GpaSegment, kMaxSegments + 1> out;
  out.fill({0xdead, 0xbeef});
  const Result<GpaList> list =
      read_gpa_list(ring, packet, kMaxRanges, kMaxBytes, std::span(out).first(kMaxSegments));
  promise(out[kMaxSegments].gpa == 0xdead && out[kMaxSegments].size == 0xbeef,
          "segments stay in their array");
  if (!list) {
    promise(list.error().code == Errc::kBadPacket || list.error().code == Errc::kLimit, "GPA list errors");
    return;
  }
  promise(list->segments >= 1 && list->segments <= kMaxSegments, "number of segments");
  promise(list->total_bytes >= 1 && list->total_bytes <= kMaxBytes, "number of bytes");
  std::uint64_t total = 0;
  for (const GpaSegment& segment : std::span(out).first(list->segments)) {
    promise(segment.size != 0, "no segment is empty");
    promise(segment.gpa + segment.size > segment.gpa, "no segment wraps");
    promise((segment.gpa + segment.size - 1) / kPageSize <= kMaxPageNumber, "segments in physical memory");
    total += segment.size;
  }
  promise(total == list->total_bytes, "segments hold all bytes");
  promise(total <= std::uint64_t{packet.extension_size} / 8 * kPageSize, "no byte without a page number");
}

void run(RingInput input) {
  alignas(kPageSize) static ControlPage control;
  alignas(kPageSize) static std::array<std::byte, 3 * kPageSize> data;
  control = {};
  data.fill(std::byte{0});

  const std::uint8_t choice = input.byte();
  const std::uint32_t pages = 1 + choice % 3;
  const bool segmented = (choice & 0x80) != 0;
  std::vector<std::byte*> hosts;
  for (std::uint32_t page = 0; page < pages; ++page) {
    hosts.push_back(&data[(segmented ? pages - 1 - page : page) * kPageSize]);
  }
  Model model;
  model.bytes.resize(pages * kPageSize);
  const auto poke = [&](std::uint32_t offset, std::uint8_t value) {
    offset %= model.size();
    model.bytes[offset] = std::byte{value};
    hosts[offset / kPageSize][offset % kPageSize] = std::byte{value};
  };

  control.read_index = input.index(model.size());
  control.write_index = input.index(model.size());
  IncomingRing ring(segmented ? RingMemory::segmented(&control, hosts)
                              : RingMemory::plain(&control, data.data(), model.size()));
  const bool attached = ring.attach().has_value();
  promise(attached == (model.is_index(control.read_index) && model.is_index(control.write_index)), "attach");
  if (!attached) return;
  model.read = model.released = control.read_index;
  model.written = control.write_index;

  while (!input.empty()) {
    switch (input.byte() % 9) {
      case 0: {  // any bytes anywhere
        const std::uint32_t offset = input.half();
        for (std::uint8_t count = input.byte() % 64; count > 0; --count) poke(offset + count, input.byte());
        break;
      }
      case 1: {  // a descriptor that is nearly right, where the next packet is
        const std::array<std::uint8_t, 4> types = {6, 7, 9, 11};
        const std::uint8_t length = input.byte();
        const std::array<std::uint8_t, 8> descriptor = {types[input.byte() % 4],
                                                        0,
                                                        static_cast<std::uint8_t>(input.byte() % 16),
                                                        0,
                                                        length,
                                                        0,
                                                        static_cast<std::uint8_t>(input.byte() % 3),
                                                        0};
        for (std::uint32_t i = 0; i < 8; ++i) poke(model.read + i, descriptor[i]);
        break;
      }
      case 8: {  // a GPA-direct packet that is nearly right, published
        std::vector<std::uint64_t> words;
        const std::uint8_t ranges = input.byte() % (kMaxRanges + 2);
        words.push_back(std::uint64_t{ranges} << 32);
        for (std::uint8_t range = 0; range < ranges; ++range) {
          const std::uint64_t bytes = input.half();
          const std::uint64_t offset = input.half() % (kPageSize + 2);
          words.push_back(offset << 32 | bytes);
          const std::uint64_t first = input.byte();
          for (std::uint64_t page = 0; page < (offset + bytes + kPageSize - 1) / kPageSize; ++page) {
            words.push_back(input.byte() % 4 == 0 ? first * page * page : first + page);
          }
        }
        words.resize(words.size() + input.byte() % 3);
        const std::uint64_t offset8 = 2 + words.size();
        const std::uint64_t length8 = offset8 + input.byte() % 8;
        if (length8 * 8 + 16 > model.size()) break;
        words.insert(words.begin(), {9 | offset8 << 16 | length8 << 32 | std::uint64_t{1} << 48, 77});
        for (std::uint32_t i = 0; i < words.size() * 8; ++i) {
          poke(model.read + i, static_cast<std::uint8_t>(words[i / 8] >> i % 8 * 8));
        }
        control.write_index = static_cast<std::uint32_t>(model.read + length8 * 8 + 8) % model.size();
        break;
      }
      case 2:
        control.write_index = input.index(model.size());
        break;
      case 3:
        control.pending_send_size = input.index(model.size());
        control.read_index = input.half();  // the consumer must not care
        break;
      case 4: {
        const bool signals_expected = model.signals(control.pending_send_size, control.write_index);
        promise(ring.release() == signals_expected, "release");
        if (model.read != model.released) promise(control.read_index == model.read, "read_index");
        model.released = model.read;
        break;
      }
      case 5:
        if (model.read != model.released) break;
        promise(ring.unmask() == (control.write_index == model.read), "unmask");
        promise((control.interrupt_mask == 0) == (control.write_index == model.read), "interrupt mask");
        break;
      case 6: {
        const auto readable = ring.readable();
        promise(readable.has_value() == model.is_index(control.write_index), "readable fails");
        if (!readable) break;
        model.written = control.write_index;
        promise(*readable == model.distance(model.read, model.written), "readable");
        break;
      }
      case 7: {
        const std::uint32_t begin = model.read;
        const Model::Outcome expected = model.next(control.write_index);
        const Result<const Packet*> packet = ring.next();
        promise(packet.has_value() == !expected.error, "next fails");
        if (!packet) {
          promise(packet.error().code == *expected.error, "next's error");
          break;
        }
        promise((*packet != nullptr) == expected.packet, "next finds a packet");
        if (!expected.packet) break;
        model.read = expected.end;
        promise(ring.read_position() == model.read, "read position");
        check_packet(ring, model, begin, **packet);
        if ((*packet)->type == PacketType::kGpaDirect) check_gpa_list(ring, **packet);
        break;
      }
    }
  }
}

}  // namespace
}  // namespace vmbusd::ring

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  vmbusd::ring::run(vmbusd::ring::RingInput({data, size}));
  return 0;
}
