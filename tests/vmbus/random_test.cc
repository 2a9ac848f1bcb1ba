// The fuzz target on random inputs: devices that answer in any order, guests that lie. A failure aborts with
// the promise that was broken.
#include <cstdint>
#include <cstdlib>
#include <iostream>
#include <random>
#include <vector>

#include "tests/catch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

TEST_CASE("the server keeps its promises under random actions", "[vmbus]") {
  // VMBUSD_TEST_SEED repeats a run that failed.
  const char* const given = std::getenv("VMBUSD_TEST_SEED");
  const auto seed =
      given != nullptr ? static_cast<std::uint32_t>(std::strtoul(given, nullptr, 0)) : std::random_device{}();
  std::cout << "VMBUSD_TEST_SEED=" << seed << std::endl;
  std::mt19937 random(seed);
  std::vector<std::uint8_t> input;
  for (int round = 0; round < 10000; ++round) {
    input.resize(100 + random() % 1500);
    for (std::uint8_t& byte : input) byte = static_cast<std::uint8_t>(random());
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  SUCCEED("no promise was broken");
}
