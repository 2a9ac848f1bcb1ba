#include "daemon/event_log.h"

#include <algorithm>
#include <boost/asio/post.hpp>
#include <utility>

namespace vmbusd::daemon {

void EventLog::add(EventKind kind, std::string partition, std::string device, std::string text) {
  events_.push_back({++last_, std::chrono::system_clock::now(), kind, std::move(partition), std::move(device),
                     std::move(text)});
  if (events_.size() > kEventsMax) events_.pop_front();
  if (waiters_.empty() || std::exchange(answering_, true)) return;
  // What happens at once is told at once, and nobody who notes an event is called back in the middle of it.
  boost::asio::post(context_, [this] { answer_all(); });
}

EventLog::Page EventLog::after(std::uint64_t number) const {
  Page page;
  page.last = last_;
  if (number > last_) number = 0;
  const std::uint64_t dropped = last_ - events_.size();
  page.missed = number < dropped ? dropped - number : 0;
  const auto first = std::find_if(events_.begin(), events_.end(),
                                  [number](const Event& event) { return event.number > number; });
  page.events.assign(first, events_.end());
  return page;
}

bool EventLog::wait_for(std::uint64_t number, std::function<void(const Page&)> done) {
  const Page page = after(number);
  if (!page.events.empty()) {
    done(page);
    return true;
  }
  if (waiters_.size() >= kWaitersMax) return false;
  const std::uint64_t id = ++waiter_id_;
  Waiter& waiter = waiters_.emplace(id, Waiter{number, std::move(done), boost::asio::steady_timer(context_)})
                       .first->second;
  waiter.timer.expires_after(wait_time_);
  waiter.timer.async_wait([this, id](boost::system::error_code) {
    // A timer that has run out is called back even if it is cancelled then, so it is the list that counts.
    const auto late = waiters_.extract(id);
    if (!late.empty()) late.mapped().done(after(late.mapped().number));
  });
  return true;
}

void EventLog::answer_all() {
  answering_ = false;
  for (const auto& [id, waiter] : std::exchange(waiters_, {})) waiter.done(after(waiter.number));
}

}  // namespace vmbusd::daemon
