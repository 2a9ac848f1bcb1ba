#include "vmm/kvm/cpuid.h"

#include <algorithm>

#include "tests/catch.h"
#include "vmm/hypervisor.h"

namespace vmbusd::vmm::kvm {

namespace {

kvm_cpuid_entry2 leaf(std::uint32_t function, std::uint32_t eax, std::uint32_t ebx, std::uint32_t ecx,
                      std::uint32_t edx, std::uint32_t index = 0) {
  kvm_cpuid_entry2 entry{};
  entry.function = function;
  entry.index = index;
  entry.eax = eax;
  entry.ebx = ebx;
  entry.ecx = ecx;
  entry.edx = edx;
  return entry;
}

// A host that offers everything, KVM's own signature among it.
const std::vector<kvm_cpuid_entry2> kHost = {
    leaf(0x1, 0x000806f8, 0x05400800, 0x7fffffff, 0xffffffff),
    leaf(0x4, 0xfc1fc163, 0x03c0003f, 0x0000003f, 0x00000006, 3),
    leaf(0xb, 1, 2, 0x100, 77, 0),
    leaf(0xb, 6, 64, 0x201, 77, 1),
    leaf(0x1f, 1, 2, 0x100, 77, 0),
    leaf(0x40000000, 0x40000001, 0x4b4d564b, 0x564b4d56, 0x4d),
    leaf(0x40000001, 0x01007efb, 0, 0, 0),
    leaf(0x80000001, 0, 0, 0xffffffff, 0xffffffff),
    leaf(0x80000008, 0x3030, 0, 0x603f, 0),
};
const std::vector<kvm_cpuid_entry2> kHyperV = {
    leaf(0x40000000, 0x40000082, 0x756e694c, 0x564b2078, 0x7648204d),
    leaf(0x40000001, 0x31237648, 0, 0, 0),
    leaf(0x40000002, 0x3839, 0x000a0000, 0, 0),
    leaf(0x40000003, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff),
    leaf(0x40000004, 0xffffffff, 0xfff, 0, 0),
    leaf(0x40000005, 0x400, 0x40, 0, 0),
    leaf(0x4000000a, 0x00080000, 0, 0, 0),
    leaf(0x40000081, 0x31235356, 0, 0, 0),
};

const kvm_cpuid_entry2& find(const std::vector<kvm_cpuid_entry2>& table, std::uint32_t function,
                             std::uint32_t index = 0) {
  const auto found = std::find_if(table.begin(), table.end(), [&](const kvm_cpuid_entry2& entry) {
    return entry.function == function && entry.index == index;
  });
  REQUIRE(found != table.end());
  return *found;
}

CpuidConfig config(std::uint32_t vcpus) {
  return {kHost, kHyperV, vcpus, true, choose_apic(false, false)};
}

}  // namespace

TEST_CASE("the guest finds Hyper-V and no KVM", "[vmm]") {
  const auto table = build_cpuid(config(4), 0);
  CHECK((find(table, 1).ecx >> 31) == 1);
  const auto& vendor = find(table, 0x40000000);
  CHECK(vendor.eax >= 0x40000005);
  CHECK(vendor.ebx == 0x7263694d);
  CHECK(vendor.ecx == 0x666f736f);
  CHECK(vendor.edx == 0x76482074);
  CHECK(find(table, 0x40000001).eax == 0x31237648);
  for (const kvm_cpuid_entry2& entry : table) {
    CHECK(entry.ebx != 0x4b4d564b);
    CHECK((entry.function < 0x40000007 || entry.function >= 0x80000000));
  }
}

TEST_CASE("the guest is not offered what makes it the root partition", "[vmm]") {
  const auto features = find(build_cpuid(config(1), 0), 0x40000003);
  CHECK(features.ebx == 0x30);  // post messages, signal events
  CHECK((features.eax & 0x66) == 0x66);
  CHECK((features.eax & ~0x8affu) == 0);
}

TEST_CASE("the guest is told not to use auto-EOI", "[vmm]") {
  const auto hints = find(build_cpuid(config(1), 0), 0x40000004);
  CHECK((hints.eax & 0x200) != 0);
  CHECK((hints.eax & ~0xe2cu) == 0);
  CHECK(hints.ebx == 0xffffffff);
}

TEST_CASE("nothing is offered that KVM does not have", "[vmm]") {
  std::vector<kvm_cpuid_entry2> bare = kHyperV;
  bare[3] = leaf(0x40000003, 0x66, 0x30, 0, 0);
  bare[4] = leaf(0x40000004, 0, 0, 0, 0);
  const auto table = build_cpuid({kHost, bare, 1, false, {}}, 0);
  CHECK(find(table, 0x40000003).eax == 0x66);
  CHECK(find(table, 0x40000003).edx == 0);
  CHECK(find(table, 0x40000004).eax == 0x200);
}

TEST_CASE("a KVM without SynIC is named", "[vmm]") {
  CHECK(missing_hyper_v_feature(kHyperV) == nullptr);
  CHECK(missing_hyper_v_feature({}) != nullptr);
  std::vector<kvm_cpuid_entry2> bare = kHyperV;
  bare[3].eax &= ~(1u << 2);
  CHECK(missing_hyper_v_feature(bare) != nullptr);
  bare = kHyperV;
  bare[3].ebx &= ~(1u << 5);
  CHECK(missing_hyper_v_feature(bare) != nullptr);
}

TEST_CASE("each vCPU has its own APIC id in one package", "[vmm]") {
  for (const std::uint32_t vcpus : {1u, 3u, kMaxVcpus}) {
    const std::uint32_t last = vcpus - 1;
    const auto table = build_cpuid(config(vcpus), last);
    CHECK(find(table, 1).ebx >> 24 == last);
    CHECK((find(table, 1).ebx >> 16 & 0xff) >= vcpus);
    CHECK(find(table, 0xb, 0).edx == last);
    CHECK(find(table, 0xb, 1).ebx == vcpus);
    CHECK((1u << find(table, 0xb, 1).eax) >= vcpus);
    CHECK(find(table, 0xb, 2).ecx == 2);
    CHECK((find(table, 0x80000008).ecx & 0xff) == last);
    CHECK((find(table, 0x4, 3).eax >> 26) + 1 >= vcpus);
  }
}

TEST_CASE("guests reach their APIC the cheapest way", "[vmm]") {
  struct ApicCase {
    const char* rule;
    bool virtual_apic;
    bool virtual_x2apic;
    bool x2apic;
    bool hyper_v_msrs;
  };
  constexpr ApicCase kApicCases[] = {
      {"every access is an exit", false, false, false, true},
      {"AVIC", true, false, false, false},
      {"APICv, x2AVIC", true, true, true, false},
  };
  for (const ApicCase& c : kApicCases) {
    DYNAMIC_SECTION(c.rule) {
      const auto table =
          build_cpuid({kHost, kHyperV, 1, true, choose_apic(c.virtual_apic, c.virtual_x2apic)}, 0);
      CHECK(((find(table, 1).ecx & 1u << 21) != 0) == c.x2apic);
      CHECK(((find(table, 0x40000004).eax & 1u << 3) != 0) == c.hyper_v_msrs);
    }
  }
}

TEST_CASE("guests have one kind of timer, the APIC's where it has a deadline", "[vmm]") {
  for (const bool deadline : {false, true}) {
    CpuidConfig one = config(1);
    one.tsc_deadline_timer = deadline;
    const auto table = build_cpuid(one, 0);
    CHECK(((find(table, 0x40000003).eax & 1u << 3) != 0) == !deadline);
    CHECK(((find(table, 0x40000003).edx & 1u << 19) != 0) == !deadline);
  }
}

TEST_CASE("guests have no nested virtualization", "[vmm]") {
  const auto table = build_cpuid(config(2), 0);
  CHECK((find(table, 1).ecx & 1u << 5) == 0);
  CHECK((find(table, 0x80000001).ecx & 1u << 2) == 0);
}

}  // namespace vmbusd::vmm::kvm
