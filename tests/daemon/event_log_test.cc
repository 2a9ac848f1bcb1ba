#include "daemon/event_log.h"

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "tests/catch.h"

namespace vmbusd::daemon {
namespace {

using namespace std::chrono_literals;

class Host {
 public:
  void note(const std::string& text) { log.add(EventKind::kLinkSwitched, "demo", "nic0", text); }

  boost::asio::io_context context;
  EventLog log{context, 20ms};
};

TEST_CASE("events are numbered and told from any number on", "[daemon][events]") {
  Host host;
  CHECK(host.log.after(0).last == 0);
  host.note("down");
  host.note("up");
  const EventLog::Page all = host.log.after(0);
  REQUIRE(all.events.size() == 2);
  CHECK(all.events[0].number == 1);
  CHECK(all.events[1].text == "up");
  CHECK(all.last == 2);
  CHECK(all.missed == 0);
  CHECK(host.log.after(1).events.size() == 1);
  CHECK(host.log.after(2).events.empty());
  // Of a vmbusd that ran before.
  CHECK(host.log.after(3).events.size() == 2);
}

TEST_CASE("what a slow reader has missed is counted, and not kept for it", "[daemon][events]") {
  Host host;
  for (std::size_t i = 0; i < EventLog::kEventsMax + 10; ++i) host.note("down");
  const EventLog::Page page = host.log.after(4);
  CHECK(page.events.size() == EventLog::kEventsMax);
  CHECK(page.events.front().number == 11);
  CHECK(page.missed == 6);
  CHECK(host.log.after(10).missed == 0);
}

TEST_CASE("who waits is told of what comes", "[daemon][events]") {
  Host host;
  std::optional<EventLog::Page> told;
  const auto tell = [&](const EventLog::Page& page) { told = page; };
  REQUIRE(host.log.wait_for(0, tell));
  host.note("down");
  host.note("up");
  CHECK_FALSE(told);
  host.context.run();
  REQUIRE(told);
  CHECK(told->events.size() == 2);

  SECTION("at once where there is something") {
    told.reset();
    REQUIRE(host.log.wait_for(1, tell));
    REQUIRE(told);
    CHECK(told->events.size() == 1);
  }
  SECTION("of nothing after a time") {
    told.reset();
    REQUIRE(host.log.wait_for(2, tell));
    CHECK_FALSE(told);
    host.context.restart();
    host.context.run();
    REQUIRE(told);
    CHECK(told->events.empty());
    CHECK(told->last == 2);
  }
}

TEST_CASE("so many may wait and no more", "[daemon][events]") {
  Host host;
  std::size_t told = 0;
  const auto tell = [&](const EventLog::Page&) { ++told; };
  for (std::size_t i = 0; i < EventLog::kWaitersMax; ++i) REQUIRE(host.log.wait_for(0, tell));
  CHECK_FALSE(host.log.wait_for(0, tell));
  host.note("down");
  host.context.run();
  CHECK(told == EventLog::kWaitersMax);
  CHECK(host.log.wait_for(1, tell));
}

}  // namespace
}  // namespace vmbusd::daemon
