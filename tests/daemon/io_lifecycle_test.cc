// What a stop does to I/O in flight; the guest is the user-space child partition.
#include <signal.h>

#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tests/guest/host.h"

namespace vmbusd::daemon {
namespace {

constexpr std::size_t kWriteBytes = 256 << 10;

class DiskHost {
 public:
  DiskHost() { std::ofstream(directory_.path("d.img")) << std::string(guest::kImageBytes, 'i'); }

  [[nodiscard]] std::string config() const {
    return "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\n[[partition.scsi]]\nname = 'scsi0'\n"
           "[[partition.scsi.disk]]\nlun = 0\npath = 'd.img'\n";
  }
  [[nodiscard]] const TemporaryDirectory& directory() const { return directory_; }
  [[nodiscard]] std::unique_ptr<guest::ChildPartition> attach() const {
    std::string error_text;
    auto child = guest::ChildPartition::attach({.socket_path = directory_.path("demo.sock")}, error_text);
    INFO(error_text);
    return guest::must(std::move(child));
  }
  // The image's bytes of the write in `slot`.
  [[nodiscard]] std::string image(std::uint32_t slot) const {
    std::ifstream file(directory_.path("d.img"), std::ios::binary);
    file.seekg(static_cast<std::streamoff>(slot * kWriteBytes));
    std::string bytes(kWriteBytes, '\0');
    file.read(bytes.data(), kWriteBytes);
    return bytes;
  }

 private:
  TemporaryDirectory directory_;
};

// Fills the ring with writes of 'w', each to a place of its own.
class Writer {
 public:
  static constexpr std::uint32_t kDepth = guest::kImageBytes / kWriteBytes;

  explicit Writer(guest::ChildPartition& child)
      : driver_(child, {.depth = kDepth}), pages_(guest::must(child.ram().take(kWriteBytes / 4096))) {
    pages_.write(0, std::vector<std::byte>(kWriteBytes, std::byte{'w'}));
    for (std::uint32_t slot = 0; slot < kDepth; ++slot) {
      guest::StorCommand command =
          guest::block_command(guest::scsi::Opcode::kWrite16, slot * (kWriteBytes / 512), kWriteBytes / 512);
      command.pages = pages_.gpns();
      command.bytes = kWriteBytes;
      const auto id = guest::must(driver_.stor->submit(command));
      REQUIRE(id.has_value());
      slots_[*id] = slot;
    }
    guest::must(driver_.stor->flush());
  }

  // Slots of the writes that the host has completed with success since the last call.
  [[nodiscard]] std::vector<std::uint32_t> completed() {
    std::vector<std::uint32_t> slots;
    guest::must(driver_.stor->poll([&](const guest::StorCompletion& completion) {
      if (guest::succeeded(completion.packet)) slots.push_back(slots_.at(completion.id));
    }));
    return slots;
  }

 private:
  guest::Driver driver_;
  guest::Pages pages_;
  std::map<std::uint64_t, std::uint32_t> slots_;  // by command id
};

TEST_CASE("a stop under I/O loses no write that the guest was told is done", "[daemon]") {
  const DiskHost host;
  RunningDaemon daemon(host.directory(), host.config());
  REQUIRE(daemon.wait_until_ready());
  const auto child = host.attach();
  Writer writer(*child);
  daemon.signal(SIGTERM);
  CHECK(daemon.wait() == 0);
  INFO(daemon.log());
  for (const std::uint32_t slot : writer.completed()) {
    CHECK(host.image(slot) == std::string(kWriteBytes, 'w'));
  }
  CHECK(eventually([&] { return child->disconnected_by_host(); }));
}

}  // namespace
}  // namespace vmbusd::daemon
