// The program that steers what a TAP receives, run by the kernel on frames of ours.
#include <linux/bpf.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "base/log.h"
#include "netvsp/steering_program.h"
#include "tests/catch.h"
#include "tests/netvsp/frames.h"

namespace vmbusd::netvsp {
namespace {

constexpr std::uint32_t kSeed = 4711;
using Key = std::array<std::uint8_t, kRssKeySize>;

// [NDIS: Verifying the RSS Hash Calculation], key and vectors: source, destination, ports.
constexpr Key kKey = {0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3,
                      0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3,
                      0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa};
struct Vector {
  const char* input;
  std::uint32_t addresses_size;
  std::uint32_t with_addresses;
  std::uint32_t with_ports;
};
constexpr Vector kVectors[] = {
    {"420995bb a18e6450 0aea06e6", 8, 0x323e8fc2, 0x51ccc178},
    {"c75c6f02 41458c53 37961283", 8, 0xd718262a, 0xc626b0ea},
    {"1813c65f 0c16cfb8 32629488", 8, 0xd2d0a5de, 0x5c2b394a},
    {"261bcd1e d18ea306 bc6408a9", 8, 0x82989176, 0xafc7327f},
    {"9927a3bf cabc7f02 acdb0517", 8, 0x5d1809c5, 0x10e828a2},
    {"3ffe2501 02001fff 00000000 00000007 3ffe2501 02000003 00000000 00000001 0aea06e6", 32, 0x2cc18cd5,
     0x40207d3d},
    {"3ffe0501 00080000 026097ff fe40efab ff020000 00000000 00000000 00000001 37961283", 32, 0x0f0c461c,
     0xdde51bbf},
    {"3ffe1900 45450003 0200f8ff fe2167cf fe800000 00000000 0200f8ff fe2167cf acdb9488", 32, 0x4b61e985,
     0x02d1feef},
};

// By the book, a bit at a time.
std::uint32_t plain_hash(const Key& key, std::span<const std::byte> input) {
  std::uint32_t result = 0;
  for (std::size_t bit = 0; bit < input.size() * 8; ++bit) {
    if ((static_cast<unsigned>(input[bit / 8]) >> (7 - bit % 8) & 1) == 0) continue;
    std::uint32_t window = 0;
    for (std::size_t i = bit; i < bit + 32; ++i) window = window << 1 | (key[i / 8] >> (7 - i % 8) & 1u);
    result ^= window;
  }
  return result;
}

std::uint32_t unfolded_hash(const Key& key, std::span<const std::byte> input) {
  std::uint32_t result = 0;
  for (std::size_t i = 0; i < input.size(); ++i) {
    result ^= unfold_toeplitz_key(key, i)[static_cast<std::size_t>(input[i])];
  }
  return result;
}

TEST_CASE("the unfolded key gives Microsoft's hashes", "[netvsp][rss]") {
  for (const Vector& vector : kVectors) {
    const Bytes input = hex(vector.input);
    CHECK(unfolded_hash(kKey, std::span(input).first(vector.addresses_size)) == vector.with_addresses);
    CHECK(unfolded_hash(kKey, input) == vector.with_ports);
  }
  Random random(kSeed);
  for (int round = 0; round < 200; ++round) {
    INFO("seed " << kSeed << " round " << round);
    Key key;
    for (std::uint8_t& byte : key) byte = static_cast<std::uint8_t>(random());
    Bytes input(1 + random() % kToeplitzInputMax);
    for (std::byte& byte : input) byte = static_cast<std::byte>(random());
    CHECK(unfolded_hash(key, input) == plain_hash(key, input));
  }
}

// The program in the kernel, with the table mapped.
class Program {
 public:
  Program() {
    auto made = load_steering_program();
    if (!made) {
      why_ = describe(made.error());
      return;
    }
    program_ = std::move(*made);
    void* const shared =
        ::mmap(nullptr, sizeof(SteeringTable), PROT_READ | PROT_WRITE, MAP_SHARED, program_.table.get(), 0);
    REQUIRE(shared != MAP_FAILED);
    table = static_cast<SteeringTable*>(shared);
    for (std::size_t i = 0; i < kToeplitzInputMax; ++i) table->toeplitz[i] = unfold_toeplitz_key(kKey, i);
  }
  ~Program() {
    if (table != nullptr) ::munmap(table, sizeof *table);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;
  [[nodiscard]] const std::string& why() const { return why_; }

  [[nodiscard]] std::uint32_t queue_of(std::span<const std::byte> frame) const {
    // A run of this kind of program begins behind what the kernel takes for the Ethernet header; in a TAP it
    // begins at the header. [linux: net/bpf/test_run.c, bpf_prog_test_run_skb]
    Bytes data(14);
    append(data, frame);
    bpf_attr run;
    std::memset(&run, 0, sizeof run);
    run.test.prog_fd = static_cast<std::uint32_t>(program_.program.get());
    run.test.data_in = reinterpret_cast<std::uintptr_t>(data.data());
    run.test.data_size_in = static_cast<std::uint32_t>(data.size());
    const long done = ::syscall(SYS_bpf, BPF_PROG_TEST_RUN, &run, sizeof run);
    INFO("errno " << errno);
    REQUIRE(done == 0);
    return run.test.retval;
  }
  // The whole hash of a frame, from what is left of it by several divisors; empty where it was not hashed.
  [[nodiscard]] bool hashed_to(std::span<const std::byte> frame, std::optional<std::uint32_t> hash) const {
    constexpr std::uint32_t kNotHashed = 0;
    for (const std::uint32_t entries : {128u, 127u, 125u, 123u, 121u}) {  // no two have a common factor
      table->entries = entries;
      for (std::uint32_t i = 0; i < entries; ++i) table->queues[i] = 1000 + i;
      if (queue_of(frame) != (hash ? 1000 + *hash % entries : kNotHashed)) return false;
    }
    return true;
  }

  SteeringTable* table = nullptr;

 private:
  SteeringProgram program_;
  std::string why_;
};

#define NEED_PROGRAM()                                                  \
  const Program program;                                                \
  if (program.table == nullptr) {                                       \
    WARN("nothing is tested: " << program.why() << " (wants CAP_BPF)"); \
    return;                                                             \
  }

TEST_CASE("the kernel hashes as Microsoft's vectors say", "[netvsp][rss]") {
  NEED_PROGRAM();
  Random random(kSeed);
  for (const Vector& vector : kVectors) {
    INFO(vector.input);
    const bool v6 = vector.addresses_size == 32;
    const Bytes input = hex(vector.input);
    for (const bool udp : {false, true}) {
      FrameSpec spec;
      spec.ip_version = v6 ? 6 : 4;
      spec.udp = udp;
      BuiltFrame frame = build_frame(spec, random);
      std::memcpy(frame.bytes.data() + frame.ip + (v6 ? 8 : 12), input.data(), vector.addresses_size);
      std::memcpy(frame.bytes.data() + frame.transport, input.data() + vector.addresses_size, 4);
      const std::uint32_t addresses = v6 ? kHashIpv6 : kHashIpv4;
      const std::uint32_t tcp = v6 ? kHashTcpIpv6 : kHashTcpIpv4;
      const std::uint32_t ports = udp ? (v6 ? kHashUdpIpv6 : kHashUdpIpv4) : tcp;
      program.table->hash_types = addresses | ports;
      CHECK(program.hashed_to(frame.bytes, vector.with_ports));
      program.table->hash_types = ports;
      CHECK(program.hashed_to(frame.bytes, vector.with_ports));
      program.table->hash_types = addresses;
      CHECK(program.hashed_to(frame.bytes, vector.with_addresses));
      // What Linux asks for: UDP goes by addresses.
      program.table->hash_types = kHashIpv4 | kHashTcpIpv4 | kHashIpv6 | kHashTcpIpv6;
      CHECK(program.hashed_to(frame.bytes, udp ? vector.with_addresses : vector.with_ports));
      program.table->hash_types = v6 ? kHashIpv4 | kHashTcpIpv4 : kHashIpv6 | kHashTcpIpv6;
      CHECK(program.hashed_to(frame.bytes, std::nullopt));
      program.table->hash_types = 0;
      CHECK(program.hashed_to(frame.bytes, std::nullopt));
    }
  }
}

TEST_CASE("tags and options are passed over, fragments go by their addresses", "[netvsp][rss]") {
  NEED_PROGRAM();
  program.table->hash_types = kHashIpv4 | kHashTcpIpv4 | kHashIpv6 | kHashTcpIpv6;
  Random random(kSeed);
  for (int round = 0; round < 400; ++round) {
    INFO("seed " << kSeed << " round " << round);
    FrameSpec spec;
    spec.ip_version = random() % 2 == 0 ? 4 : 6;
    spec.udp = random() % 4 == 0;
    spec.vlan = random() % 2 == 0;
    spec.ip_options = random() % 2 == 0 ? 8 * (random() % 3) : 0;
    spec.tcp_options = 4 * (random() % 4);
    spec.payload = random() % 100;
    BuiltFrame frame = build_frame(spec, random);
    const bool v6 = spec.ip_version == 6;
    if (!v6) put32(frame.bytes, frame.ip + 12, random());
    put32(frame.bytes, frame.transport, random());
    bool fragment = false;
    if (!v6) {
      constexpr std::uint32_t kFragmentFields[] = {0, 0x4000, 0x2000, 0x2003, 0x0003};
      const std::uint32_t field = kFragmentFields[random() % 5];
      put16(frame.bytes, frame.ip + 6, field);
      fragment = (field & 0x3fff) != 0;
    }
    std::span<const std::byte> all(frame.bytes);
    Bytes input(all.begin() + frame.ip + (v6 ? 8 : 12), all.begin() + frame.ip + (v6 ? 40 : 20));
    // Behind IPv6's extension headers nothing is looked for.
    if (!spec.udp && !fragment && !(v6 && spec.ip_options != 0))
      append(input, all.subspan(frame.transport, 4));
    if (random() % 4 == 0) {
      const Bytes outer = hex("88a8 0065");
      frame.bytes.insert(frame.bytes.begin() + 12, outer.begin(), outer.end());
    }
    CHECK(program.hashed_to(frame.bytes, plain_hash(kKey, input)));
  }
}

TEST_CASE("a frame that is cut short or no IP goes to the first queue", "[netvsp][rss]") {
  NEED_PROGRAM();
  program.table->hash_types = kHashIpv4 | kHashTcpIpv4 | kHashIpv6 | kHashTcpIpv6;
  Random random(kSeed);
  for (const int version : {4, 6}) {
    FrameSpec spec;
    spec.ip_version = version;
    spec.vlan = true;
    const BuiltFrame frame = build_frame(spec, random);
    const std::span<const std::byte> all(frame.bytes);
    const std::size_t addresses = version == 6 ? 8 : 12;
    const auto by_addresses =
        plain_hash(kKey, all.subspan(frame.ip + addresses, frame.transport - frame.ip - addresses));
    for (std::uint32_t size = 1; size < frame.transport + 4; ++size) {
      INFO("IPv" << version << ", the first " << size << " bytes");
      const bool has_header = size >= frame.transport;
      CHECK(program.hashed_to(all.first(size), has_header ? std::optional(by_addresses) : std::nullopt));
    }
    Bytes wrong = frame.bytes;
    wrong[frame.ip] ^= std::byte{0x20};  // 4 for 6, 6 for 4
    CHECK(program.hashed_to(wrong, std::nullopt));
  }
  BuiltFrame frame = build_frame({}, random);
  frame.bytes[frame.ip] = std::byte{0x44};  // a header of 16 bytes
  CHECK(program.hashed_to(frame.bytes, std::nullopt));
  CHECK(program.hashed_to(hex("ffffffffffff 020000000001 0806 0001080006040001"), std::nullopt));  // ARP
  CHECK(program.hashed_to(hex("ffffffffffff 020000000001 8100 0001 8100 0002 8100 0003 0800 45000014"),
                          std::nullopt));
  // A table that a worker should not have written.
  frame = build_frame({}, random);
  program.table->entries = 4'000'000'000;
  CHECK(program.queue_of(frame.bytes) == 0);
}

}  // namespace
}  // namespace vmbusd::netvsp
