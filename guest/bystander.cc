#include "guest/bystander.h"

#include <algorithm>
#include <array>

namespace vmbusd::guest {

Result<std::unique_ptr<Bystander>> Bystander::attach(const std::string& socket_path, std::uint32_t seed) {
  std::string error_text;
  VMBUSD_TRY(std::unique_ptr<ChildPartition> child,
             ChildPartition::attach({.socket_path = socket_path, .vp_count = 1}, error_text));
  std::unique_ptr<Bystander> bystander(new Bystander(std::move(child), seed));
  VMBUSD_CHECK(bystander->start());
  return bystander;
}

Result<void> Bystander::start() {
  VMBUSD_CHECK(bus_.contact(vmbus::Version::k5_3));
  VMBUSD_TRY(const std::vector<vmbus::OfferChannel> offers, bus_.request_offers());
  const auto offer = std::find_if(offers.begin(), offers.end(), [](const vmbus::OfferChannel& candidate) {
    return candidate.interface_type == vmbus::kClassScsi;
  });
  if (offer == offers.end()) return fail(Errc::kUnsupported, "the partition has no SCSI controller");
  VMBUSD_TRY(channel_, GuestChannel::open(bus_, *offer));
  client_ = std::make_unique<StorClient>(*channel_, 32);
  VMBUSD_CHECK(client_->initialize());
  disk_ = std::make_unique<Disk>(*client_);
  VMBUSD_CHECK(disk_->ready());
  for (std::size_t offset = 0; offset < kBytes; offset += kPieceBytes) VMBUSD_CHECK(write_piece(offset));
  return {};
}

Result<void> Bystander::write_piece(std::size_t offset) {
  const std::span<std::byte> piece = std::span(expected_).subspan(offset, kPieceBytes);
  for (std::byte& byte : piece) byte = static_cast<std::byte>(random_());
  ++commands_;
  return disk_->write(offset, piece);
}

Result<void> Bystander::read_piece(std::size_t offset) {
  std::array<std::byte, kPieceBytes> found;
  ++commands_;
  VMBUSD_CHECK(disk_->read(offset, found));
  if (!std::equal(found.begin(), found.end(), expected_.begin() + static_cast<std::ptrdiff_t>(offset))) {
    return fail(Errc::kProtocol, "the disk does not hold what was written");
  }
  return {};
}

Result<void> Bystander::step() {
  const std::size_t offset = random_() % kPieces * kPieceBytes;
  return random_() % 4 == 0 ? write_piece(offset) : read_piece(offset);
}

Result<void> Bystander::check() {
  for (int i = 0; i < 8; ++i) VMBUSD_CHECK(read_piece(random_() % kPieces * kPieceBytes));
  return write_piece(random_() % kPieces * kPieceBytes);
}

Result<void> Bystander::check_all() {
  for (std::size_t offset = 0; offset < kBytes; offset += kPieceBytes) VMBUSD_CHECK(read_piece(offset));
  return {};
}

}  // namespace vmbusd::guest
