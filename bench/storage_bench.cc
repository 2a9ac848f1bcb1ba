#include "bench/storage_bench.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <optional>
#include <random>
#include <thread>

#include <fmt/format.h>

#include "base/fd.h"
#include "bench/running_host.h"
#include "guest/disk.h"
#include "guest/guest_channel.h"
#include "guest/stor_client.h"

namespace vmbusd::bench {
namespace {

namespace vstor = storvsp::vstor;

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kFileBytes = 256u << 20;
constexpr std::uint32_t kRingPages = 128;
constexpr std::uint8_t kFileLun = 0;
constexpr std::uint8_t kNullLun = 1;

struct Run {
  double iops = 0;
  double latency_us = 0;
  // Of the partition worker, by I/O.
  double system_calls = -1;  // negative: not counted
  double cpu_us = 0;
  double doorbells = 0;
  double interrupts = 0;
  // Of the rings, packets with their descriptors and trailers.
  double bytes_to_host = 0;
  double bytes_from_host = 0;
};

// Random reads on one channel, `depth` in flight, for so long.
class Reader {
 public:
  [[nodiscard]] static Result<std::unique_ptr<Reader>> make(RunningHost& host,
                                                            const vmbus::OfferChannel& offer,
                                                            std::uint32_t target_vp, std::uint32_t depth,
                                                            std::uint32_t block_bytes) {
    std::unique_ptr<Reader> reader(new Reader(host, target_vp, block_bytes));
    VMBUSD_TRY(reader->channel_,
               guest::GuestChannel::open(
                   host.bus(), offer,
                   {.to_host_pages = kRingPages, .from_host_pages = kRingPages, .target_vp = target_vp}));
    reader->client_ = std::make_unique<guest::StorClient>(*reader->channel_, depth);
    const std::size_t pages = block_bytes / guest::kPageSize;
    for (std::uint32_t i = 0; i < depth; ++i) {
      VMBUSD_TRY(guest::Pages buffer, host.child().ram().take(pages));
      reader->buffers_.push_back(std::move(buffer));
    }
    reader->begun_.resize(depth);
    return reader;
  }

  // Of one run, all of it.
  struct Counted {
    std::uint64_t done = 0;
    std::chrono::nanoseconds waited{0};
    std::uint64_t doorbells = 0;
    std::uint64_t interrupts = 0;
    guest::GuestChannel::RingBytes bytes;
  };
  [[nodiscard]] Result<Counted> run(std::uint8_t lun, Clock::time_point end) {
    guest::VirtualProcessor& vp = host_.child().vp(target_vp_);
    const std::uint64_t doorbells = channel_->doorbells();
    const std::uint64_t interrupts = vp.interrupts();
    const guest::GuestChannel::RingBytes bytes = channel_->ring_bytes();
    Counted counted;
    bool failed = false;
    Clock::time_point now = Clock::now();
    while (now < end || client_->in_flight() != 0) {
      while (now < end && client_->in_flight() < client_->depth()) VMBUSD_CHECK(submit(lun, now));
      VMBUSD_CHECK(client_->flush());
      VMBUSD_TRY(const std::uint32_t polled, client_->poll([&](const guest::StorCompletion& completion) {
        failed |= !guest::succeeded(completion.packet);
        counted.waited += Clock::now() - begun_[completion.id - 1];
        ++counted.done;
      }));
      now = Clock::now();
      if (polled == 0) {
        VMBUSD_CHECK(client_->wait());  // as a driver that goes by interrupts
        now = Clock::now();
      }
    }
    VMBUSD_CHECK(client_->flush());  // what was taken last counts
    if (failed) return fail(Errc::kOs, "a read failed");
    counted.doorbells = channel_->doorbells() - doorbells;
    counted.interrupts = vp.interrupts() - interrupts;
    counted.bytes = {channel_->ring_bytes().to_host - bytes.to_host,
                     channel_->ring_bytes().from_host - bytes.from_host};
    return counted;
  }
  [[nodiscard]] guest::StorClient& client() { return *client_; }
  [[nodiscard]] Result<void> close() { return channel_->close(); }

 private:
  Reader(RunningHost& host, std::uint32_t target_vp, std::uint32_t block_bytes)
      : host_(host), target_vp_(target_vp), block_bytes_(block_bytes) {}

  [[nodiscard]] Result<void> submit(std::uint8_t lun, Clock::time_point now) {
    const std::uint64_t place = random_() % (kFileBytes / block_bytes_);
    guest::StorCommand command = guest::block_command(storvsp::scsi::Opcode::kRead16,
                                                      place * (block_bytes_ / 512), block_bytes_ / 512, lun);
    command.bytes = block_bytes_;
    command.pages = buffers_[next_buffer_].gpns();
    next_buffer_ = (next_buffer_ + 1) % buffers_.size();
    VMBUSD_TRY(const std::optional<std::uint64_t> id, client_->submit(command));
    if (!id) return fail(Errc::kLimit, "the ring is too small for the queue depth");
    begun_[*id - 1] = now;
    return {};
  }

  RunningHost& host_;
  const std::uint32_t target_vp_;
  const std::uint32_t block_bytes_;
  std::unique_ptr<guest::GuestChannel> channel_;
  std::unique_ptr<guest::StorClient> client_;
  std::vector<guest::Pages> buffers_;  // any of them for any command: nobody looks at what is read
  std::size_t next_buffer_ = 0;
  std::vector<Clock::time_point> begun_;  // by command id - 1
  std::mt19937_64 random_{1};
};

using Readers = std::vector<std::unique_ptr<Reader>>;

// One for each channel, each on a VP of its own.
Result<Readers> make_readers(RunningHost& host, std::uint32_t channels, std::uint32_t depth,
                             std::uint32_t block_bytes) {
  const std::vector<vmbus::OfferChannel> offers = host.offers(vmbus::kClassScsi);
  if (offers.empty()) return fail(Errc::kWrongState, "vmbusd offers no controller");
  Readers readers;
  VMBUSD_TRY(std::unique_ptr<Reader> reader, Reader::make(host, offers.front(), 0, depth, block_bytes));
  guest::StorClient& primary = reader->client();
  VMBUSD_CHECK(primary.initialize());
  for (const std::uint8_t lun : {kFileLun, kNullLun}) VMBUSD_CHECK(guest::Disk(primary, lun).ready());
  readers.push_back(std::move(reader));
  if (channels == 1) return readers;
  VMBUSD_TRY(const vstor::Status status,
             primary.create_sub_channels(static_cast<std::uint16_t>(channels - 1)));
  if (status != vstor::Status::kSuccess) return fail(Errc::kWrongState, "vmbusd gives no sub-channels");
  for (std::uint32_t vp = 1; vp < channels; ++vp) {
    VMBUSD_TRY(const vmbus::OfferChannel offer, host.bus().wait_offer());
    VMBUSD_TRY(reader, Reader::make(host, offer, vp, depth, block_bytes));
    readers.push_back(std::move(reader));
  }
  return readers;
}

// All of them for so long, each on a thread of its own.
Result<Run> run(RunningHost& host, const Readers& readers, std::uint8_t lun, double seconds) {
  ProcessCost cost(host.worker());
  const auto begin = Clock::now();
  const auto end =
      begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  std::vector<std::optional<Result<Reader::Counted>>> counts(readers.size());
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 1; i < readers.size(); ++i) {
      threads.emplace_back([&, i] { counts[i].emplace(readers[i]->run(lun, end)); });
    }
    counts[0].emplace(readers[0]->run(lun, end));
  }
  const double elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
  const ProcessCost::Use use = cost.stop();
  Reader::Counted all;
  for (const std::optional<Result<Reader::Counted>>& counted : counts) {
    VMBUSD_CHECK(*counted);
    all.done += (*counted)->done;
    all.waited += (*counted)->waited;
    all.doorbells += (*counted)->doorbells;
    all.interrupts += (*counted)->interrupts;
    all.bytes.to_host += (*counted)->bytes.to_host;
    all.bytes.from_host += (*counted)->bytes.from_host;
  }
  const auto count = static_cast<double>(all.done);
  return Run{.iops = count / elapsed,
             .latency_us = std::chrono::duration<double, std::micro>(all.waited).count() / count,
             .system_calls = use.system_calls ? static_cast<double>(*use.system_calls) / count : -1,
             .cpu_us = use.cpu_seconds * 1e6 / count,
             .doorbells = static_cast<double>(all.doorbells) / count,
             .interrupts = static_cast<double>(all.interrupts) / count,
             .bytes_to_host = static_cast<double>(all.bytes.to_host) / count,
             .bytes_from_host = static_cast<double>(all.bytes.from_host) / count};
}

// fio's own figures for the same; iops 0 where there is no fio.
Run run_fio(const std::string& file, const StorageOptions& options, std::uint32_t block_bytes,
            std::uint32_t depth) {
  const std::string command = fmt::format(
      "fio --name=peer --filename='{}' --ioengine=io_uring --rw=randread --bs={} --iodepth={} --direct={} "
      "--time_based --runtime={} --iodepth_batch_complete_min=1 --iodepth_batch_complete_max={} "
      "--norandommap --numjobs={} --group_reporting "
      "--output-format=json 2>/dev/null",
      file, block_bytes, depth, options.direct ? 1 : 0, options.seconds, depth, options.channels);
  FILE* const pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return {};
  std::string text;
  char part[4096];
  for (std::size_t size = 0; (size = std::fread(part, 1, sizeof part, pipe)) != 0;) text.append(part, size);
  ::pclose(pipe);
  const auto parsed =
      nlohmann::json::parse(text.substr(std::min(text.size(), text.find('{'))), nullptr, false);
  if (parsed.is_discarded()) return {};
  const auto& read = parsed["jobs"][0]["read"];
  return {.iops = read["iops"].get<double>(), .latency_us = read["lat_ns"]["mean"].get<double>() / 1000};
}

nlohmann::json spread_json(const std::vector<Run>& runs, double Run::*member) {
  std::vector<double> values;
  for (const Run& run : runs) values.push_back(run.*member);
  const Spread spread = spread_of(std::move(values));
  return {{"median", spread.median}, {"least", spread.least}, {"most", spread.most}};
}

nlohmann::json row_of(const char* backend, std::uint32_t block_bytes, std::uint32_t depth,
                      const std::vector<Run>& runs) {
  return {{"backend", backend},
          {"bs", block_bytes},
          {"qd", depth},
          {"iops", spread_json(runs, &Run::iops)},
          {"latency_us", spread_json(runs, &Run::latency_us)},
          {"worker_system_calls_per_io", spread_json(runs, &Run::system_calls)["median"]},
          {"worker_cpu_us_per_io", spread_json(runs, &Run::cpu_us)["median"]},
          {"doorbells_per_io", spread_json(runs, &Run::doorbells)["median"]},
          {"interrupts_per_io", spread_json(runs, &Run::interrupts)["median"]},
          {"ring_bytes_to_host_per_io", spread_json(runs, &Run::bytes_to_host)["median"]},
          {"ring_bytes_from_host_per_io", spread_json(runs, &Run::bytes_from_host)["median"]}};
}

void print_row(const nlohmann::json& row) {
  const auto number = [&row](const char* key, const char* part) { return row[key][part].get<double>(); };
  fmt::print("{:6} {:6} {:4} {:10.0f} ({:.0f}..{:.0f}) {:10.1f} ", row["backend"].get<std::string>(),
             row["bs"].get<std::uint32_t>(), row["qd"].get<std::uint32_t>(), number("iops", "median"),
             number("iops", "least"), number("iops", "most"), number("latency_us", "median"));
  fmt::print("{:8.3f} {:8.3f} {:8.3f} {:8.2f}", row["worker_system_calls_per_io"].get<double>(),
             row["doorbells_per_io"].get<double>(), row["interrupts_per_io"].get<double>(),
             row["worker_cpu_us_per_io"].get<double>());
  if (row.contains("iops_to_fio")) {
    fmt::print("  {:.2f} of fio's IOPS, {:.2f} of its latency", row["iops_to_fio"].get<double>(),
               row["latency_to_fio"].get<double>());
  }
  fmt::print("\n");
  std::fflush(stdout);
}

Result<void> make_file(const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  if (!file) return fail_os(errno, "cannot make the file to measure on");
  const std::vector<char> block(1 << 20, 'b');
  for (std::uint64_t at = 0; at < kFileBytes; at += block.size()) {
    if (::write(file.get(), block.data(), block.size()) != static_cast<ssize_t>(block.size())) {
      return fail_os(errno, "cannot fill the file to measure on");
    }
  }
  ::fsync(file.get());
  return {};
}

}  // namespace

Result<nlohmann::json> measure_storage(const StorageOptions& options, bool quiet) {
  const TemporaryDirectory directory(options.directory);
  if (directory.path().empty()) return fail_os(errno, "cannot make a folder for the file to measure on");
  const std::string file = directory.path() + "/disk.img";
  VMBUSD_CHECK(make_file(file));
  VMBUSD_TRY(const std::unique_ptr<RunningHost> host,
             RunningHost::start(
                 {.vmbusd = options.vmbusd,
                  .devices = fmt::format("poll_us = {}\n[[partition.scsi]]\nname = 'scsi0'\nchannels = {}\n"
                                         "[[partition.scsi.disk]]\nlun = {}\npath = '{}'\n"
                                         "direct = '{}'\n[[partition.scsi.disk]]\nlun = {}\n"
                                         "backend = 'null'\nsize = '256M'\n",
                                         options.poll_us, options.channels, kFileLun, file,
                                         options.direct ? "on" : "off", kNullLun),
                  .guest_memory_bytes = options.channels * (128u << 20),
                  .vp_count = options.channels,
                  .halt_poll = std::chrono::microseconds(options.halt_poll_us)}));
  if (!quiet) {
    fmt::print(
        "what       bs   qd    reads/s (least..most)  latency us   by I/O: calls, doorbells, interrupts, "
        "CPU us\n");
  }
  nlohmann::json rows = nlohmann::json::array();
  for (const std::uint32_t block_bytes : options.block_bytes) {
    for (const std::uint32_t depth : options.depths) {
      VMBUSD_TRY(const Readers readers, make_readers(*host, options.channels, depth, block_bytes));
      std::vector<Run> file_runs;
      std::vector<Run> fio_runs;
      std::vector<Run> null_runs;
      for (std::uint32_t round = 0; round < options.rounds; ++round) {
        if (options.file) {
          VMBUSD_TRY(const Run file_run, run(*host, readers, kFileLun, options.seconds));
          file_runs.push_back(file_run);
          fio_runs.push_back(run_fio(file, options, block_bytes, depth));
        }
        if (options.null) {
          VMBUSD_TRY(const Run null_run, run(*host, readers, kNullLun, options.seconds));
          null_runs.push_back(null_run);
        }
      }
      // The primary last: closing it takes its sub-channels back.
      for (auto reader = readers.rbegin(); reader != readers.rend(); ++reader)
        VMBUSD_CHECK((*reader)->close());
      std::vector<nlohmann::json> measured;
      if (options.file) {
        nlohmann::json ours = row_of("file", block_bytes, depth, file_runs);
        const nlohmann::json peer = row_of("fio", block_bytes, depth, fio_runs);
        if (const double fio_iops = peer["iops"]["median"]; fio_iops > 0) {
          ours["iops_to_fio"] = ours["iops"]["median"].get<double>() / fio_iops;
          ours["latency_to_fio"] =
              ours["latency_us"]["median"].get<double>() / peer["latency_us"]["median"].get<double>();
        }
        measured = {ours, peer};
      }
      if (options.null) measured.push_back(row_of("null", block_bytes, depth, null_runs));
      for (const nlohmann::json& row : measured) {
        if (!quiet) print_row(row);
        rows.push_back(row);
      }
    }
  }
  return rows;
}

}  // namespace vmbusd::bench
