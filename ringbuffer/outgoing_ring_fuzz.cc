// Fuzz target of the outgoing ring: a guest that writes anything into the control page and the data between
// any two steps of the producer. Beside the code runs a model of what the producer knows; whatever both say
// must agree, and every packet must stand in the ring as it was given, with nothing around it touched.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "ringbuffer/outgoing_ring.h"
#include "ringbuffer/ring_fuzz_input.h"

namespace vmbusd::ring {
namespace {

using fuzz::promise;

// What the producer knows, which is all that it may decide by.
struct Model {
  std::uint32_t size = 0;
  std::uint32_t written = 0;
  std::uint32_t published = 0;
  std::uint32_t read = 0;   // as it was looked at last
  bool taken_back = false;  // the guest moved read_index backward: room that it had given is gone
  bool armed = false;
  bool due = false;

  [[nodiscard]] bool is_index(std::uint32_t value) const { return value < size && value % 8 == 0; }
  [[nodiscard]] std::uint32_t room() const { return size - 8 - (written + size - read) % size; }
  void look(std::uint32_t read_index) {
    const std::uint32_t before = room();
    read = read_index;
    taken_back = taken_back || room() < before;
  }
};

enum class Answer : std::uint8_t { kNo, kYes, kCorrupt, kLimit };
Answer answer_of(const Result<bool>& result) {
  if (result) return *result ? Answer::kYes : Answer::kNo;
  promise(result.error().code == Errc::kRingCorrupt || result.error().code == Errc::kLimit, "errors");
  return result.error().code == Errc::kLimit ? Answer::kLimit : Answer::kCorrupt;
}

// The model's half of write(), commit() and arm_space(), with the control page as it is now.
Answer expect_write(Model& model, const ControlPage& control, std::uint32_t bytes) {
  if (bytes > model.room()) {
    if (bytes > model.size - 8) return Answer::kLimit;
    if (!model.is_index(control.read_index)) return Answer::kCorrupt;
    model.look(control.read_index);
    if (bytes > model.room()) return Answer::kNo;
  }
  model.written = (model.written + bytes) % model.size;
  return Answer::kYes;
}

Answer expect_commit(Model& model, const ControlPage& control) {
  const bool due = std::exchange(model.due, false);
  const std::uint32_t before = std::exchange(model.published, model.written);
  if (before != model.written && control.interrupt_mask == 0) {
    if (control.read_index == before) return Answer::kYes;
    if (!model.is_index(control.read_index)) return Answer::kCorrupt;
  }
  return due ? Answer::kYes : Answer::kNo;
}

Answer expect_arm(Model& model, const ControlPage& control, std::uint32_t bytes) {
  const Answer committed = expect_commit(model, control);
  if (committed == Answer::kCorrupt) return committed;
  model.due = committed == Answer::kYes;
  model.armed = true;
  if (!model.is_index(control.read_index)) return Answer::kCorrupt;
  model.look(control.read_index);
  model.armed = model.room() < bytes;
  return model.armed ? Answer::kYes : Answer::kNo;
}

class Session {
 public:
  explicit Session(RingInput input) : input_(input) {}

  void run() {
    control_ = {};
    const std::uint8_t choice = input_.byte();
    const std::uint32_t pages = 1 + choice % 3;
    const bool segmented = (choice & 0x80) != 0;
    for (std::uint32_t page = 0; page < pages; ++page) {
      hosts_.push_back(&data_[((segmented ? pages - 1 - page : page) + 1) * kPageSize]);
    }
    data_.fill(std::byte{0});
    model_.size = pages * kPageSize;
    control_.read_index = input_.index(model_.size);
    control_.write_index = input_.index(model_.size);
    control_.pending_send_size = input_.half();
    OutgoingRing ring(segmented ? RingMemory::segmented(&control_, hosts_)
                                : RingMemory::plain(&control_, &data_[kPageSize], model_.size));
    const bool attached = ring.attach().has_value();
    promise(attached == (model_.is_index(control_.read_index) && model_.is_index(control_.write_index)),
            "attach");
    if (!attached) return;
    promise(control_.feature_bits == kFeaturePendingSendSize && control_.pending_send_size == 0,
            "the ring says what it can");
    model_.written = model_.published = control_.write_index;
    model_.read = control_.read_index;
    while (!input_.empty() && step(ring)) {
    }
    for (const std::size_t guard : {std::size_t{0}, std::size_t{pages + 1} * kPageSize}) {
      const auto page = std::span(data_).subspan(guard, kPageSize);
      promise(std::all_of(page.begin(), page.end(), [](std::byte byte) { return byte == std::byte{0}; }),
              "nothing is written beside the ring");
    }
  }

 private:
  // False after an error, which is final.
  bool step(OutgoingRing& ring) {
    switch (input_.byte() % 8) {
      case 0:
        control_.read_index = input_.index(model_.size);
        return true;
      case 1:
        control_.interrupt_mask = input_.byte() % 3;
        return true;
      case 2:  // the guest's reader catches up
        control_.read_index = model_.published;
        return true;
      case 3: {  // what the producer must not care about
        control_.write_index = input_.half();
        control_.feature_bits = input_.byte();
        const std::uint32_t at = input_.half() % model_.size;
        hosts_[at / kPageSize][at % kPageSize] = std::byte{input_.byte()};
        return true;
      }
      case 4: {
        const bool publishes = model_.published != model_.written;
        const Answer expected = expect_commit(model_, control_);
        const Answer answer = answer_of(ring.commit());
        promise(answer == expected, "commit");
        promise(!publishes || control_.write_index == model_.published, "write_index");
        return answer <= Answer::kYes;
      }
      case 5: {
        const std::uint32_t bytes = std::uint32_t{input_.half()} * 8 % model_.size;
        const Answer expected = expect_arm(model_, control_, bytes);
        const Answer answer = answer_of(ring.arm_space(bytes));
        promise(answer == expected, "arm_space");
        promise(answer > Answer::kYes || ring.space_armed() == model_.armed, "armed");
        promise(answer != Answer::kYes ||
                    (control_.pending_send_size >= bytes && control_.pending_send_size <= model_.size - 8 &&
                     control_.pending_send_size % 8 == 0),
                "what is asked for can come free");
        promise(answer != Answer::kNo || control_.pending_send_size == 0, "nothing is asked for in vain");
        return answer <= Answer::kYes;
      }
      case 6:
        return look(ring);
      default:
        return write(ring);
    }
  }

  bool look(OutgoingRing& ring) {
    const Result<std::uint32_t> writable = ring.writable();
    promise(writable.has_value() == model_.is_index(control_.read_index), "writable fails");
    if (!writable) return false;
    model_.look(control_.read_index);
    promise(*writable == model_.room(), "writable");
    return true;
  }

  bool write(OutgoingRing& ring) {
    std::vector<std::byte> extension(input_.byte() % 4 * 8);
    std::vector<std::byte> head(input_.byte());
    std::vector<std::byte> tail(input_.byte() % 4 == 0 ? input_.half() % (16 << 10) : 0);
    const std::uint8_t fill = input_.byte();
    std::uint8_t next = fill;
    for (std::vector<std::byte>* part : {&extension, &head, &tail}) {
      for (std::byte& byte : *part) byte = std::byte{++next};
    }
    const PacketToWrite packet = {.type = fill % 2 == 0 ? PacketType::kInband : PacketType::kCompletion,
                                  .completion_requested = fill % 3 == 0,
                                  .transaction_id = fill,
                                  .extension = extension,
                                  .payload = head,
                                  .payload_tail = tail};
    const std::uint32_t bytes = OutgoingRing::packet_size(extension.size(), head.size() + tail.size());
    const std::uint32_t begin = model_.written;
    const Model before = model_;
    const Answer expected = expect_write(model_, control_, bytes);
    const Answer answer = answer_of(ring.write(packet));
    // Room that was given may be used though the guest has changed its mind: the bytes are the guest's.
    // Whether read_index was looked at for that is not told.
    const bool may_be_blind = before.taken_back && bytes > before.room() && answer == Answer::kYes;
    if (may_be_blind) {
      model_ = before;
      model_.written = (begin + bytes) % model_.size;
    } else {
      promise(answer == expected, "write");
    }
    promise(answer > Answer::kYes || ring.write_position() == model_.written, "write position");
    if (answer == Answer::kYes) check_packet(packet, begin, bytes);
    // So both look now.
    if (may_be_blind) return look(ring);
    return answer <= Answer::kYes;
  }

  void check_packet(const PacketToWrite& packet, std::uint32_t begin, std::uint32_t bytes) const {
    const PacketDescriptor descriptor = {
        .type = packet.type,
        .data_offset8 = static_cast<std::uint16_t>(2 + packet.extension.size() / 8),
        .length8 = static_cast<std::uint16_t>((bytes - kTrailerSize) / 8),
        .flags = static_cast<std::uint16_t>(packet.completion_requested ? 1 : 0),
        .transaction_id = packet.transaction_id};
    std::vector<std::byte> expected;
    const auto add = [&](std::span<const std::byte> part) {
      expected.insert(expected.end(), part.begin(), part.end());
    };
    add(wire_bytes(descriptor));
    add(packet.extension);
    add(packet.payload);
    add(packet.payload_tail);
    expected.resize(bytes - kTrailerSize);  // the padding is zeros
    const std::uint64_t trailer = std::uint64_t{begin} << 32;
    add(wire_bytes(trailer));
    for (std::uint32_t i = 0; i < bytes; ++i) {
      const std::uint32_t at = (begin + i) % model_.size;
      promise(hosts_[at / kPageSize][at % kPageSize] == expected[i], "a packet stands as it was given");
    }
  }

  RingInput input_;
  Model model_;
  std::vector<std::byte*> hosts_;  // the ring's pages, in the ring's order
  // The ring's, and one on either side that nobody may touch.
  alignas(kPageSize) static inline std::array<std::byte, 5 * kPageSize> data_;
  alignas(kPageSize) static inline ControlPage control_;
};

}  // namespace
}  // namespace vmbusd::ring

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  vmbusd::ring::Session(vmbusd::ring::RingInput({data, size})).run();
  return 0;
}
