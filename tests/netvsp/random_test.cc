// The fuzz target that this program is linked with, on random inputs: what a fuzzer would find in its first
// seconds is found in every test run.
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "tests/catch.h"
#include "tests/netvsp/frames.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace vmbusd::netvsp {
namespace {

constexpr std::uint32_t kSeed = 1;
constexpr int kRounds = 20000;

std::vector<std::vector<std::uint8_t>> corpus() {
  std::vector<std::vector<std::uint8_t>> files;
  for (const auto& entry : std::filesystem::directory_iterator(NETVSP_CORPUS)) {
    std::ifstream file(entry.path(), std::ios::binary);
    files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return files;
}

TEST_CASE("random changes of the corpus break no rule", "[netvsp]") {
  const auto seeds = corpus();
  REQUIRE_FALSE(seeds.empty());
  Random random(kSeed);
  INFO("seed " << kSeed);
  for (int round = 0; round < kRounds; ++round) {
    std::vector<std::uint8_t> input = seeds[random() % seeds.size()];
    for (std::uint32_t changes = random() % 6; changes != 0 && !input.empty(); --changes) {
      const std::size_t at = random() % input.size();
      switch (random() % 5) {
        case 0:
          input[at] = static_cast<std::uint8_t>(random());
          break;
        case 1:
          input[at] = random() % 2 == 0 ? 0 : 0xff;
          break;
        case 2:
          input[at] = static_cast<std::uint8_t>(input[at] + random() % 9 - 4);
          break;
        case 3:
          input.resize(at);
          break;
        default: {  // a part of another
          const auto& other = seeds[random() % seeds.size()];
          const std::size_t begin = random() % (other.size() + 1);
          input.insert(input.begin() + static_cast<std::ptrdiff_t>(at),
                       other.begin() + static_cast<std::ptrdiff_t>(begin), other.end());
          if (input.size() > 100000) input.resize(100000);
        }
      }
    }
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
}

}  // namespace
}  // namespace vmbusd::netvsp
