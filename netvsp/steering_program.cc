#include "netvsp/steering_program.h"

#include <linux/bpf.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <vector>

#include "base/assert.h"
#include "netvsp/frame.h"

namespace vmbusd::netvsp {

namespace {

enum class Register : std::uint8_t { r0, r1, r2, r3, r4, r5, r6, r7, r8, r9, frame };
using R = Register;

// Instructions of the kernel's BPF machine, one after the other. Jumps go forward only.
// [linux: Documentation/bpf/standardization/instruction-set.rst]
class Assembler {
 public:
  class Label {
    friend class Assembler;
    std::vector<std::size_t> jumps_;  // that lead here
  };

  void move(R to, R from) { add(BPF_ALU64 | BPF_MOV | BPF_X, to, from); }
  void move(R to, std::int32_t value) { add(BPF_ALU64 | BPF_MOV | BPF_K, to, R::r0, 0, value); }
  // BPF_ADD, BPF_AND, BPF_LSH, BPF_RSH, BPF_XOR ... of 64 bits.
  void compute(std::uint8_t operation, R to, R with) { add(BPF_ALU64 | operation | BPF_X, to, with); }
  void compute(std::uint8_t operation, R to, std::int32_t with) {
    add(BPF_ALU64 | operation | BPF_K, to, R::r0, 0, with);
  }
  // Unsigned, of 32 bits; nothing where `by` is 0.
  void modulo(R to, R by) { add(BPF_ALU | BPF_MOD | BPF_X, to, by); }
  void from_big_endian16(R value) { add(BPF_ALU | BPF_END | BPF_TO_BE, value, R::r0, 0, 16); }
  // `size`: BPF_B, BPF_H or BPF_W.
  void load(std::uint8_t size, R to, R base, std::ptrdiff_t offset) {
    add(BPF_LDX | BPF_MEM | size, to, base, offset);
  }
  void store32(R base, std::ptrdiff_t offset, std::int32_t value) {
    add(BPF_ST | BPF_MEM | BPF_W, base, R::r0, offset, value);
  }
  // The address of the map's first value.
  void load_map_value(R to, int map) {
    add(BPF_LD | BPF_DW | BPF_IMM, to, static_cast<R>(BPF_PSEUDO_MAP_VALUE), 0, map);
    add(0, R::r0, R::r0);
  }
  void call(bpf_func_id helper) { add(BPF_JMP | BPF_CALL, R::r0, R::r0, 0, helper); }
  void exit() { add(BPF_JMP | BPF_EXIT, R::r0, R::r0); }
  void jump(Label& to) {
    to.jumps_.push_back(code_.size());
    add(BPF_JMP | BPF_JA, R::r0, R::r0);
  }
  // BPF_JEQ, BPF_JNE, BPF_JLT, BPF_JGE, BPF_JSET.
  void jump_if(std::uint8_t condition, R value, std::int32_t with, Label& to) {
    to.jumps_.push_back(code_.size());
    add(BPF_JMP | condition | BPF_K, value, R::r0, 0, with);
  }
  // Does nothing, and is removed when it is loaded. Where it also follows mispredicted branches, which it
  // does for a user without CAP_PERFMON, the kernel's verifier takes each sum of pointer and number for a
  // fork in the program; at jumps it looks whether paths have met again, but only at every second one and
  // after 8 instructions. Without this, 36 sums are 2^36 paths. [linux: sanitize_ptr_alu, is_state_visited in
  // verifier.c]
  void join_paths() {
    for (int i = 0; i < 2; ++i) add(BPF_JMP | BPF_JA, R::r0, R::r0);
  }
  // The next instruction is where the label's jumps lead.
  void bind(const Label& label) {
    for (const std::size_t jump : label.jumps_) {
      code_[jump].off = static_cast<std::int16_t>(code_.size() - jump - 1);
    }
  }

  [[nodiscard]] const std::vector<bpf_insn>& code() const { return code_; }

 private:
  void add(unsigned code, R to, R from, std::ptrdiff_t offset = 0, std::int32_t value = 0) {
    VMBUSD_ASSERT(offset >= INT16_MIN && offset <= INT16_MAX);
    bpf_insn instruction{};
    instruction.code = static_cast<std::uint8_t>(code);
    instruction.dst_reg = static_cast<std::uint8_t>(to) & 0xf;
    instruction.src_reg = static_cast<std::uint8_t>(from) & 0xf;
    instruction.off = static_cast<std::int16_t>(offset);
    instruction.imm = value;
    code_.push_back(instruction);
  }

  std::vector<bpf_insn> code_;
};

// On the stack: an IP header without options, and behind it the ports. So the hash's input is in one piece,
// addresses first, in both versions of IP.
constexpr std::uint32_t kPortsSize = 4;
constexpr std::uint32_t kIpv4HeaderMin = kIpv4Addresses + kIpv4AddressesSize;
static_assert(kIpv6Addresses + kIpv6AddressesSize == kIpv6HeaderSize);
constexpr std::ptrdiff_t kHeader = -static_cast<std::ptrdiff_t>(kIpv6HeaderSize + kPortsSize);
constexpr std::uint32_t kTagsMax = 2;  // 802.1ad

// Registers: r6 the packet, r7 the table, r8 the hash types, r9 where in the frame we are.
class SteeringCode {
 public:
  explicit SteeringCode(int map) {
    a_.move(R::r6, R::r1);
    a_.load_map_value(R::r7, map);
    a_.load(BPF_W, R::r8, R::r7, offsetof(SteeringTable, hash_types));
    a_.jump_if(BPF_JEQ, R::r8, 0, to_first_);
    ether_type();
    a_.bind(ipv4_);
    ipv4();
    a_.bind(ipv6_);
    ipv6();
    a_.bind(hashed_);
    pick_queue();
    a_.bind(to_first_);
    a_.move(R::r0, 0);
    a_.exit();
  }

  [[nodiscard]] const std::vector<bpf_insn>& code() const { return a_.code(); }

 private:
  using Label = Assembler::Label;

  // Copies `size` bytes of the frame from r9 on to the stack. They may be anywhere in the packet's pieces.
  void read_frame(std::uint32_t size, std::ptrdiff_t to, Label& too_short) {
    a_.move(R::r1, R::r6);
    a_.move(R::r2, R::r9);
    a_.move(R::r3, R::frame);
    a_.compute(BPF_ADD, R::r3, static_cast<std::int32_t>(to));
    a_.move(R::r4, static_cast<std::int32_t>(size));
    a_.call(BPF_FUNC_skb_load_bytes);
    a_.jump_if(BPF_JNE, R::r0, 0, too_short);
  }

  void load16(R to, std::ptrdiff_t from) {
    a_.load(BPF_H, to, R::frame, from);
    a_.from_big_endian16(to);
  }

  // Most tags are beside the packet, but a packet socket or a bridge may leave them in it.
  void ether_type() {
    a_.move(R::r9, static_cast<std::int32_t>(kEtherType));
    for (std::uint32_t tags = 0; tags <= kTagsMax; ++tags) {
      Label tagged;
      read_frame(sizeof(std::uint16_t), kHeader, to_first_);
      load16(R::r1, kHeader);
      a_.compute(BPF_ADD, R::r9, sizeof(std::uint16_t));
      a_.jump_if(BPF_JEQ, R::r1, kEtherTypeIpv4, ipv4_);
      a_.jump_if(BPF_JEQ, R::r1, kEtherTypeIpv6, ipv6_);
      a_.jump_if(BPF_JEQ, R::r1, kEtherTypeVlan, tagged);
      a_.jump_if(BPF_JNE, R::r1, kEtherTypeServiceVlan, to_first_);
      a_.bind(tagged);
      a_.compute(BPF_ADD, R::r9, kVlanTagSize - sizeof(std::uint16_t));
    }
    a_.jump(to_first_);
  }

  void ipv4() {
    Label addresses;
    read_frame(kIpv4HeaderMin, kHeader, to_first_);
    a_.load(BPF_B, R::r1, R::frame, kHeader);
    a_.move(R::r2, R::r1);
    a_.compute(BPF_RSH, R::r2, 4);
    a_.jump_if(BPF_JNE, R::r2, 4, to_first_);
    a_.compute(BPF_AND, R::r1, 0xf);
    a_.compute(BPF_LSH, R::r1, 2);
    a_.jump_if(BPF_JLT, R::r1, kIpv4HeaderMin, to_first_);
    a_.compute(BPF_ADD, R::r9, R::r1);
    // More fragments, or an offset: the others of the packet have no ports.
    load16(R::r1, kHeader + 6);
    a_.jump_if(BPF_JSET, R::r1, 0x3fff, addresses);
    a_.load(BPF_B, R::r1, R::frame, kHeader + 9);
    hash(kIpv4Addresses, kIpv4AddressesSize, kHashTcpIpv4, kHashUdpIpv4, kHashIpv4, addresses);
  }

  // Extension headers are not looked behind: such packets go by their addresses.
  void ipv6() {
    Label addresses;
    read_frame(kIpv6HeaderSize, kHeader, to_first_);
    a_.load(BPF_B, R::r1, R::frame, kHeader);
    a_.compute(BPF_RSH, R::r1, 4);
    a_.jump_if(BPF_JNE, R::r1, 6, to_first_);
    a_.compute(BPF_ADD, R::r9, kIpv6HeaderSize);
    a_.load(BPF_B, R::r1, R::frame, kHeader + 6);
    hash(kIpv6Addresses, kIpv6AddressesSize, kHashTcpIpv6 | kHashTcpIpv6Ex, kHashUdpIpv6,
         kHashIpv6 | kHashIpv6Ex, addresses);
  }

  // r1: the transport protocol, which begins at r9. Leads to the end.
  void hash(std::uint32_t addresses_offset, std::uint32_t addresses_size, std::uint32_t tcp_types,
            std::uint32_t udp_types, std::uint32_t address_types, Label& addresses) {
    const std::ptrdiff_t input = kHeader + static_cast<std::ptrdiff_t>(addresses_offset);
    const std::ptrdiff_t ports = input + static_cast<std::ptrdiff_t>(addresses_size);
    Label tcp, with_ports, asked;
    a_.jump_if(BPF_JEQ, R::r1, kProtocolTcp, tcp);
    a_.jump_if(BPF_JNE, R::r1, kProtocolUdp, addresses);
    a_.jump_if(BPF_JSET, R::r8, static_cast<std::int32_t>(udp_types), with_ports);
    a_.jump(addresses);
    a_.bind(tcp);
    a_.jump_if(BPF_JSET, R::r8, static_cast<std::int32_t>(tcp_types), with_ports);
    a_.jump(addresses);
    a_.bind(with_ports);
    read_frame(kPortsSize, ports, addresses);
    hash_input(input, addresses_size + kPortsSize);
    a_.bind(addresses);
    a_.jump_if(BPF_JSET, R::r8, static_cast<std::int32_t>(address_types), asked);
    a_.jump(to_first_);
    a_.bind(asked);
    hash_input(input, addresses_size);
  }

  // r0: the hash of `size` bytes of the stack.
  void hash_input(std::ptrdiff_t input, std::uint32_t size) {
    // An instruction reaches 32 KiB each way: count from the middle of the unfolded key.
    constexpr std::ptrdiff_t kMiddle = kToeplitzInputMax / 2;
    constexpr std::ptrdiff_t kStep = sizeof(ToeplitzBytes);
    a_.move(R::r4, R::r7);
    a_.compute(BPF_ADD, R::r4, offsetof(SteeringTable, toeplitz) + kMiddle * kStep);
    a_.move(R::r0, 0);
    for (std::ptrdiff_t i = 0; i < std::ptrdiff_t{size}; ++i) {
      a_.load(BPF_B, R::r1, R::frame, input + i);
      a_.compute(BPF_LSH, R::r1, 2);
      a_.move(R::r2, R::r4);
      a_.compute(BPF_ADD, R::r2, R::r1);
      a_.load(BPF_W, R::r1, R::r2, (i - kMiddle) * kStep);
      a_.compute(BPF_XOR, R::r0, R::r1);
      a_.join_paths();
    }
    a_.jump(hashed_);
  }

  void pick_queue() {
    a_.load(BPF_W, R::r1, R::r7, offsetof(SteeringTable, entries));
    a_.modulo(R::r0, R::r1);
    a_.jump_if(BPF_JGE, R::r0, kRssIndirectionEntriesMax, to_first_);  // not with a table that is one
    a_.compute(BPF_LSH, R::r0, 2);
    a_.move(R::r1, R::r7);
    a_.compute(BPF_ADD, R::r1, R::r0);
    a_.load(BPF_W, R::r0, R::r1, offsetof(SteeringTable, queues));
    a_.exit();
  }

  Assembler a_;
  Label ipv4_;
  Label ipv6_;
  Label hashed_;
  Label to_first_;
};

template <std::size_t Size>
void put_name(char (&to)[Size], std::string_view name) {
  name.copy(to, Size - 1);
}

// A descriptor, or -1 with errno.
UniqueFd bpf(bpf_cmd command, bpf_attr& attributes) {
  return UniqueFd(static_cast<int>(::syscall(SYS_bpf, command, &attributes, sizeof attributes)));
}

}  // namespace

Result<SteeringProgram> load_steering_program() {
  SteeringProgram made;
  // No initializer clears all of a union, and the kernel wants 0 behind what a command uses.
  bpf_attr map;
  std::memset(&map, 0, sizeof map);
  map.map_type = BPF_MAP_TYPE_ARRAY;
  map.key_size = sizeof(std::uint32_t);
  map.value_size = sizeof(SteeringTable);
  map.max_entries = 1;
  map.map_flags = BPF_F_MMAPABLE;
  put_name(map.map_name, "vmbusd_rss");
  made.table = bpf(BPF_MAP_CREATE, map);
  if (!made.table) return fail_os(errno, "cannot make the table of a steering program");

  const SteeringCode code(made.table.get());
  bpf_attr program;
  std::memset(&program, 0, sizeof program);
  program.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
  program.insns = reinterpret_cast<std::uintptr_t>(code.code().data());
  program.insn_cnt = static_cast<std::uint32_t>(code.code().size());
  program.license = reinterpret_cast<std::uintptr_t>("MIT");
  put_name(program.prog_name, "vmbusd_rss");
  // The verifier gives up for a signal, which a thread with io_uring gets for its completions as well.
  constexpr int kTriesMax = 5;
  for (int i = 0; i < kTriesMax && !made.program; ++i) {
    made.program = bpf(BPF_PROG_LOAD, program);
    if (!made.program && errno != EAGAIN) break;
  }
  if (!made.program) return fail_os(errno, "cannot load a steering program");
  return made;
}

Result<void> steer_tap(int tap, int program) {
  if (::ioctl(tap, TUNSETSTEERINGEBPF, &program) != 0) return fail_os(errno, "TAP takes no steering program");
  return {};
}

void stop_steering_tap(int tap) {
  int none = -1;
  static_cast<void>(::ioctl(tap, TUNSETSTEERINGEBPF, &none));  // only a kernel without it refuses
}

}  // namespace vmbusd::netvsp
