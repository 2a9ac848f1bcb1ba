#include "storvsp/controller.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "storvsp/file_disk.h"
#include "storvsp/kept_record.h"
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
    if (!disk.read_only && !plan.probe.writable) {
      return fail(Errc::kConfig, "the file or device cannot be written; make the disk read-only");
    }
  } else {
    plan.probe.size_bytes = disk.size_bytes;
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

class Controller final : public devices::Device {
 public:
  Controller(std::string name, const Guid& instance) : name_(std::move(name)), instance_(instance) {}

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
      state_.ready_version.store(0, std::memory_order_relaxed);
      for (ControllerState::Lun& lun : state_.luns) {
        if (lun.unit != nullptr) lun.unit->power_on();
      }
      return std::make_unique<StorChannel>(
          state_, [this, &host](std::uint32_t count) { host.offer_sub_channels(*this, count); });
    }
    // acquire: pairs with the release in StorChannel::receive().
    const std::uint16_t version = state_.ready_version.load(std::memory_order_acquire);
    if (version == 0) return fail(Errc::kWrongState, "a sub-channel opens before its controller is ready");
    return std::make_unique<StorChannel>(state_, version);
  }

  bool can_be_taken_up() const override { return true; }

  void reset() override {
    state_.ready_version.store(0, std::memory_order_relaxed);
    for (ControllerState::Lun& lun : state_.luns) {
      if (lun.unit != nullptr) lun.unit->reset();
    }
  }

  void set_limits(const VstorLimits& limits) { state_.limits = limits; }

  void add(DiskConfig&& disk, const DiskPlan& plan) {
    const std::uint32_t max_transfer = state_.limits.max_transfer_bytes;
    LunOptions options;
    options.identity = make_identity(disk, instance_);
    options.geometry = plan.geometry;
    options.max_transfer_bytes = max_transfer;
    options.read_only = disk.read_only;
    options.write_cache = disk.cache != CacheMode::kWritethrough;
    // The operator's promise, or the lack of one, is not the guest's to change.
    options.write_cache_changeable = disk.cache == CacheMode::kWriteback;
    options.keeps_reservations = static_cast<bool>(disk.reservations);

    ControllerState::Lun& lun = state_.luns[disk.lun];
    lun.unit = std::make_unique<LogicalUnit>(std::move(options));
    KeptRecord kept(std::move(disk.reservations));
    if (const std::optional<PersistentReservation> reserved =
            from_record(kept.bytes(), lun.unit->identity().id)) {
      lun.unit->reservations().set_state(*reserved);
    }
    if (disk.backend == DiskConfig::Backend::kNull) {
      lun.disk = std::make_unique<NullDisk>(plan.geometry);
    } else {
      lun.disk =
          std::make_unique<FileDisk>(std::move(disk.fd), plan.probe, plan.geometry,
                                     FileDisk::Options{.max_transfer_bytes = max_transfer,
                                                       .ignore_flush = disk.cache == CacheMode::kUnsafe,
                                                       .poll = disk.poll,
                                                       .subject = fmt::format("{} LUN {}", name_, disk.lun)},
                                     std::move(kept));
    }
    if (disk.limits.any()) lun.disk = std::make_unique<LimitedDisk>(std::move(lun.disk), disk.limits);
  }
  [[nodiscard]] bool has(std::uint8_t lun) const { return state_.luns[lun].unit != nullptr; }

 private:
  std::string name_;
  Guid instance_;
  ControllerState state_;
};

}  // namespace

Result<void> check_disk(const DiskConfig& disk) {
  VMBUSD_TRY([[maybe_unused]] const DiskPlan plan, plan_disk(disk));
  return {};
}

Result<std::unique_ptr<devices::Device>> make_controller(ControllerConfig config) {
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
  auto controller = std::make_unique<Controller>(config.partition + "/" + config.name, instance);
  controller->set_limits({config.max_transfer_bytes, static_cast<std::uint16_t>(config.channels - 1)});
  for (DiskConfig& disk : config.disks) {
    VMBUSD_TRY(const DiskPlan plan, plan_disk(disk));
    if (controller->has(disk.lun)) return fail(Errc::kConfig, "the LUN is given twice");
    controller->add(std::move(disk), plan);
  }
  return controller;
}

}  // namespace vmbusd::storvsp
