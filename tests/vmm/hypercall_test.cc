#include "vmm/hypercall.h"

#include <cstring>

#include "tests/catch.h"
#include "vmm/memory_map.h"

namespace vmbusd::vmm {

namespace {

constexpr std::uint64_t kPost = 0x5c;
constexpr std::uint64_t kSignal = 0x5d;
constexpr std::uint64_t kInput = 0x10000;

struct HypercallCase {
  const char* rule;
  HypercallExit exit;
  std::uint32_t connection_id;
  std::uint32_t type;
  std::uint32_t payload_size;
  std::uint16_t status;  // kHvSuccess: forwarded
};
constexpr HypercallCase kHypercallCases[] = {
    {"a VMBus message", {kPost, kInput}, 1, 1, 16, kHvSuccess},
    {"the largest payload", {kPost, kInput}, 1, 1, 240, kHvSuccess},
    {"no payload", {kPost, kInput}, 4, 1, 0, kHvSuccess},
    {"payload one byte too long", {kPost, kInput}, 1, 1, 241, kHvInvalidParameter},
    {"payload size with all bits", {kPost, kInput}, 1, 1, 0xffffffff, kHvInvalidParameter},
    {"type of an empty slot", {kPost, kInput}, 1, 0, 16, kHvInvalidParameter},
    {"type of the hypervisor's own", {kPost, kInput}, 1, 0x80000010, 16, kHvInvalidParameter},
    {"reserved bits of the connection id", {kPost, kInput}, 0x01000001, 1, 16, kHvInvalidConnectionId},
    {"misaligned input", {kPost, kInput + 4}, 1, 1, 16, kHvInvalidAlignment},
    {"input at a page's end", {kPost, kInput + 4096 - 256}, 1, 1, 16, kHvSuccess},
    {"input over a page's end", {kPost, kInput + 4096 - 248}, 1, 1, 16, kHvInvalidAlignment},
    {"input outside of memory", {kPost, kHoleGpa}, 1, 1, 16, kHvInvalidParameter},
    {"input at the end of all addresses", {kPost, ~std::uint64_t{0xff}}, 1, 1, 16, kHvInvalidParameter},
    {"fast form", {kPost | 1 << 16, kInput}, 1, 1, 16, kHvInvalidHypercallInput},
    {"repeat count", {kPost | 1ull << 32, kInput}, 1, 1, 16, kHvInvalidHypercallInput},
    {"variable header", {kPost | 1ull << 17, kInput}, 1, 1, 16, kHvInvalidHypercallInput},
    {"fast signal without doorbell", {kSignal | 1 << 16, 0x2001}, 1, 1, 16, kHvInvalidConnectionId},
    {"slow signal without doorbell", {kSignal, kInput}, 1, 1, 16, kHvInvalidConnectionId},
    {"a call that nobody serves", {0x0046, kInput}, 1, 1, 16, kHvInvalidHypercallCode},
};

}  // namespace

TEST_CASE("hypercalls are checked before they are forwarded", "[vmm]") {
  const Result<GuestRam> ram = GuestRam::create(kMemorySizeMin, false);
  REQUIRE(ram);
  for (const HypercallCase& c : kHypercallCases) {
    DYNAMIC_SECTION(c.rule) {
      PostMessageInput input{c.connection_id, 0, c.type, c.payload_size, {}};
      input.payload.fill(0x77);
      if (const auto block = ram->at(c.exit.input, sizeof input); !block.empty()) {
        std::memcpy(block.data(), &input, sizeof input);
      }
      const DecodedHypercall decoded = decode_hypercall(c.exit, *ram);
      const auto* const message = std::get_if<PostedMessage>(&decoded);
      REQUIRE((message != nullptr) == (c.status == kHvSuccess));
      if (message == nullptr) {
        CHECK(std::get<std::uint16_t>(decoded) == c.status);
      } else {
        CHECK(message->connection_id() == c.connection_id);
        CHECK(message->payload().size() == c.payload_size);
        CHECK(message->input.message_type == c.type);
      }
    }
  }
}

TEST_CASE("a posted message is a copy", "[vmm]") {
  const Result<GuestRam> ram = GuestRam::create(kMemorySizeMin, false);
  REQUIRE(ram);
  const PostMessageInput input{1, 0, 1, 240, {}};
  std::memcpy(ram->at(kInput, sizeof input).data(), &input, sizeof input);
  const DecodedHypercall decoded = decode_hypercall({kPost, kInput}, *ram);
  std::memset(ram->at(kInput, sizeof input).data(), 0xff, sizeof input);
  CHECK(std::get<PostedMessage>(decoded).payload().size() == 240);
}

}  // namespace vmbusd::vmm
