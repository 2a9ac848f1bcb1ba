#include "storvsp/controller.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "storvsp/file_disk.h"
#include "storvsp/kept_record.h"
#include "storvsp/nbd_disk.h"
#include "storvsp/null_disk.h"
#include "storvsp/stor_channel.h"

namespace vmbusd::storvsp {
namespace {

static_assert(kMaxLuns == kLunSlots);

constexpr std::uint32_t kPhysicalBlockMax = 65536;
constexpr std::size_t kSerialMax = 36;

// What a DiskConfig and its descriptor come to.
struct DiskPlan {
  DiskGeometry geometry;
  FileProbe probe;  // kFile only
};

bool printable(std::string_view text, std::size_t length_max) {
  return text.size() <= length_max &&
         std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c <= 0x7e; });
}

// An export as if it were a file.
FileProbe probe_export(const NbdExport& found) {
  FileProbe probe;
  probe.size_bytes = found.size_bytes;
  probe.logical_block_bytes = found.block_bytes;
  probe.physical_block_bytes = found.preferred_bytes;
  probe.writable = found.writable;
  probe.rotational = found.rotational;
  probe.discards = found.trims;  // what is left reads as anything
  return probe;
}

Result<DiskPlan> plan_disk(const DiskConfig& disk) {
  if (disk.lun >= kMaxLuns) return fail(Errc::kConfig, "the LUN is out of range (0 to 63)");
  if (!printable(disk.vendor, 8) || !printable(disk.product, 16) || !printable(disk.revision, 4)) {
    return fail(Errc::kConfig,
                "vendor, product and revision are printable ASCII of at most 8, 16 and 4 characters");
  }
  if (!printable(disk.serial, kSerialMax)) {
    return fail(Errc::kConfig, "the serial number is printable ASCII of at most 36 characters");
  }
  DiskPlan plan;
  if (disk.backend == DiskConfig::Backend::kFile) {
    if (!disk.fd) return fail(Errc::kConfig, "the disk has no open file");
    VMBUSD_TRY(plan.probe, probe_file(disk.fd.get()));
  } else if (disk.backend == DiskConfig::Backend::kNbd) {
    plan.probe = probe_export(disk.nbd.found);
  } else {
    plan.probe.writable = true;
    plan.probe.size_bytes = disk.size_bytes;
  }
  if (!disk.read_only && !plan.probe.writable) {
    return fail(Errc::kConfig, "the file, device or export cannot be written; make the disk read-only");
  }

  DiskGeometry& geometry = plan.geometry;
  geometry.rotational = plan.probe.rotational;
  geometry.logical_block_bytes =
      disk.logical_block_bytes != 0 ? disk.logical_block_bytes : plan.probe.logical_block_bytes;
  if (geometry.logical_block_bytes != 512 && geometry.logical_block_bytes != 4096) {
    return fail(Errc::kConfig, "the logical block size is neither 512 nor 4096 bytes");
  }
  if (plan.probe.direct && geometry.logical_block_bytes < plan.probe.logical_block_bytes) {
    return fail(
        Errc::kConfig,
        "O_DIRECT needs larger blocks here; use a logical block size of 4096 or open without O_DIRECT");
  }
  if (disk.backend == DiskConfig::Backend::kNbd &&
      geometry.logical_block_bytes < plan.probe.logical_block_bytes) {
    return fail(Errc::kConfig, "the NBD server needs larger blocks; use a logical block size of 4096");
  }
  geometry.physical_block_bytes = disk.physical_block_bytes;
  if (geometry.physical_block_bytes == 0) {
    const std::uint32_t told = plan.probe.physical_block_bytes;
    const bool usable = std::has_single_bit(told) && told <= kPhysicalBlockMax;
    geometry.physical_block_bytes = std::max(usable ? told : 0, geometry.logical_block_bytes);
  }
  if (!std::has_single_bit(geometry.physical_block_bytes) ||
      geometry.physical_block_bytes > kPhysicalBlockMax ||
      geometry.physical_block_bytes < geometry.logical_block_bytes) {
    return fail(Errc::kConfig,
                "the physical block size is not a power of two from the logical one to 65536 bytes");
  }
  // The rest of an image that is no multiple of the block is not reachable.
  geometry.size_bytes = plan.probe.size_bytes - plan.probe.size_bytes % geometry.logical_block_bytes;
  geometry.discards = plan.probe.discards && disk.discard && !disk.read_only;
  geometry.discard_zeroes = geometry.discards && plan.probe.discard_zeroes;
  if (geometry.size_bytes == 0) return fail(Errc::kConfig, "the disk is smaller than one block");
  return plan;
}

template <std::size_t Size>
std::array<char, Size> padded(std::string_view text) {
  std::array<char, Size> field;
  field.fill(' ');
  std::copy(text.begin(), text.end(), field.begin());
  return field;
}

LunIdentity make_identity(const DiskConfig& disk, const Guid& controller) {
  LunIdentity identity;
  identity.vendor = padded<8>(disk.vendor);
  identity.product = padded<16>(disk.product);
  identity.revision = padded<4>(disk.revision);
  identity.id = disk.identity
                    ? *disk.identity
                    : Guid::derive("vmbusd disk of " + controller.to_string(), std::to_string(disk.lun));
  identity.serial = disk.serial;
  if (identity.serial.empty()) {
    identity.serial = identity.id.to_string();
    std::erase(identity.serial, '-');
  }
  return identity;
}

// A disk, and who waits for the last to let go of it.
struct DiskInUse {
  std::unique_ptr<Disk> disk;
  std::function<void()> gone;

  DiskInUse() = default;
  DiskInUse(const DiskInUse&) = delete;
  DiskInUse& operator=(const DiskInUse&) = delete;
  ~DiskInUse() {
    disk.reset();
    if (gone) gone();
  }
};

class ScsiController final : public Controller {
 public:
  ScsiController(std::string name, const Guid& instance, std::uint64_t incarnation)
      : name_(std::move(name)), instance_(instance), incarnation_(incarnation) {}

  const std::string& name() const override { return name_; }

  vmbus::Offer offer() const override {
    vmbus::Offer offer;
    offer.interface_type = vstor::kScsiControllerClass;
    offer.instance = instance_;
    return offer;
  }

  Result<std::unique_ptr<devices::ChannelHandler>> open(std::uint32_t sub_channel_index,
                                                        devices::DeviceHost& host,
                                                        io::Worker& /*worker*/) override {
    if (sub_channel_index == 0) {
      state_->ready_version.store(0, std::memory_order_relaxed);
      for (ControllerState::Lun& lun : state_->luns) {
        if (lun.unit != nullptr) lun.unit->power_on();
      }
      return std::make_unique<StorChannel>(
          *state_, [this, &host](std::uint32_t count) { host.offer_sub_channels(*this, count); });
    }
    // acquire: pairs with the release in StorChannel::receive().
    const std::uint16_t version = state_->ready_version.load(std::memory_order_acquire);
    if (version == 0) return fail(Errc::kWrongState, "a sub-channel opens before its controller is ready");
    return std::make_unique<StorChannel>(*state_, version);
  }

  bool can_be_taken_up() const override { return true; }
  std::uint64_t incarnation() const override { return incarnation_; }

  void reset() override {
    state_->ready_version.store(0, std::memory_order_relaxed);
    state_->region.reset();  // may be another channel's in the next connection
    for (ControllerState::Lun& lun : state_->luns) {
      if (lun.unit != nullptr) lun.unit->reset();
    }
  }

  Result<void> add_disk(DiskConfig disk, const Threads& threads) override {
    VMBUSD_TRY(const DiskPlan plan, plan_disk(disk));
    const std::uint8_t lun = disk.lun;
    const ControllerState::Lun& there = state_->luns[lun];
    if (there.leaving) return fail(Errc::kWrongState, "the LUN's last disk is still being removed");
    if (there.disk != nullptr) return fail(Errc::kConfig, "the LUN is given twice");
    Made made = make(std::move(disk), plan);
    made.lun.unit->power_on();
    io::park_all(threads.workers, [&] {
      in_use_[lun] = std::move(made.in_use);
      state_->luns[lun] = std::move(made.lun);
      luns_changed(*state_);
    });
    // All serve it before the guest hears of it: it may ask on any.
    tell_channels(
        state_, threads.control, [lun](StorChannel& channel) { channel.add_lun(lun); },
        [state = state_, &control = threads.control] {
          tell_channels(state, control, [](StorChannel& channel) { channel.tell_guest_of_luns(); });
        });
    return {};
  }

  // Three rounds: no channel begins anything and all have ended what they had; all let go of the disk; it
  // goes.
  Result<void> remove_disk(std::uint8_t lun, const Threads& threads, std::function<void()> done) override {
    if (lun >= kMaxLuns || !state_->luns[lun].served()) return fail(Errc::kConfig, "there is no such disk");
    std::weak_ptr<DiskInUse> in_use = std::exchange(in_use_[lun], {});
    io::park_all(threads.workers, [&] { state_->luns[lun].leaving = true; });
    // The controller may be gone by then, its channels' state not.
    std::vector<io::Worker*> workers(threads.workers.begin(), threads.workers.end());
    auto& control = threads.control;
    state_->channels.meet(
        control,
        [lun](StorChannel& channel, const std::shared_ptr<Barrier>& barrier) {
          channel.stop_lun(lun, barrier);
        },
        [state = state_, lun, workers = std::move(workers), &control, in_use = std::move(in_use),
         done = std::move(done)]() mutable {
          state->channels.meet(
              control,
              [state, lun](StorChannel& channel, const std::shared_ptr<Barrier>& barrier) {
                channel.drop_lun(lun);
                barrier->arrive(&channel);
              },
              [state, lun, workers = std::move(workers), &control, in_use = std::move(in_use),
               done = std::move(done)] {
                ControllerState::Lun gone;
                io::park_all(workers, [&] {
                  gone = std::exchange(state->luns[lun], {});
                  luns_changed(*state);
                });
                tell_channels(state, control, [](StorChannel& channel) { channel.tell_guest_of_luns(); });
                in_use.lock()->gone = [&control, done] { control.post(done); };  // `gone` has it still
              });
        });
    return {};
  }

  Result<void> grow_disk(std::uint8_t lun, std::uint64_t size_bytes, const Threads& threads) override {
    if (lun >= kMaxLuns || !state_->luns[lun].served()) return fail(Errc::kConfig, "there is no such disk");
    const ControllerState::Lun& grown = state_->luns[lun];
    const DiskGeometry& geometry = grown.unit->geometry();
    const std::uint64_t usable = size_bytes - size_bytes % geometry.logical_block_bytes;
    if (usable < geometry.size_bytes) return fail(Errc::kConfig, "a disk does not shrink under its guest");
    if (usable == geometry.size_bytes) return {};
    io::park_all(threads.workers, [&] {
      grown.disk->grow(usable);
      grown.unit->grow(usable);
      record(*state_, lun);
      if (state_->region != nullptr) ++state_->record().notices_due;
    });
    // Linux asks each disk whether it is ready then, and hears of the capacity. [linux: storvsc_drv.c,
    // storvsc_host_scan] One without I/O would learn of it late.
    tell_channels(threads, [](StorChannel& channel) { channel.tell_guest_of_luns(); });
    return {};
  }

  Result<void> limit_disk(std::uint8_t lun, const DiskLimits& limits, const Threads& threads) override {
    if (lun >= kMaxLuns || !state_->luns[lun].served()) return fail(Errc::kConfig, "there is no such disk");
    ControllerState::Lun& limited = state_->luns[lun];
    if (limited.limited == nullptr && !limits.any()) return {};
    io::park_all(threads.workers, [&] {
      if (limited.limited == nullptr) {
        limit(limited, limits);
      } else {
        limited.limited->set_limits(limits);
      }
    });
    tell_channels(threads, [lun](StorChannel& channel) { channel.limit_lun(lun); });
    return {};
  }

  void set_limits(const VstorLimits& limits) { state_->limits = limits; }

  void add(DiskConfig&& disk, const DiskPlan& plan) {
    const std::uint8_t lun = disk.lun;
    Made made = make(std::move(disk), plan);
    in_use_[lun] = std::move(made.in_use);
    state_->luns[lun] = std::move(made.lun);
  }
  [[nodiscard]] bool has(std::uint8_t lun) const { return state_->luns[lun].unit != nullptr; }

 private:
  struct Made {
    std::weak_ptr<DiskInUse> in_use;
    ControllerState::Lun lun;
  };

  [[nodiscard]] Made make(DiskConfig&& disk, const DiskPlan& plan) const {
    const std::uint32_t max_transfer = state_->limits.max_transfer_bytes;
    LunOptions options;
    options.identity = make_identity(disk, instance_);
    options.geometry = plan.geometry;
    options.max_transfer_bytes = max_transfer;
    options.read_only = disk.read_only;
    options.write_cache = disk.cache != CacheMode::kWritethrough;
    // The operator's promise, or the lack of one, is not the guest's to change.
    options.write_cache_changeable = disk.cache == CacheMode::kWriteback;
    if (disk.backend == DiskConfig::Backend::kNbd && !disk.nbd.found.flushes) {
      // Nobody could empty it.
      options.write_cache = options.write_cache_changeable = false;
    }
    options.keeps_reservations = static_cast<bool>(disk.reservations);
    options.incarnation = disk.incarnation;

    const auto in_use = std::make_shared<DiskInUse>();
    Made made;
    made.in_use = in_use;
    ControllerState::Lun& lun = made.lun;
    lun.unit = std::make_unique<LogicalUnit>(std::move(options));
    lun.medium = {plan.probe.device, plan.probe.inode, 0};
    KeptRecord kept(std::move(disk.reservations));
    if (const std::optional<PersistentReservation> reserved =
            from_record(kept.bytes(), lun.unit->identity().id)) {
      lun.unit->reservations().set_state(*reserved);
    }
    if (disk.backend == DiskConfig::Backend::kNull) {
      in_use->disk = std::make_unique<NullDisk>(plan.geometry);
    } else if (disk.backend == DiskConfig::Backend::kNbd) {
      in_use->disk =
          std::make_unique<NbdDisk>(std::move(disk.nbd_connection), plan.geometry,
                                    NbdDisk::Options{max_transfer, disk.cache == CacheMode::kUnsafe});
    } else {
      in_use->disk =
          std::make_unique<FileDisk>(std::move(disk.fd), plan.probe, plan.geometry,
                                     FileDisk::Options{.max_transfer_bytes = max_transfer,
                                                       .ignore_flush = disk.cache == CacheMode::kUnsafe,
                                                       .poll = disk.poll,
                                                       .subject = fmt::format("{} LUN {}", name_, disk.lun)},
                                     std::move(kept));
    }
    lun.disk = std::shared_ptr<Disk>(in_use, in_use->disk.get());
    if (disk.limits.any()) limit(lun, disk.limits);
    return made;
  }

  static void limit(ControllerState::Lun& lun, const DiskLimits& limits) {
    auto limited = std::make_shared<LimitedDisk>(std::move(lun.disk), limits);
    lun.limited = limited.get();
    lun.disk = std::move(limited);
  }

  // Has it known to a worker process that takes the guest up. All workers being parked; so the next.
  static void record(const ControllerState& state, std::uint8_t lun) {
    if (state.region == nullptr) return;
    const ControllerState::Lun& now = state.luns[lun];
    state.lun_records()[lun] = now.served() ? now.unit->save() : LunRecord{};
    state.record().media[lun] = now.medium_served();
  }

  static void luns_changed(const ControllerState& state) {
    for (std::uint8_t lun = 0; lun < kMaxLuns; ++lun) {
      if (state.luns[lun].served()) state.luns[lun].unit->raise(UnitAttention::kReportedLunsChanged);
      record(state, lun);
    }
    if (state.region != nullptr) ++state.record().notices_due;
  }

  static void tell_channels(
      const std::shared_ptr<ControllerState>& state, io::Worker& control, const ChannelSet::Visit& tell,
      std::function<void()> done = [] {}) {
    state->channels.meet(
        control,
        [state, tell](StorChannel& channel, const std::shared_ptr<Barrier>& barrier) {
          tell(channel);
          barrier->arrive(&channel);
        },
        std::move(done));
  }
  void tell_channels(const Threads& threads, const ChannelSet::Visit& tell) const {
    tell_channels(state_, threads.control, tell);
  }

  std::string name_;
  Guid instance_;
  std::uint64_t incarnation_;
  // Shared with what has been asked of its channels.
  std::shared_ptr<ControllerState> state_ = std::make_shared<ControllerState>();
  std::array<std::weak_ptr<DiskInUse>, kMaxLuns> in_use_;  // state_->luns
};

}  // namespace

Result<void> check_disk(const DiskConfig& disk) {
  VMBUSD_TRY([[maybe_unused]] const DiskPlan plan, plan_disk(disk));
  return {};
}

Result<std::unique_ptr<Controller>> make_controller(ControllerConfig config) {
  if (config.max_transfer_bytes % 4096 != 0 || config.max_transfer_bytes == 0 ||
      config.max_transfer_bytes > kMaxTransferBytes) {
    return fail(Errc::kConfig, "the transfer limit is not a multiple of 4096 from 4096 to 8388608 bytes");
  }
  if (config.channels == 0 || config.channels > kMaxChannels) {
    return fail(Errc::kConfig, "the number of channels is out of range (1 to 64)");
  }
  const Guid instance = config.instance
                            ? *config.instance
                            : Guid::derive("vmbusd SCSI controller of " + config.partition, config.name);
  auto controller =
      std::make_unique<ScsiController>(config.partition + "/" + config.name, instance, config.incarnation);
  controller->set_limits({config.max_transfer_bytes, static_cast<std::uint16_t>(config.channels - 1)});
  for (DiskConfig& disk : config.disks) {
    VMBUSD_TRY(const DiskPlan plan, plan_disk(disk));
    if (controller->has(disk.lun)) return fail(Errc::kConfig, "the LUN is given twice");
    controller->add(std::move(disk), plan);
  }
  return Result<std::unique_ptr<Controller>>(std::move(controller));
}

}  // namespace vmbusd::storvsp
