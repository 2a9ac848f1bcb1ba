#include "guest/disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace vmbusd::guest {
namespace {

void store_big_endian(std::span<std::uint8_t> to, std::uint64_t value) {
  for (std::size_t i = to.size(); i > 0; --i) {
    to[i - 1] = static_cast<std::uint8_t>(value);
    value >>= 8;
  }
}

StorCommand make_command(scsi::Opcode opcode, std::uint8_t cdb_length, std::uint8_t lun) {
  StorCommand command;
  command.cdb[0] = static_cast<std::uint8_t>(opcode);
  command.cdb_length = cdb_length;
  command.lun = lun;
  return command;
}

}  // namespace

StorCommand block_command(scsi::Opcode opcode, std::uint64_t lba, std::uint32_t blocks, std::uint8_t lun) {
  StorCommand command = make_command(opcode, 16, lun);
  store_big_endian(std::span(command.cdb).subspan(2, 8), lba);
  store_big_endian(std::span(command.cdb).subspan(10, 4), blocks);
  command.direction = opcode == scsi::Opcode::kRead16 ? vstor::DataIn::kRead : vstor::DataIn::kWrite;
  return command;
}

bool succeeded(const vstor::SrbPacket& packet) {
  return packet.srb.srb_status == static_cast<std::uint8_t>(vstor::SrbStatus::kSuccess) &&
         packet.srb.scsi_status == static_cast<std::uint8_t>(scsi::Status::kGood);
}

std::optional<Sense> sense_of(const vstor::SrbPacket& packet) {
  scsi::FixedSense sense;
  if ((packet.srb.srb_status & vstor::kSrbAutosenseValid) == 0 ||
      packet.srb.sense_info_length < sizeof sense) {
    return std::nullopt;
  }
  std::memcpy(&sense, packet.srb.cdb_or_sense.data(), sizeof sense);
  return Sense{static_cast<scsi::SenseKey>(sense.flags_and_key & 0xf),
               static_cast<scsi::Asc>(sense.asc << 8 | sense.ascq)};
}

Result<void> Disk::ready() {
  return run(make_command(scsi::Opcode::kTestUnitReady, 6, lun_), {}, {});
}

Result<Disk::Capacity> Disk::capacity() {
  StorCommand command = make_command(scsi::Opcode::kServiceActionIn16, 16, lun_);
  scsi::ReadCapacity16Data data{};
  command.cdb[1] = scsi::kReadCapacity16;
  store_big_endian(std::span(command.cdb).subspan(10, 4), sizeof data);
  command.direction = vstor::DataIn::kRead;
  VMBUSD_CHECK(run(command, {}, wire_bytes_writable(data)));
  block_bytes_ = data.block_length;
  return Capacity{data.last_lba + 1, data.block_length};
}

Result<scsi::InquiryData> Disk::inquiry() {
  StorCommand command = make_command(scsi::Opcode::kInquiry, 6, lun_);
  scsi::InquiryData data{};
  command.cdb[4] = sizeof data;
  command.direction = vstor::DataIn::kRead;
  VMBUSD_CHECK(run(command, {}, wire_bytes_writable(data)));
  return data;
}

Result<void> Disk::read(std::uint64_t offset, std::span<std::byte> into) {
  if (block_bytes_ == 0) VMBUSD_CHECK(capacity());
  while (!into.empty()) {
    const std::size_t bytes = std::min<std::size_t>(into.size(), transfer_bytes_max());
    VMBUSD_CHECK(run(block_command(scsi::Opcode::kRead16, offset / block_bytes_,
                                   static_cast<std::uint32_t>(bytes / block_bytes_), lun_),
                     {}, into.first(bytes)));
    into = into.subspan(bytes);
    offset += bytes;
  }
  return {};
}

Result<void> Disk::write(std::uint64_t offset, std::span<const std::byte> from) {
  if (block_bytes_ == 0) VMBUSD_CHECK(capacity());
  while (!from.empty()) {
    const std::size_t bytes = std::min<std::size_t>(from.size(), transfer_bytes_max());
    VMBUSD_CHECK(run(block_command(scsi::Opcode::kWrite16, offset / block_bytes_,
                                   static_cast<std::uint32_t>(bytes / block_bytes_), lun_),
                     from.first(bytes), {}));
    from = from.subspan(bytes);
    offset += bytes;
  }
  return {};
}

Result<void> Disk::flush() {
  return run(make_command(scsi::Opcode::kSynchronizeCache10, 10, lun_), {}, {});
}

std::uint32_t Disk::transfer_bytes_max() const {
  return client_.properties().max_transfer_bytes / kPageSize * kPageSize;
}

Result<void> Disk::run(StorCommand command, std::span<const std::byte> out, std::span<std::byte> in) {
  const std::size_t bytes = std::max(out.size(), in.size());
  Pages buffer;
  if (bytes != 0) {
    VMBUSD_TRY(buffer, client_.channel().ram().take((bytes + kPageSize - 1) / kPageSize, layout_));
    buffer.write(0, out);
  }
  command.pages = buffer.gpns();
  command.bytes = static_cast<std::uint32_t>(bytes);
  Result<vstor::SrbPacket> packet = client_.execute(command);
  // A unit attention keeps the command from being performed, once. [linux: scsi_check_sense]
  if (packet && sense_of(*packet) && sense_of(*packet)->key == scsi::SenseKey::kUnitAttention) {
    packet = client_.execute(command);
  }
  // Without a completion the host may still use the pages.
  if (!packet) buffer.abandon();
  VMBUSD_CHECK(packet);
  last_sense_ = sense_of(*packet);
  if (!succeeded(*packet)) return fail_os(EIO, "the disk reports an error");
  const std::size_t moved = std::min<std::size_t>(packet->srb.data_transfer_length, in.size());
  buffer.read(0, in.first(moved));
  return {};
}

}  // namespace vmbusd::guest
