#include "devices/channel.h"

#include <algorithm>
#include <utility>

#include "base/assert.h"
#include "base/probes.h"

namespace vmbusd::devices {

namespace {
constexpr std::chrono::milliseconds kSpacePollInterval{10};
}  // namespace

Channel::Channel(Config config, partition::Partition& partition, io::Worker& worker,
                 ring::RingMemory incoming, ring::RingMemory outgoing,
                 std::unique_ptr<ChannelHandler> handler, UniqueFd doorbell,
                 std::shared_ptr<RecoveryRegion> region)
    : config_(std::move(config)),
      partition_(partition),
      worker_(worker),
      incoming_(std::move(incoming)),
      outgoing_(std::move(outgoing), this),
      handler_(std::move(handler)),
      doorbell_(std::move(doorbell)),
      log_(config_.name),
      region_(std::move(region)),
      record_(*reinterpret_cast<Record*>(region_->bytes().data())) {}

Channel::~Channel() {
  VMBUSD_ASSERT(state_ == State::kNew || state_ == State::kStopped);
  VMBUSD_ASSERT(in_flight_ == 0);
  end_change();
}

Result<void> Channel::start() {
  VMBUSD_CHECK(incoming_.attach());
  VMBUSD_CHECK(outgoing_.attach());
  VMBUSD_CHECK(take_up_record());
  state_ = State::kRunning;
  if (config_.monitor) config_.monitor->open();
  handler_->start(*this);
  doorbell_watch_.start(worker_, doorbell_.get(), [this] {
    VMBUSD_PROBE(doorbell, this);
    stats_.doorbells.fetch_add(1, std::memory_order_relaxed);
    if (state_ == State::kRunning) activate();
  });
  if (config_.recovered) {
    VMBUSD_CHECK(handler_->recover());
    // What the dead process wanted to signal, or had and never wrote.
    signal_regardless();
  }
  // The guest may have filled its ring before the doorbell was attached.
  activate();
  return {};
}

void Channel::stop(std::function<void()> stopped) {
  VMBUSD_ASSERT(state_ != State::kStopping && state_ != State::kStopped);
  stopped_ = std::move(stopped);
  const bool serving = state_ == State::kRunning || state_ == State::kPaused;
  if (config_.monitor && state_ != State::kNew) config_.monitor->close();
  state_ = State::kStopping;
  rest();
  if (serving) handler_->stop();
  if (doorbell_watch_.active()) {
    doorbell_watch_.stop([this] { settle(); });
  }
  settle();
}

void Channel::when_idle(std::function<void()> idle) {
  waiting_idle_.push_back(std::move(idle));
  settle();
}

void Channel::pause(std::function<void()> paused) {
  if (state_ == State::kRunning) {
    state_ = State::kPaused;
    rest();
    handler_->pause();
  }
  when_idle(std::move(paused));
}

void Channel::resume() {
  if (state_ != State::kPaused) return;
  state_ = State::kRunning;
  handler_->resume();
  activate();
}

void Channel::retarget(std::uint32_t vp) {
  config_.target_vp = vp;
  // The old VP may have been told of packets that its handler has not seen; a signal too many does no harm.
  if (!stopping()) signal_guest();
}

void Channel::end_op() {
  VMBUSD_ASSERT(in_flight_ > 0);
  --in_flight_;
  if (state_ == State::kRunning) {
    activate();
  } else {
    settle();
  }
}

ChannelStatus Channel::status() const {
  ChannelStatus status;
  status.sub_channel_index = config_.sub_channel_index;
  status.relid = config_.relid;
  switch (state_) {
    case State::kNew:
      status.state = "opening";
      break;
    case State::kRunning:
      status.state = "running";
      break;
    case State::kPaused:
      status.state = "paused";
      break;
    case State::kBroken:
      status.state = "broken";
      break;
    case State::kStopping:
    case State::kStopped:
      status.state = "closing";
      break;
  }
  status.target_vp = config_.target_vp;
  status.in_flight = in_flight_;
  status.incoming = incoming_.look();
  status.outgoing = outgoing_.look();
  status.doorbells = stats_.doorbells.load(std::memory_order_relaxed);
  status.interrupts = stats_.interrupts.load(std::memory_order_relaxed);
  status.interrupts_saved = stats_.interrupts_saved.load(std::memory_order_relaxed);
  status.io = io_counters_;
  return status;
}

bool Channel::poll() noexcept {
  if (state_ != State::kRunning) return false;
  stalled_ = false;
  const Result<bool> worked = handler_->service(kServiceBudget);
  if (!worked) {
    fail(worked.error());
    return false;
  }
  // The room first: a packet that is answered must not be found in the ring by a process that takes this up.
  const bool made_room = release_incoming();
  const bool room_wanted = std::exchange(room_wanted_, false) || made_room;
  const Result<bool> published = outgoing_.commit();
  if (!published) {
    fail(published.error());
    return false;
  }
  count_commit();
  handler_->published();
  if (changing_ && handler_->record_change()) [[unlikely]] {
    end_change();
  }
  // Both directions share the guest's one interrupt.
  if (*published || room_wanted) signal_guest();
  return *worked;
}

void Channel::before_publishing() {
  if (release_incoming()) room_wanted_ = true;
}

void Channel::published() {
  count_commit();
}

Result<void> Channel::take_up_record() {
  const std::uint32_t read_index = incoming_.read_position();
  if (config_.recovered) {
    if (record_.read_index != read_index) ++record_.counts.releases;
    if (record_.write_index != outgoing_.write_position()) ++record_.counts.commits;
    const std::uint32_t written = record_.next_write_index;
    if (record_.next_read_index == read_index && written != outgoing_.write_position()) {
      VMBUSD_CHECK(outgoing_.take_written(written));
      VMBUSD_CHECK(outgoing_.commit());
      ++record_.counts.commits;
    }
  }
  record_.read_index = record_.next_read_index = read_index;
  record_.write_index = record_.next_write_index = outgoing_.write_position();
  return {};
}

std::shared_ptr<const vmbus::Gpadl> Channel::recovered_gpadl(std::uint32_t id) const {
  const auto found = std::find_if(config_.gpadls.begin(), config_.gpadls.end(),
                                  [id](const auto& gpadl) { return gpadl->id == id; });
  return found == config_.gpadls.end() ? nullptr : *found;
}

// Fences for the compiler only: see Record.
bool Channel::release_incoming() {
  record_.next_read_index = incoming_.read_position();
  std::atomic_signal_fence(std::memory_order_seq_cst);
  record_.next_write_index = outgoing_.write_position();
  std::atomic_signal_fence(std::memory_order_seq_cst);
  const bool wanted = incoming_.release();
  if (record_.read_index != incoming_.read_position()) {
    ++record_.counts.releases;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    record_.read_index = incoming_.read_position();
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
  return wanted;
}

void Channel::count_commit() {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (record_.write_index != outgoing_.write_position()) {
    ++record_.counts.commits;
    std::atomic_signal_fence(std::memory_order_seq_cst);
    record_.write_index = outgoing_.write_position();
  }
}

void Channel::begin_change() {
  if (!changing_ && config_.recovery != nullptr) config_.recovery->enter();
  changing_ = true;
}

void Channel::end_change() {
  if (std::exchange(changing_, false) && config_.recovery != nullptr) config_.recovery->leave();
}

bool Channel::prepare_sleep() noexcept {
  if (state_ != State::kRunning) return true;
  // Stalled: stays masked, a signal for more packets would be in vain. end_op(), or the guest's signal for
  // room in the outgoing ring, which no mask holds back, makes it active again.
  const bool sleeps = (stalled_ && (in_flight_ > 0 || outgoing_.space_armed())) || incoming_.unmask();
  if (!sleeps) return false;
  if (outgoing_.space_armed()) worker_.arm(space_timer_, worker_.now() + kSpacePollInterval);
  if (config_.monitor) worker_.arm(monitor_timer_, worker_.now() + config_.monitor->interval());
  return true;
}

void Channel::woken() noexcept {
  if (config_.monitor) worker_.disarm(monitor_timer_);
  if (state_ == State::kRunning) incoming_.mask();
}

void Channel::look_at_monitor() {
  if (config_.monitor->take()) {
    stats_.doorbells.fetch_add(1, std::memory_order_relaxed);
    activate();
  } else {
    worker_.arm(monitor_timer_, worker_.now() + config_.monitor->interval());
  }
}

void Channel::rest() {
  worker_.deactivate(*this);
  worker_.disarm(space_timer_);
  worker_.disarm(monitor_timer_);
}

void Channel::fail(const Error& error) {
  log_.guest("channel {} stopped serving: {}; the guest must close it", config_.relid, describe(error));
  state_ = State::kBroken;
  rest();
  handler_->stop();
}

void Channel::signal_guest() {
  if (config_.target_vp == vmbus::kNoInterruptVp) return;
  std::uint32_t flag = config_.event_flag;
  if (config_.interrupt_page != nullptr) {
    // The bit says which channel, event flag 0 that there is one. [linux: vmbus_chan_sched before 2.4]
    std::atomic_ref<std::uint32_t>(config_.interrupt_page[flag / 32])
        .fetch_or(1u << (flag % 32), std::memory_order_seq_cst);
    flag = 0;
  }
  const std::optional<int> eventfd = partition_.set_event_flag(config_.target_vp, flag);
  if (eventfd) {
    VMBUSD_PROBE(interrupt, this);
    worker_.signal(*eventfd);
    stats_.interrupts.fetch_add(1, std::memory_order_relaxed);
  } else {
    stats_.interrupts_saved.fetch_add(1, std::memory_order_relaxed);
  }
}

void Channel::signal_regardless() {
  signal_guest();
  if (config_.target_vp == vmbus::kNoInterruptVp) return;
  const UniqueFd& interrupt = partition_.vp(config_.target_vp).interrupt;
  if (interrupt) worker_.signal(interrupt.get());
}

void Channel::settle() {
  if (in_flight_ != 0) return;
  // Posted, not called: whoever ended the last operation is still on the stack, and the channel may be
  // destroyed by what follows.
  for (std::function<void()>& waiting : std::exchange(waiting_idle_, {})) worker_.post(std::move(waiting));
  if (state_ == State::kStopping && !doorbell_watch_.active()) {
    state_ = State::kStopped;
    worker_.post(std::exchange(stopped_, nullptr));
  }
}

}  // namespace vmbusd::devices
