// A guest's answers to every component: right ones, wrong ones and what was never asked for.
//
// Input: component u8, [action u8, argument u8, length u16, bytes]*
#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/assert.h"
#include "devices/integration/heartbeat.h"
#include "devices/integration/kvp.h"
#include "devices/integration/session.h"
#include "devices/integration/shutdown.h"
#include "devices/integration/time_sync.h"
#include "devices/integration/utf16.h"
#include "devices/integration/vss.h"
#include "tests/netvsp/fuzz_input.h"

namespace vmbusd::integration {
namespace {

constexpr std::size_t kActionsMax = 256;

class Run {
 public:
  explicit Run(std::uint8_t which) {
    switch (which % kParts) {
      case 0:
        make<Heartbeat>();
        break;
      case 1:
        shutdown_ = make<Shutdown>();
        break;
      case 2:
        kvp_ = make<Kvp>();
        break;
      case 3:
        vss_ = make<Vss>();
        break;
      default:
        make<TimeSync>();
        break;
    }
    sent_ = copy(session_->negotiate());
  }
  ~Run() {
    component_->closed();
    VMBUSD_ASSERT(asked_ == told_);
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  void act(netvsp::FuzzInput& input) {
    const auto action = input.take<std::uint8_t>();
    const auto argument = input.take<std::uint8_t>();
    const std::vector<std::byte> bytes = input.bytes(input.take<std::uint16_t>() % (kMessageBytesMax + 1));
    switch (action % 5) {
      case 0:
        receive(bytes);
        break;
      case 1:
        receive(answer_with(bytes));
        break;
      case 2:
        receive(negotiated());
        break;
      case 3:
        now_ += std::chrono::milliseconds(100 * argument);
        break;
      default:
        request(argument, bytes);
        break;
    }
    send();
    check_board();
  }

 private:
  template <typename T>
  T* make() {
    auto made = std::make_unique<T>(board_, log_);
    T* const component = made.get();
    component_ = std::move(made);
    session_.emplace(T::kKind.type, T::kKind.versions);
    return component;
  }
  static std::vector<std::byte> copy(std::span<const std::byte> bytes) {
    return {bytes.begin(), bytes.end()};
  }

  // As a guest answers: the headers that were sent, the body at will.
  std::vector<std::byte> answer_with(const std::vector<std::byte>& body) {
    std::vector<std::byte> answer = sent_;
    answer.resize(std::min(kHeaderBytes + body.size(), kMessageBytesMax));
    std::copy_n(body.begin(), answer.size() - kHeaderBytes, answer.begin() + kHeaderBytes);
    MessageHeader header{};
    VMBUSD_ASSERT(read_wire(std::span<const std::byte>(answer).subspan(sizeof(PipeHeader)), header));
    header.flags = kFlagTransaction | kFlagResponse;
    header.body_size = static_cast<std::uint16_t>(body.size());
    std::memcpy(answer.data() + sizeof(PipeHeader), &header, sizeof header);
    return answer;
  }
  std::vector<std::byte> negotiated() {
    const struct {
      NegotiateBody counts;
      Version framework;
      Version message;
    } choice = {{1, 1, 0}, {3, 0}, {static_cast<std::uint16_t>(vss_ != nullptr ? 5 : 3), 0}};
    const auto* const begin = reinterpret_cast<const std::byte*>(&choice);
    return answer_with({begin, begin + sizeof choice});
  }

  void receive(const std::vector<std::byte>& message) {
    const Session::State before = session_->state();
    const bool was_outstanding = session_->outstanding();
    const auto answer = session_->receive(message);
    if (!answer) {
      VMBUSD_ASSERT(session_->state() == before && session_->outstanding() == was_outstanding);
      return;
    }
    VMBUSD_ASSERT(was_outstanding && !session_->outstanding());
    if (*answer) {
      VMBUSD_ASSERT(before == Session::State::kReady);
      VMBUSD_ASSERT((*answer)->body.size() <= message.size() - kHeaderBytes);
      component_->answered((*answer)->status, (*answer)->body, now_);
    } else if (session_->state() == Session::State::kReady) {
      VMBUSD_ASSERT(before == Session::State::kNegotiating);
      component_->ready(session_->version(), now_);
    }
  }

  void send() {
    if (session_->state() != Session::State::kReady) return;
    component_->tick(now_);
    if (session_->outstanding()) return;
    const auto body = component_->next(now_);
    if (body.empty()) return;
    VMBUSD_ASSERT(body.size() <= kBodyBytesMax);
    sent_ = copy(session_->request(body));
  }

  void request(std::uint8_t argument, const std::vector<std::byte>& bytes) {
    const auto done = [this](const std::string&) { ++told_; };
    const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (shutdown_ != nullptr) {
      ++asked_;
      shutdown_->request(static_cast<ShutdownAction>(argument % 3), now_, done);
    } else if (kvp_ != nullptr) {
      ++asked_;
      kvp_->write(text, argument % 2 == 0 ? std::optional(text) : std::nullopt, now_, done);
    } else if (vss_ != nullptr) {
      ++asked_;
      if (argument % 2 == 0) {
        vss_->freeze(std::chrono::seconds(1 + argument), now_, done);
      } else {
        vss_->thaw(now_, done);
      }
    }
  }

  void check_board() const {
    const Status status = board_.get();
    VMBUSD_ASSERT(status.facts.size() <= Kvp::kEntriesMax && status.keys.size() <= Kvp::kEntriesMax);
    for (const auto* const pool : {&status.facts, &status.keys}) {
      for (const KeyValue& entry : *pool) {
        VMBUSD_ASSERT(entry.key.size() <= 768 && entry.value.size() <= 3072);
        // What was read can be written again, and comes back, where its field was not full.
        std::array<std::uint8_t, sizeof(KvpValue::value)> field{};
        const auto size = write_field(entry.value, field);
        VMBUSD_ASSERT(size || entry.value.size() >= field.size() / 2);
        VMBUSD_ASSERT(!size || text_of_field(field, *size) == entry.value);
      }
    }
    // A guest that is frozen is thawed some time.
    VMBUSD_ASSERT(status.freeze == FreezeState::kThawed || session_->outstanding() ||
                  component_->due() != kNever);
  }

  StatusBoard board_;
  LogScope log_{"fuzz"};
  std::unique_ptr<Component> component_;
  // The component, where it is one of these.
  Shutdown* shutdown_ = nullptr;
  Kvp* kvp_ = nullptr;
  Vss* vss_ = nullptr;
  std::optional<Session> session_;
  TimePoint now_{std::chrono::hours(1)};
  std::vector<std::byte> sent_;  // last
  int asked_ = 0;
  int told_ = 0;
};

}  // namespace
}  // namespace vmbusd::integration

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmbusd;
  static const bool quiet = [] {
    log_set_level(LogLevel::kError);
    return true;
  }();
  static_cast<void>(quiet);
  netvsp::FuzzInput input(data, size);
  integration::Run run(input.take<std::uint8_t>());
  for (std::size_t i = 0; i < integration::kActionsMax && !input.empty(); ++i) run.act(input);
  return 0;
}
