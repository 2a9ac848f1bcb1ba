// Runs the fuzz target that is linked with it on random inputs and on inputs of few distinct bytes, which
// reach deeper states. The seed changes by the environment: VMBUSD_TEST_SEED.
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

#include "tests/catch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

TEST_CASE("random inputs", "[storvsp]") {
  const char* const chosen = std::getenv("VMBUSD_TEST_SEED");
  const unsigned seed = chosen != nullptr ? static_cast<unsigned>(std::strtoul(chosen, nullptr, 0)) : 1;
  INFO("seed " << seed);
  std::mt19937 random(seed);
  constexpr int kInputs = 150;
  for (int i = 0; i < kInputs; ++i) {
    std::vector<std::uint8_t> input(random() % 1500);
    const auto distinct = i % 2 == 0 ? 256 : 4 + random() % 28;
    for (std::uint8_t& byte : input) byte = static_cast<std::uint8_t>(random() % distinct);
    CHECK(LLVMFuzzerTestOneInput(input.data(), input.size()) == 0);
  }
}
