#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/catch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

void feed(const std::string& text) {
  LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
}

std::vector<std::string> corpus() {
  std::vector<std::string> texts;
  for (const auto& entry : std::filesystem::directory_iterator(VMBUSD_CONFIG_CORPUS)) {
    std::ifstream file(entry.path());
    texts.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return texts;
}

}  // namespace

TEST_CASE("the configuration's reader keeps its promises on its corpus", "[daemon]") {
  const std::vector<std::string> texts = corpus();
  REQUIRE_FALSE(texts.empty());
  for (const std::string& text : texts) feed(text);
}

TEST_CASE("the configuration's reader keeps its promises on damaged files", "[daemon]") {
  // VMBUSD_TEST_SEED repeats a run that failed. A failure aborts with the promise that was broken.
  const char* const given = std::getenv("VMBUSD_TEST_SEED");
  const auto seed =
      given != nullptr ? static_cast<std::uint32_t>(std::strtoul(given, nullptr, 0)) : std::random_device{}();
  std::cout << "VMBUSD_TEST_SEED=" << seed << std::endl;
  std::mt19937 random(seed);
  const std::vector<std::string> texts = corpus();
  const std::string kLikely = "[]\"'=\n#.-0189azAZ{},\\\x7f\x01\xff";
  for (int round = 0; round < 3000; ++round) {
    std::string text = texts[random() % texts.size()];
    const std::uint32_t wounds = 1 + random() % 4;
    for (std::uint32_t i = 0; i < wounds && !text.empty(); ++i) {
      const std::size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = kLikely[random() % kLikely.size()];
          break;
        case 1:
          text.erase(at, 1 + random() % 40);
          break;
        case 2:
          text.insert(at, text.substr(random() % text.size(), random() % 60));
          break;
        default:
          text.insert(at, 1, kLikely[random() % kLikely.size()]);
          break;
      }
    }
    feed(text);
  }
  SUCCEED("no promise was broken");
}
