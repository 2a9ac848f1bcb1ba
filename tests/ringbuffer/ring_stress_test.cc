// Two threads, two small rings, random sizes and batches, and consumers that sleep whenever they may. A
// wake-up that is lost stops both sides: the sleeper's time-out is the failure. Run under ThreadSanitizer
// too: the only order between the threads is the rings' own and the doorbells'.
#include <poll.h>
#include <sys/eventfd.h>

#include <atomic>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>

#include "tests/ringbuffer/test_ring.h"

namespace vmbusd::ring {
namespace {

constexpr int kLostWakeUpMs = 20'000;  // far above any scheduling delay of a loaded machine

class Doorbell {
 public:
  Doorbell() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
  void ring() const {
    const std::uint64_t one = 1;
    VMBUSD_ASSERT(::write(fd_.get(), &one, sizeof one) == sizeof one);
  }
  // False where nobody rang in time.
  [[nodiscard]] bool wait() const {
    pollfd poll_fd = {.fd = fd_.get(), .events = POLLIN, .revents = 0};
    if (::poll(&poll_fd, 1, kLostWakeUpMs) != 1) return false;
    std::uint64_t count = 0;
    return ::read(fd_.get(), &count, sizeof count) == sizeof count;
  }

 private:
  UniqueFd fd_;
};

struct Habits {
  bool masks = true;  // sets the interrupt mask while it polls, as storvsc; else never, as hv_utils
  std::uint32_t max_payload;
  std::uint32_t max_batch;
};

// One end of a channel: consumes one ring, produces into the other, on one thread.
class Side {
 public:
  Side(const TestRing& in, const TestRing& out, const Doorbell& own, const Doorbell& peer, Habits habits,
       std::uint64_t packets, std::uint32_t seed)
      : incoming_(in.memory()),
        outgoing_(out.memory()),
        own_(own),
        peer_(peer),
        habits_(habits),
        packets_(packets),
        random_(seed) {}

  // Before the threads start, as the channel is opened.
  void open() {
    REQUIRE(incoming_.attach());
    REQUIRE(outgoing_.attach());
    draw_next();
  }

  // Until all packets went both ways; what() says what failed.
  void run(const std::atomic<bool>& give_up) {
    while (error_.empty() && (sent_ < packets_ || received_ < packets_)) {
      if (give_up.load(std::memory_order_relaxed)) return;
      const bool read = receive_batch();
      const bool wrote = send_batch();
      if (read || wrote || !error_.empty()) continue;
      dawdle();
      if (habits_.masks && !incoming_.unmask()) continue;
      if (!habits_.masks && !quiet()) continue;
      ++sleeps_;
      dawdle();
      if (!own_.wait()) error_ = "slept for ever: a wake-up was lost";
      if (habits_.masks) incoming_.mask();
    }
  }

  [[nodiscard]] const std::string& what() const { return error_; }
  [[nodiscard]] std::uint64_t sleeps() const { return sleeps_; }
  [[nodiscard]] std::uint64_t blocked() const { return blocked_; }

 private:
  // For a consumer that leaves the mask clear: look again after the release.
  bool quiet() {
    if (!mask_cleared_) {
      mask_cleared_ = incoming_.unmask();
      return false;
    }
    const auto readable = incoming_.readable();
    return readable && *readable == 0;
  }

  // 0 to `bound` - 1.
  std::uint32_t draw(std::uint32_t bound) { return static_cast<std::uint32_t>(random_() % bound); }

  // Now and then lets the other side act between two steps: where a step relies on an earlier look at shared
  // memory, it is wrong then.
  void dawdle() {
    const std::uint32_t spins = draw(8) == 0 ? draw(400) : 0;
    for (std::uint32_t i = 0; i < spins; ++i) std::atomic_signal_fence(std::memory_order_seq_cst);
    if (draw(256) == 0) std::this_thread::yield();
  }

  void draw_next() {
    next_size_ = draw(habits_.max_payload + 1);
    // Now and then what only an almost empty ring takes.
    if (draw(64) == 0) next_size_ = outgoing_.size() - 8 - 24 - draw(64);
  }

  bool receive_batch() {
    const std::uint32_t batch = 1 + draw(habits_.max_batch);
    std::uint32_t count = 0;
    for (; count < batch; ++count) {
      const auto packet = incoming_.next();
      if (!packet) return fail_with(packet.error().text);
      if (!*packet) break;
      buffer_.resize((*packet)->payload_size);
      incoming_.read_payload(**packet, 0, buffer_);
      if ((*packet)->transaction_id != received_) return fail_with("packets lost or out of order");
      for (std::size_t i = 0; i < buffer_.size(); ++i) {
        const std::byte expected = content(received_, i);
        // The last word's padding is zero.
        if (buffer_[i] != expected && !(i + 8 > buffer_.size() && buffer_[i] == std::byte{0})) {
          return fail_with("packet content is wrong");
        }
      }
      ++received_;
    }
    dawdle();
    if (incoming_.release()) peer_.ring();
    return count != 0;
  }

  bool send_batch() {
    const std::uint32_t batch = 1 + draw(habits_.max_batch);
    std::uint32_t count = 0;
    for (; count < batch && sent_ < packets_; ++count) {
      buffer_.resize(next_size_);
      for (std::size_t i = 0; i < buffer_.size(); ++i) buffer_[i] = content(sent_, i);
      const std::span<const std::byte> all(buffer_);
      const std::size_t head = next_size_ == 0 ? 0 : draw(next_size_);
      const auto written = outgoing_.write(
          {.transaction_id = sent_, .payload = all.first(head), .payload_tail = all.subspan(head)});
      if (!written) return fail_with(written.error().text);
      if (!*written) {
        if (outgoing_.space_armed()) break;  // still waiting
        const auto armed = outgoing_.arm_space(OutgoingRing::packet_size(0, next_size_));
        if (!armed) return fail_with(armed.error().text);
        if (!*armed) continue;
        ++blocked_;
        break;
      }
      if (outgoing_.space_armed()) outgoing_.clear_space();
      ++sent_;
      draw_next();
    }
    dawdle();
    const auto signal = outgoing_.commit();
    if (!signal) return fail_with(signal.error().text);
    if (*signal) peer_.ring();
    return count != 0;
  }

  static std::byte content(std::uint64_t packet, std::size_t at) {
    return static_cast<std::byte>(packet * 31 + at * 7 + 1);
  }

  bool fail_with(const char* what) {
    error_ = what;
    return false;
  }

  IncomingRing incoming_;
  OutgoingRing outgoing_;
  const Doorbell& own_;
  const Doorbell& peer_;
  Habits habits_;
  std::uint64_t packets_;
  std::mt19937 random_;
  std::uint32_t next_size_ = 0;
  std::uint64_t sent_ = 0;
  std::uint64_t received_ = 0;
  std::uint64_t sleeps_ = 0;
  std::uint64_t blocked_ = 0;
  bool mask_cleared_ = false;
  std::vector<std::byte> buffer_;
  std::string error_;
};

std::uint32_t seed_of_run() {
  const char* const text = std::getenv("VMBUSD_TEST_SEED");
  return text != nullptr ? static_cast<std::uint32_t>(std::strtoul(text, nullptr, 0))
                         : std::random_device()();
}

struct StressCase {
  const char* rule;
  Shape shape;
  Habits host;
  Habits guest;
};
constexpr StressCase kStressCases[] = {
    {"both mask, small packets", Shape::kPlain, {true, 64, 4}, {true, 64, 4}},
    {"both mask, packets of half a ring", Shape::kMirrored, {true, 2000, 4}, {true, 2000, 4}},
    {"guest never masks", Shape::kMirroredScattered, {true, 300, 16}, {false, 300, 1}},
    {"nobody masks", Shape::kSegmented, {false, 200, 1}, {false, 200, 8}},
    {"fast and slow", Shape::kPlain, {true, 500, 64}, {true, 100, 1}},
};

TEST_CASE("no packet and no wake-up is lost between two threads", "[ringbuffer][stress]") {
  const std::uint32_t seed = seed_of_run();
  constexpr std::uint64_t kPackets = 30'000;
  for (const StressCase& c : kStressCases) {
    DYNAMIC_SECTION(c.rule) {
      UNSCOPED_INFO("VMBUSD_TEST_SEED=" << seed);
      const TestRing to_guest(c.shape, 1);
      const TestRing to_host(c.shape, 1);
      const Doorbell host_bell;
      const Doorbell guest_bell;
      Side host(to_host, to_guest, host_bell, guest_bell, c.host, kPackets, seed);
      Side guest(to_guest, to_host, guest_bell, host_bell, c.guest, kPackets, seed + 1);
      host.open();
      guest.open();
      std::atomic<bool> give_up{false};
      const auto run = [&give_up](Side& side) {
        side.run(give_up);
        if (!side.what().empty()) give_up.store(true, std::memory_order_relaxed);
      };
      std::thread guest_thread([&] { run(guest); });
      run(host);
      guest_thread.join();
      CHECK(host.what() == "");
      CHECK(guest.what() == "");
      // Otherwise nothing of the signalling was tried.
      CHECK(host.sleeps() + guest.sleeps() > 0);
      CHECK(host.blocked() + guest.blocked() > 0);
    }
  }
}

}  // namespace
}  // namespace vmbusd::ring
