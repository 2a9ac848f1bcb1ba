// What a disk holds after vmbusd ends in the middle of I/O, as a failure of power would end it: at least what
// the guest, here the user-space child partition, was told is durable.
#include <fcntl.h>
#include <signal.h>

#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "daemon/sandbox.h"
#include "tests/guest/host.h"

namespace vmbusd::daemon {
namespace {

using guest::must;

constexpr int kCuts = kInstrumented ? 10 : 50;
constexpr std::uint32_t kBlockBytes = 512;

// What was written to one block, by numbers that grow: never less than `durable`, never more than `sent`.
struct Block {
  std::uint64_t sent = 0;     // the last that the host was asked for
  std::uint64_t done = 0;     // and told of
  std::uint64_t durable = 0;  // and flushed, or had with FUA
};

// The image's blocks and the log of what was asked for and answered, from one power failure to the next.
class WriteLog {
 public:
  explicit WriteLog(std::uint32_t blocks) : blocks_(blocks) {}

  [[nodiscard]] std::vector<std::byte> sent(std::uint32_t first, std::uint32_t count, std::uint64_t number) {
    std::vector<std::byte> bytes;
    for (std::uint32_t block = first; block < first + count; ++block) {
      blocks_[block].sent = number;
      const std::vector<std::byte> content = content_of(block, number);
      bytes.insert(bytes.end(), content.begin(), content.end());
    }
    return bytes;
  }
  void done(std::uint32_t first, std::uint32_t count, std::uint64_t number, bool durable) {
    for (std::uint32_t block = first; block < first + count; ++block) {
      blocks_[block].done = number;
      if (durable) blocks_[block].durable = number;
    }
  }
  // What a flush that begins now promises, and that it has ended well.
  [[nodiscard]] std::vector<std::uint64_t> promised() const {
    std::vector<std::uint64_t> numbers;
    for (const Block& block : blocks_) numbers.push_back(block.done);
    return numbers;
  }
  void kept(const std::vector<std::uint64_t>& numbers) {
    for (std::size_t i = 0; i < blocks_.size(); ++i)
      blocks_[i].durable = std::max(blocks_[i].durable, numbers[i]);
  }

  // Compares an image, and goes on from what it holds. How many blocks hold what nobody was told of.
  std::uint32_t check(const std::string& path) {
    std::ifstream image(path, std::ios::binary);
    std::vector<std::byte> found(kBlockBytes);
    std::uint32_t ahead = 0;
    for (std::uint32_t i = 0; i < blocks_.size(); ++i) {
      Block& block = blocks_[i];
      image.read(reinterpret_cast<char*>(found.data()), kBlockBytes);
      std::uint64_t number = block.durable;
      while (number <= block.sent && found != content_of(i, number)) ++number;
      INFO("block " << i << ": durable " << block.durable << ", done " << block.done << ", sent "
                    << block.sent);
      REQUIRE(number <= block.sent);
      ahead += number > block.done ? 1 : 0;
      block = {number, number, number};
    }
    return ahead;
  }

 private:
  // 0: the image as it was made.
  static std::vector<std::byte> content_of(std::uint32_t block, std::uint64_t number) {
    std::vector<std::byte> bytes(kBlockBytes, std::byte{'i'});
    if (number == 0) return bytes;
    const std::uint64_t word = std::uint64_t{block} << 40 ^ number;
    for (std::size_t at = 0; at < kBlockBytes; at += sizeof word) std::memcpy(&bytes[at], &word, sizeof word);
    return bytes;
  }

  std::vector<Block> blocks_;
};

// Writes, some with FUA, and flushes, many at a time. Each writer has blocks of its own, so that writes to
// one block follow each other.
class Writers {
 public:
  static constexpr std::uint32_t kCount = 15;
  static constexpr std::uint32_t kBlocks = 16;  // of one writer, and at most of one write
  static constexpr std::uint32_t kDepth = kCount + 1;

  Writers(guest::ChildPartition& child, WriteLog& log, std::uint64_t& number, std::mt19937& random)
      : driver_(child, {.depth = kDepth}), log_(log), number_(number), random_(random) {
    for (std::uint32_t i = 0; i < kCount; ++i) {
      writers_[i].first = i * kBlocks;
      writers_[i].pages = must(child.ram().take(kBlocks * kBlockBytes / 4096));
      write(writers_[i]);
    }
    flush();
    must(driver_.stor->flush());
  }

  // Until the host has answered so many.
  void run(std::uint32_t answers) {
    while (answered_ < answers) {
      const std::uint32_t count =
          must(driver_.stor->poll([&](const guest::StorCompletion& completion) { take(completion); }));
      must(driver_.stor->flush());
      if (count == 0) static_cast<void>(must(driver_.stor->wait()));
    }
  }
  // What was answered before the end, and not yet heard of.
  void hear_the_rest() {
    ended_ = true;
    // The rings outlast the host; what it had begun to write need not make sense.
    static_cast<void>(driver_.stor->poll([&](const guest::StorCompletion& completion) { take(completion); }));
  }

 private:
  struct Writer {
    guest::Pages pages;
    std::uint32_t first = 0;  // of its blocks
    std::uint32_t begin = 0;  // of its write
    std::uint32_t count = 0;
    std::uint64_t number = 0;
    bool fua = false;
  };

  void take(const guest::StorCompletion& completion) {
    ++answered_;
    REQUIRE(guest::succeeded(completion.packet));
    if (completion.id == flush_id_) {
      log_.kept(promised_);
      if (!ended_) flush();
      return;
    }
    Writer& writer = *by_id_.at(completion.id);
    by_id_.erase(completion.id);
    log_.done(writer.begin, writer.count, writer.number, writer.fua);
    if (!ended_) write(writer);
  }

  void write(Writer& writer) {
    writer.count = below(kBlocks) + 1;
    writer.begin = writer.first + below(kBlocks - writer.count + 1);
    writer.number = ++number_;
    writer.fua = below(4) == 0;
    writer.pages.write(0, log_.sent(writer.begin, writer.count, writer.number));
    guest::StorCommand command =
        guest::block_command(guest::scsi::Opcode::kWrite16, writer.begin, writer.count);
    constexpr std::uint8_t kFua = 0x08;
    if (writer.fua) command.cdb[1] = kFua;
    command.pages = writer.pages.gpns();
    command.bytes = writer.count * kBlockBytes;
    by_id_[submitted(command)] = &writer;
  }

  void flush() {
    promised_ = log_.promised();
    guest::StorCommand command;
    command.cdb[0] = static_cast<std::uint8_t>(guest::scsi::Opcode::kSynchronizeCache16);
    flush_id_ = submitted(command);
  }

  std::uint64_t submitted(const guest::StorCommand& command) {
    const std::optional<std::uint64_t> id = must(driver_.stor->submit(command));
    REQUIRE(id.has_value());
    return *id;
  }
  std::uint32_t below(std::uint32_t bound) {
    return std::uniform_int_distribution<std::uint32_t>(0, bound - 1)(random_);
  }

  guest::Driver driver_;
  WriteLog& log_;
  std::uint64_t& number_;
  std::mt19937& random_;
  std::array<Writer, kCount> writers_;
  std::map<std::uint64_t, Writer*> by_id_;  // those whose write is in flight
  std::uint64_t flush_id_ = 0;
  std::vector<std::uint64_t> promised_;  // by that flush
  std::uint32_t answered_ = 0;
  bool ended_ = false;
};

class DiskHost {
 public:
  DiskHost() { std::ofstream(directory_.path("d.img")) << std::string(guest::kImageBytes, 'i'); }

  [[nodiscard]] std::unique_ptr<RunningDaemon> start() const {
    auto daemon = std::make_unique<RunningDaemon>(
        directory_,
        "[[partition]]\nname = 'demo'\nsocket = 'demo.sock'\n[[partition.scsi]]\nname = 'scsi0'\n"
        "[[partition.scsi.disk]]\nlun = 0\npath = 'd.img'\nreservations = 'd.reservations'\n");
    const bool ready = daemon->wait_until_ready();
    INFO(daemon->log());
    REQUIRE(ready);
    return daemon;
  }
  [[nodiscard]] std::unique_ptr<guest::ChildPartition> attach() const {
    std::string error_text;
    auto child = guest::ChildPartition::attach({.socket_path = directory_.path("demo.sock")}, error_text);
    INFO(error_text);
    return must(std::move(child));
  }
  [[nodiscard]] std::string image() const { return directory_.path("d.img"); }
  // Nobody holds a lock on it: the last of the processes that had it open is gone.
  [[nodiscard]] bool image_is_free() const {
    const UniqueFd fd(::open(image().c_str(), O_RDWR | O_CLOEXEC));
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    return fd && ::fcntl(fd.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
  }

 private:
  TemporaryDirectory directory_;
};

// The worker process first, so that nobody has the time to follow it. Returns when nothing of either is left:
// of a process that is a zombie threads may be left.
void cut_power(RunningDaemon& daemon, const DiskHost& host) {
  const pid_t worker = daemon.worker_pid();
  REQUIRE(worker > 0);
  REQUIRE(::kill(worker, SIGKILL) == 0);
  daemon.signal(SIGKILL);
  REQUIRE(daemon.wait());
  REQUIRE(eventually([&] { return !is_alive(worker) && host.image_is_free(); }));
}

TEST_CASE("after each of many power failures the image holds what was durable", "[daemon][power]") {
  const DiskHost host;
  const std::uint32_t seed = std::random_device()();
  INFO("seed " << seed);
  std::mt19937 random(seed);
  WriteLog log(Writers::kCount * Writers::kBlocks);
  std::uint64_t number = 0;
  std::uint32_t ahead = 0;
  for (int cut = 0; cut < kCuts; ++cut) {
    INFO("failure " << cut);
    const auto daemon = host.start();
    const auto child = host.attach();
    Writers writers(*child, log, number, random);
    writers.run(std::uniform_int_distribution<std::uint32_t>(1, 400)(random));
    cut_power(*daemon, host);
    writers.hear_the_rest();
    ahead += log.check(host.image());
  }
  // The failures came in the middle of writes, some of which had reached the image without an answer.
  INFO(number << " writes, " << ahead << " blocks ahead of their answers");
  CHECK(number > std::uint64_t{kCuts} * Writers::kCount);
}

// PERSISTENT RESERVE OUT by `action`, with APTPL.
void reserve(guest::Driver& driver, guest::ChildPartition& child, guest::scsi::ReserveOut action,
             std::uint64_t key, std::uint64_t service_key) {
  const guest::Pages pages = must(child.ram().take(1));
  guest::scsi::ReserveOutList list{};
  list.key = key;
  list.service_key = service_key;
  list.flags = guest::scsi::kReserveOutPersist;
  pages.write(0, wire_bytes(list));
  guest::StorCommand command;
  command.cdb = {static_cast<std::uint8_t>(guest::scsi::Opcode::kPersistentReserveOut),
                 static_cast<std::uint8_t>(action),
                 1,
                 0,
                 0,
                 0,
                 0,
                 0,
                 sizeof list};
  command.direction = guest::vstor::DataIn::kWrite;
  command.pages = pages.gpns();
  command.bytes = sizeof list;
  REQUIRE(guest::succeeded(must(driver.stor->execute(command))));
}

TEST_CASE("a reservation that is to be kept outlasts a power failure", "[daemon][power]") {
  using guest::scsi::ReserveOut;
  constexpr std::uint64_t kKey = 0x1122334455667788;
  const DiskHost host;
  {
    const auto daemon = host.start();
    const auto child = host.attach();
    guest::Driver driver(*child);
    reserve(driver, *child, ReserveOut::kRegister, 0, kKey);
    reserve(driver, *child, ReserveOut::kReserve, kKey, 0);
    cut_power(*daemon, host);
  }
  const auto daemon = host.start();
  const auto child = host.attach();
  guest::Driver driver(*child);
  // Only who is registered by that key can release what is held.
  reserve(driver, *child, ReserveOut::kRelease, kKey, 0);
  reserve(driver, *child, ReserveOut::kRegister, kKey, 0);
}

}  // namespace
}  // namespace vmbusd::daemon
