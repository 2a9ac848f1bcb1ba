#include "devices/integration/session.h"

#include <array>
#include <functional>

#include "tests/catch.h"
#include "tests/devices/integration/answers.h"

namespace vmbusd::integration {
namespace {

constexpr std::array<Version, 3> kVersions = {{{1, 0}, {3, 0}, {4, 0}}};
constexpr std::array<std::byte, 5> kQuestion = {std::byte{1}, std::byte{2}, std::byte{3}};

Session negotiating(Bytes& question) {
  Session session(MessageType::kTimeSync, kVersions);
  question = copied(session.negotiate());
  return session;
}

Session ready() {
  Bytes question;
  Session session = negotiating(question);
  REQUIRE(session.receive(chosen(question, {3, 0}, {4, 0})).has_value());
  REQUIRE(session.state() == Session::State::kReady);
  return session;
}

// The worked example of time synchronisation's negotiation. [linux: hv_util.c, timesync_onchannelcallback]
TEST_CASE("the negotiation offers both frameworks and all versions", "[integration]") {
  constexpr std::array<std::uint8_t, 56> kExpected = {
      1, 0, 0, 0, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x1c, 0, 0, 0, 0, 0, 1, 3, 0, 0,
      2, 0, 3, 0, 0,    0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0,    0, 3, 0, 0, 0, 4, 0, 0, 0};
  Bytes question;
  const Session session = negotiating(question);
  CHECK(session.outstanding());
  REQUIRE(question.size() == kExpected.size());
  CHECK(std::memcmp(question.data(), kExpected.data(), kExpected.size()) == 0);
}

TEST_CASE("the guest's choice decides", "[integration]") {
  struct Case {
    const char* rule;
    std::function<void(Bytes& answer)> change;
    bool accepted;
  };
  constexpr std::size_t kChoice = kHeaderBytes + sizeof(NegotiateBody);
  const Case kCases[] = {
      {"what Linux chooses", [](Bytes&) {}, true},
      {"the oldest",
       [](Bytes& a) {
         at<Version>(a, kChoice) = {1, 0};
         at<Version>(a, kChoice + 4) = {1, 0};
       },
       true},
      {"nothing suits",
       [](Bytes& a) {
         at<NegotiateBody>(a, kHeaderBytes) = {0, 0, 0};
       },
       false},
      {"a framework that was not offered",
       [](Bytes& a) {
         at<Version>(a, kChoice) = {2, 0};
       },
       false},
      {"a version that was not offered",
       [](Bytes& a) {
         at<Version>(a, kChoice + 4) = {3, 1};
       },
       false},
      {"more than one choice",
       [](Bytes& a) {
         at<NegotiateBody>(a, kHeaderBytes) = {2, 3, 0};
       },
       false},
      {"counts beyond the message",
       [](Bytes& a) {
         at<NegotiateBody>(a, kHeaderBytes) = {0xffff, 1, 0};
       },
       false},
      {"a body that ends before the choice", [](Bytes& a) { header_of(a).body_size = 0xf; }, false},
      {"a message that ends before the choice", [](Bytes& a) { a.resize(kChoice + 4); }, false},
      {"no body", [](Bytes& a) { a.resize(kHeaderBytes); }, false},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Bytes question;
      Session session = negotiating(question);
      Bytes answer = chosen(question, {3, 0}, {4, 0});
      c.change(answer);
      const auto received = session.receive(answer);
      REQUIRE(received.has_value());
      CHECK_FALSE(received->has_value());
      CHECK(session.state() == (c.accepted ? Session::State::kReady : Session::State::kRefused));
      CHECK_FALSE(session.outstanding());
    }
  }
}

TEST_CASE("questions carry the versions that were agreed on", "[integration]") {
  Session session = ready();
  Bytes question = copied(session.request(kQuestion));
  CHECK(question.size() == kHeaderBytes + kQuestion.size());
  CHECK(at<PipeHeader>(question, 0).size == sizeof(MessageHeader) + kQuestion.size());
  const MessageHeader& header = header_of(question);
  CHECK(header.framework == Version{3, 0});
  CHECK(header.message == Version{4, 0});
  CHECK(header.type == MessageType::kTimeSync);
  CHECK(header.body_size == kQuestion.size());
  CHECK(header.flags == (kFlagTransaction | kFlagRequest));
  const std::uint8_t first_id = header.transaction_id;

  // The ring pads what the guest sends to 8 bytes.
  Bytes answer = echoed(question, kStatusFail);
  answer.resize(40);
  const auto received = session.receive(answer);
  REQUIRE((received.has_value() && received->has_value()));
  CHECK((*received)->status == kStatusFail);
  CHECK((*received)->body.size() == kQuestion.size());
  CHECK((*received)->body[2] == std::byte{3});
  question = copied(session.request(kQuestion));
  CHECK(header_of(question).transaction_id == first_id + 1);
}

TEST_CASE("what answers nothing has no effect", "[integration]") {
  struct Case {
    const char* rule;
    std::function<void(Bytes& answer)> change;
  };
  const Case kCases[] = {
      {"nothing at all", [](Bytes& a) { a.clear(); }},
      {"a pipe header alone", [](Bytes& a) { a.resize(sizeof(PipeHeader)); }},
      {"a byte less than its headers", [](Bytes& a) { a.resize(kHeaderBytes - 1); }},
      {"not data of a pipe", [](Bytes& a) { at<PipeHeader>(a, 0).type = 2; }},
      {"a question", [](Bytes& a) { header_of(a).flags = kFlagTransaction | kFlagRequest; }},
      {"an older transaction", [](Bytes& a) { --header_of(a).transaction_id; }},
      {"another component's", [](Bytes& a) { header_of(a).type = MessageType::kHeartbeat; }},
      {"a negotiation that is over", [](Bytes& a) { header_of(a).type = MessageType::kNegotiate; }},
  };
  for (const Case& c : kCases) {
    DYNAMIC_SECTION(c.rule) {
      Session session = ready();
      const Bytes right = echoed(session.request(kQuestion));
      Bytes wrong = right;
      c.change(wrong);
      const auto received = session.receive(wrong);
      REQUIRE_FALSE(received.has_value());
      CHECK(received.error().code == Errc::kBadMessage);
      CHECK(session.outstanding());
      CHECK(session.receive(right).has_value());
      // Nor does the answer a second time.
      CHECK_FALSE(session.receive(right).has_value());
    }
  }
}

}  // namespace
}  // namespace vmbusd::integration
