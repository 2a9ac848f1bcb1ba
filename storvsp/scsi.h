// SCSI as it stands on the wire: operation codes, status, sense data, parameter data. Big-endian throughout.
// Facts from SPC-4 and SBC-4.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/wire.h"

namespace vmbusd::storvsp::scsi {

enum class Opcode : std::uint8_t {
  kTestUnitReady = 0x00,
  kRequestSense = 0x03,
  kRead6 = 0x08,
  kWrite6 = 0x0a,
  kInquiry = 0x12,
  kModeSelect6 = 0x15,
  kReserve6 = 0x16,
  kRelease6 = 0x17,
  kModeSense6 = 0x1a,
  kStartStopUnit = 0x1b,
  kSendDiagnostic = 0x1d,
  kPreventAllowMediumRemoval = 0x1e,
  kReadCapacity10 = 0x25,
  kRead10 = 0x28,
  kWrite10 = 0x2a,
  kWriteAndVerify10 = 0x2e,
  kVerify10 = 0x2f,
  kSynchronizeCache10 = 0x35,
  kWriteSame10 = 0x41,
  kUnmap = 0x42,
  kLogSense = 0x4d,
  kModeSelect10 = 0x55,
  kReserve10 = 0x56,
  kRelease10 = 0x57,
  kModeSense10 = 0x5a,
  kPersistentReserveIn = 0x5e,
  kPersistentReserveOut = 0x5f,
  kRead16 = 0x88,
  kCompareAndWrite = 0x89,
  kWrite16 = 0x8a,
  kWriteAndVerify16 = 0x8e,
  kVerify16 = 0x8f,
  kSynchronizeCache16 = 0x91,
  kWriteSame16 = 0x93,
  kServiceActionIn16 = 0x9e,
  kReportLuns = 0xa0,
  kMaintenanceIn = 0xa3,
  kRead12 = 0xa8,
  kWrite12 = 0xaa,
  kWriteAndVerify12 = 0xae,
  kVerify12 = 0xaf,
};

// Of kServiceActionIn16.
inline constexpr std::uint8_t kReadCapacity16 = 0x10;
inline constexpr std::uint8_t kGetLbaStatus = 0x12;
// Of kMaintenanceIn.
inline constexpr std::uint8_t kReportOperationCodes = 0x0c;
inline constexpr std::uint8_t kReportTaskManagement = 0x0d;

enum class Status : std::uint8_t {
  kGood = 0x00,
  kCheckCondition = 0x02,
  kBusy = 0x08,
  kReservationConflict = 0x18,
};

enum class SenseKey : std::uint8_t {
  kNoSense = 0x0,
  kNotReady = 0x2,
  kMediumError = 0x3,
  kHardwareError = 0x4,
  kIllegalRequest = 0x5,
  kUnitAttention = 0x6,
  kDataProtect = 0x7,
  kAbortedCommand = 0xb,
  kMiscompare = 0xe,
};

// Additional sense code << 8 | qualifier. [SPC-4: ASC and ASCQ assignments]
enum class Asc : std::uint16_t {
  kNone = 0x0000,
  kInitializingCommandRequired = 0x0402,
  kWriteError = 0x0c00,
  kUnrecoveredReadError = 0x1100,
  kParameterListLengthError = 0x1a00,
  kMiscompareDuringVerify = 0x1d00,
  kInvalidCommandOperationCode = 0x2000,
  kLbaOutOfRange = 0x2100,
  kInvalidFieldInCdb = 0x2400,
  kLogicalUnitNotSupported = 0x2500,
  kInvalidFieldInParameterList = 0x2600,
  kInvalidRelease = 0x2604,  // of a persistent reservation
  kWriteProtected = 0x2700,
  kSpaceAllocationFailedWriteProtect = 0x2707,
  kPowerOnOrReset = 0x2900,
  kBusReset = 0x2902,
  kLogicalUnitReset = 0x2903,
  kCapacityDataHasChanged = 0x2a09,
  kSavingParametersNotSupported = 0x3900,
  kReportedLunsDataHasChanged = 0x3f0e,
  kInternalTargetFailure = 0x4400,
};

// [SPC-4: Fixed format sense data]
struct FixedSense {
  std::uint8_t response_code;  // kSenseCurrentFixed
  std::uint8_t obsolete;
  std::uint8_t flags_and_key;  // low nibble: SenseKey
  BigEndian32 information;
  std::uint8_t additional_length;  // bytes behind this one
  BigEndian32 command_specific;
  std::uint8_t asc;
  std::uint8_t ascq;
  std::uint8_t fru;
  std::uint8_t key_specific;  // kSenseSpecificValid and, of ILLEGAL REQUEST, kSenseInCdb, kSenseBitValid, bit
  BigEndian16 field;          // of ILLEGAL REQUEST: byte that is wrong
};
static_assert(kIsWire<FixedSense, 18>);
static_assert(offsetof(FixedSense, flags_and_key) == 2 && offsetof(FixedSense, additional_length) == 7 &&
              offsetof(FixedSense, asc) == 12 && offsetof(FixedSense, ascq) == 13 &&
              offsetof(FixedSense, key_specific) == 15 && offsetof(FixedSense, field) == 16);

inline constexpr std::uint8_t kSenseCurrentFixed = 0x70;
inline constexpr std::uint8_t kSenseCurrentDescriptor = 0x72;
inline constexpr std::uint8_t kSenseInformationValid = 0x80;  // of response_code
inline constexpr std::uint8_t kSenseSpecificValid = 0x80;
inline constexpr std::uint8_t kSenseInCdb = 0x40;  // else in the parameter list
inline constexpr std::uint8_t kSenseBitValid = 0x08;

// [SPC-4: Descriptor format sense data] without descriptors.
struct DescriptorSense {
  std::uint8_t response_code;  // kSenseCurrentDescriptor
  std::uint8_t key;
  std::uint8_t asc;
  std::uint8_t ascq;
  std::array<std::uint8_t, 4> others;
};
static_assert(kIsWire<DescriptorSense, 8>);

// [SPC-4: Standard INQUIRY data], with the descriptors that we leave empty.
struct InquiryData {
  std::uint8_t qualifier_and_type;
  std::uint8_t flags1;  // kInquiryRemovable
  std::uint8_t version;
  std::uint8_t flags3_format;
  std::uint8_t additional_length;  // bytes behind this one
  std::uint8_t flags5;
  std::uint8_t flags6;
  std::uint8_t flags7;  // kInquiryCommandQueue
  std::array<char, 8> vendor;
  std::array<char, 16> product;
  std::array<char, 4> revision;
  std::array<std::uint8_t, 22> vendor_specific;
  std::array<BigEndian16, 8> version_descriptors;
  std::array<std::uint8_t, 22> reserved;
};
static_assert(kIsWire<InquiryData, 96>);
static_assert(offsetof(InquiryData, flags7) == 7 && offsetof(InquiryData, vendor) == 8 &&
              offsetof(InquiryData, product) == 16 && offsetof(InquiryData, revision) == 32 &&
              offsetof(InquiryData, version_descriptors) == 58);

inline constexpr std::uint8_t kTypeDirectAccess = 0x00;
inline constexpr std::uint8_t kNoLogicalUnit = 0x7f;  // qualifier 3, type 0x1f
inline constexpr std::uint8_t kVersionSpc3 = 0x05;
// Version descriptors: no version of the standard in particular. [SPC-4: Version descriptor values]
inline constexpr std::uint16_t kStandardSam4 = 0x0080;
inline constexpr std::uint16_t kStandardSpc3 = 0x0300;
inline constexpr std::uint16_t kStandardSbc3 = 0x04c0;
inline constexpr std::uint8_t kInquiryFormat = 0x02;
inline constexpr std::uint8_t kInquiryCommandQueue = 0x02;

enum class VpdPage : std::uint8_t {
  kSupportedPages = 0x00,
  kUnitSerialNumber = 0x80,
  kDeviceIdentification = 0x83,
  kExtendedInquiry = 0x86,
  kBlockLimits = 0xb0,
  kBlockDeviceCharacteristics = 0xb1,
  kLogicalBlockProvisioning = 0xb2,
};

struct VpdHeader {
  std::uint8_t qualifier_and_type;
  VpdPage page;
  BigEndian16 length;  // bytes behind the header
};
static_assert(kIsWire<VpdHeader, 4> && offsetof(VpdHeader, length) == 2);

// [SPC-4: Device Identification VPD page, designation descriptor]
struct DesignatorHeader {
  std::uint8_t code_set;  // protocol identifier in the high nibble
  std::uint8_t type;      // association in bits 5:4
  std::uint8_t reserved;
  std::uint8_t length;
};
static_assert(kIsWire<DesignatorHeader, 4>);
inline constexpr std::uint8_t kCodeSetBinary = 1;
inline constexpr std::uint8_t kDesignatorT10Vendor = 1;
inline constexpr std::uint8_t kDesignatorNaa = 3;

// [SPC-4: Extended INQUIRY Data VPD page]
struct ExtendedInquiryPage {
  VpdHeader header;
  std::uint8_t flags4;
  std::uint8_t flags5;  // kExtendedSimpleTasks
  std::uint8_t flags6;  // kExtendedVolatileCache
  std::array<std::uint8_t, 57> others;
};
static_assert(kIsWire<ExtendedInquiryPage, 64>);
inline constexpr std::uint8_t kExtendedSimpleTasks = 0x01;
inline constexpr std::uint8_t kExtendedVolatileCache = 0x01;

// [SBC-3: Block Limits VPD page]
struct BlockLimitsPage {
  VpdHeader header;
  std::uint8_t flags;                  // kWriteSameNonZero
  std::uint8_t max_compare_and_write;  // blocks
  BigEndian16 optimal_granularity;     // blocks, as are all below
  BigEndian32 max_transfer;            // 0: no limit told
  BigEndian32 optimal_transfer;
  BigEndian32 max_prefetch;
  BigEndian32 max_unmap_blocks;
  BigEndian32 max_unmap_descriptors;
  BigEndian32 optimal_unmap_granularity;
  BigEndian32 unmap_alignment;  // bit 31: valid
  BigEndian64 max_write_same;
  std::array<std::uint8_t, 20> reserved;
};
static_assert(kIsWire<BlockLimitsPage, 64>);
static_assert(offsetof(BlockLimitsPage, optimal_granularity) == 6 &&
              offsetof(BlockLimitsPage, max_transfer) == 8 &&
              offsetof(BlockLimitsPage, max_unmap_blocks) == 20 &&
              offsetof(BlockLimitsPage, unmap_alignment) == 32 &&
              offsetof(BlockLimitsPage, max_write_same) == 36);

inline constexpr std::uint32_t kUnmapAlignmentValid = 0x80000000;
inline constexpr std::uint8_t kWriteSameNonZero = 0x01;  // WRITE SAME of 0 blocks is refused

// [SBC-3: Block Device Characteristics VPD page]
struct BlockCharacteristicsPage {
  VpdHeader header;
  BigEndian16 rotation_rate;  // 0: not told; kNotRotating; else rpm
  std::array<std::uint8_t, 58> reserved;
};
static_assert(kIsWire<BlockCharacteristicsPage, 64>);
inline constexpr std::uint16_t kNotRotating = 1;

// [SBC-3: Logical Block Provisioning VPD page]
struct ProvisioningPage {
  VpdHeader header;
  std::uint8_t threshold_exponent;
  std::uint8_t flags;  // kProvisioning...
  std::uint8_t type;   // 0: fully provisioned; kProvisioningThin
  std::uint8_t reserved;
};
static_assert(kIsWire<ProvisioningPage, 8>);
inline constexpr std::uint8_t kProvisioningUnmap = 0x80;
inline constexpr std::uint8_t kProvisioningWriteSame16 = 0x40;
inline constexpr std::uint8_t kProvisioningWriteSame10 = 0x20;
inline constexpr std::uint8_t kProvisioningReadsZeros = 0x04;  // what is unmapped
inline constexpr std::uint8_t kProvisioningThin = 2;

// [SBC-3: UNMAP command, UNMAP parameter list]
struct UnmapHeader {
  BigEndian16 data_length;         // bytes behind this field
  BigEndian16 descriptors_length;  // bytes behind the header
  BigEndian32 reserved;
};
static_assert(kIsWire<UnmapHeader, 8>);
struct UnmapDescriptor {
  BigEndian64 lba;
  BigEndian32 blocks;
  BigEndian32 reserved;
};
static_assert(kIsWire<UnmapDescriptor, 16> && offsetof(UnmapDescriptor, blocks) == 8);

// [SBC-3: GET LBA STATUS command, parameter data]
struct LbaStatusHeader {
  BigEndian32 data_length;  // bytes behind this field
  BigEndian32 reserved;
};
static_assert(kIsWire<LbaStatusHeader, 8>);
struct LbaStatusDescriptor {
  BigEndian64 lba;
  BigEndian32 blocks;
  std::uint8_t status;  // low nibble: kLbaMapped, kLbaDeallocated
  std::array<std::uint8_t, 3> reserved;
};
static_assert(kIsWire<LbaStatusDescriptor, 16> && offsetof(LbaStatusDescriptor, status) == 12);
inline constexpr std::uint8_t kLbaMapped = 0;
inline constexpr std::uint8_t kLbaDeallocated = 1;

// [SPC-4: REPORT SUPPORTED OPERATION CODES command, all_commands parameter data]
struct CommandDescriptor {
  std::uint8_t opcode;
  std::uint8_t reserved;
  BigEndian16 service_action;
  std::uint8_t reserved2;
  std::uint8_t flags;  // kCommandServiceAction, kCommandTimeouts
  BigEndian16 cdb_length;
};
static_assert(kIsWire<CommandDescriptor, 8> && offsetof(CommandDescriptor, cdb_length) == 6);
inline constexpr std::uint8_t kCommandServiceAction = 0x01;  // the service action is valid
inline constexpr std::uint8_t kCommandTimeouts = 0x02;       // a CommandTimeouts follows

struct CommandTimeouts {
  BigEndian16 length;  // bytes behind this field
  std::uint8_t reserved;
  std::uint8_t command_specific;
  BigEndian32 nominal;  // seconds; 0: not told, so below
  BigEndian32 recommended;
};
static_assert(kIsWire<CommandTimeouts, 12>);

// [SPC-4: REPORT SUPPORTED OPERATION CODES command, one_command parameter data], without the usage data
struct OneCommandHeader {
  std::uint8_t reserved;
  std::uint8_t support;  // kCommandUnsupported, kCommandSupported; bit 7: a CommandTimeouts follows
  BigEndian16 cdb_length;
};
static_assert(kIsWire<OneCommandHeader, 4>);
inline constexpr std::uint8_t kCommandUnsupported = 1;
inline constexpr std::uint8_t kCommandSupported = 3;
inline constexpr std::uint8_t kOneCommandTimeouts = 0x80;

// Service actions of kPersistentReserveIn and kPersistentReserveOut.
enum class ReserveIn : std::uint8_t {
  kReadKeys = 0,
  kReadReservation = 1,
  kReportCapabilities = 2,
  kReadFullStatus = 3,
};
enum class ReserveOut : std::uint8_t {
  kRegister = 0,
  kReserve = 1,
  kRelease = 2,
  kClear = 3,
  kPreempt = 4,
  kPreemptAndAbort = 5,
  kRegisterAndIgnore = 6,
};

// [SPC-4: PERSISTENT RESERVE IN command, parameter data] of all service actions but kReportCapabilities
struct ReserveInHeader {
  BigEndian32 generation;
  BigEndian32 additional_length;  // bytes behind the header
};
static_assert(kIsWire<ReserveInHeader, 8>);
struct ReservationDescriptor {
  BigEndian64 key;
  BigEndian32 obsolete;
  std::uint8_t reserved;
  std::uint8_t scope_and_type;
  BigEndian16 obsolete2;
};
static_assert(kIsWire<ReservationDescriptor, 16> && offsetof(ReservationDescriptor, scope_and_type) == 13);
struct ReserveCapabilities {
  BigEndian16 length;   // of this struct
  std::uint8_t flags2;  // kReservePersistCapable
  std::uint8_t flags3;  // kReserveTypesValid, kReservePersistActive
  BigEndian16 types;    // kReserveAllTypes
  BigEndian16 reserved;
};
static_assert(kIsWire<ReserveCapabilities, 8>);
inline constexpr std::uint8_t kReservePersistCapable = 0x01;  // PTPL_C
inline constexpr std::uint8_t kReserveTypesValid = 0x80;      // TMV
inline constexpr std::uint8_t kReservePersistActive = 0x01;   // PTPL_A
inline constexpr std::uint16_t kReserveAllTypes = 0xea01;
// [SPC-4: TransportID for initiator ports using SCSI over RDMA]
struct SrpTransportId {
  std::uint8_t protocol;  // kProtocolSrp
  std::array<std::uint8_t, 7> reserved;
  std::array<std::uint8_t, 16> initiator;
};
inline constexpr std::uint8_t kProtocolSrp = 4;
struct FullStatusDescriptor {
  BigEndian64 key;
  BigEndian32 reserved;
  std::uint8_t flags;  // kFullStatusHolder
  std::uint8_t scope_and_type;
  BigEndian32 reserved2;
  BigEndian16 relative_target_port;
  BigEndian32 additional_length;  // bytes of the TransportID
  SrpTransportId transport;
};
static_assert(kIsWire<FullStatusDescriptor, 48> && offsetof(FullStatusDescriptor, flags) == 12 &&
              offsetof(FullStatusDescriptor, relative_target_port) == 18 &&
              offsetof(FullStatusDescriptor, transport) == 24);
inline constexpr std::uint8_t kFullStatusHolder = 0x01;

// [SPC-4: PERSISTENT RESERVE OUT command, parameter list]
struct ReserveOutList {
  BigEndian64 key;
  BigEndian64 service_key;
  BigEndian32 obsolete;
  std::uint8_t flags;  // kReserveOut...
  std::uint8_t reserved;
  BigEndian16 obsolete2;
};
static_assert(kIsWire<ReserveOutList, 24> && offsetof(ReserveOutList, flags) == 20);
inline constexpr std::uint8_t kReserveOutSpecifyInitiators = 0x08;  // SPEC_I_PT
inline constexpr std::uint8_t kReserveOutAllPorts = 0x04;           // ALL_TG_PT
inline constexpr std::uint8_t kReserveOutPersist = 0x01;            // APTPL

// [SPC-4: REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS command]
struct TaskManagementData {
  std::uint8_t functions;  // kTaskLogicalUnitReset, kTaskTargetReset
  std::uint8_t functions2;
  std::uint8_t reserved;
  std::uint8_t additional_length;
};
static_assert(kIsWire<TaskManagementData, 4>);
inline constexpr std::uint8_t kTaskLogicalUnitReset = 0x08;
inline constexpr std::uint8_t kTaskTargetReset = 0x02;
// With the REPD bit, behind the above: time-outs, of which none is valid.
struct TaskManagementTimeouts {
  std::array<std::uint8_t, 12> none;
};
static_assert(kIsWire<TaskManagementTimeouts, 12>);

// [SPC-4: Log page structure and log parameter structure for all log pages]
struct LogHeader {
  std::uint8_t page;  // kLogNotSaved, kLogSubpageFormat
  std::uint8_t subpage;
  BigEndian16 length;  // bytes behind the header
};
static_assert(kIsWire<LogHeader, 4>);
inline constexpr std::uint8_t kLogNotSaved = 0x80;       // DS
inline constexpr std::uint8_t kLogSubpageFormat = 0x40;  // SPF
enum class LogPage : std::uint8_t {
  kSupportedPages = 0x00,
  kInformationalExceptions = 0x2f,
};
inline constexpr std::uint8_t kLogSubpages = 0xff;  // of kSupportedPages: with the subpages

// [SPC-4: Informational Exceptions log page, general parameter]
struct InformationalExceptionsLog {
  BigEndian16 code;
  std::uint8_t control;  // kLogBinaryList
  std::uint8_t length;   // bytes behind this one
  std::uint8_t asc;
  std::uint8_t ascq;
  std::uint8_t temperature;  // degrees Celsius; kTemperatureUnknown
  std::uint8_t vendor_specific;
};
static_assert(kIsWire<InformationalExceptionsLog, 8>);
inline constexpr std::uint8_t kLogBinaryList = 0x23;  // and never saved: TSD
inline constexpr std::uint8_t kTemperatureUnknown = 0xff;

struct ReadCapacity10Data {
  BigEndian32 last_lba;  // 0xffffffff: ask READ CAPACITY(16)
  BigEndian32 block_length;
};
static_assert(kIsWire<ReadCapacity10Data, 8>);

struct ReadCapacity16Data {
  BigEndian64 last_lba;
  BigEndian32 block_length;
  std::uint8_t protection;
  std::uint8_t physical_exponent;  // low nibble: log2 of logical blocks per physical block
  BigEndian16 provisioning_and_lowest_aligned_lba;
  std::array<std::uint8_t, 16> reserved;
};
static_assert(kIsWire<ReadCapacity16Data, 32>);
static_assert(offsetof(ReadCapacity16Data, physical_exponent) == 13);
inline constexpr std::uint16_t kCapacityThin = 0x8000;        // of provisioning_and_lowest_aligned_lba: LBPME
inline constexpr std::uint16_t kCapacityReadsZeros = 0x4000;  // LBPRZ

struct ReportLunsHeader {
  BigEndian32 list_length;  // bytes behind the header
  BigEndian32 reserved;
};
static_assert(kIsWire<ReportLunsHeader, 8>);

struct ModeHeader6 {
  std::uint8_t data_length;  // bytes behind this one; reserved in MODE SELECT
  std::uint8_t medium_type;
  std::uint8_t device_specific;  // kModeWriteProtected, kModeDpoFua
  std::uint8_t block_descriptor_length;
};
static_assert(kIsWire<ModeHeader6, 4>);

struct ModeHeader10 {
  BigEndian16 data_length;  // bytes behind this field
  std::uint8_t medium_type;
  std::uint8_t device_specific;
  std::uint8_t flags;  // bit 0: LONGLBA
  std::uint8_t reserved;
  BigEndian16 block_descriptor_length;
};
static_assert(kIsWire<ModeHeader10, 8> && offsetof(ModeHeader10, block_descriptor_length) == 6);
inline constexpr std::uint8_t kModeWriteProtected = 0x80;
inline constexpr std::uint8_t kModeDpoFua = 0x10;

enum class ModePage : std::uint8_t {
  kErrorRecovery = 0x01,
  kCaching = 0x08,
  kControl = 0x0a,
  kInformationalExceptions = 0x1c,
  kAll = 0x3f,
};

// [SBC-3: Read-Write Error Recovery mode page]
struct ErrorRecoveryModePage {
  std::uint8_t page;
  std::uint8_t length;
  std::uint8_t flags;  // kRecoveryWriteReallocation
  std::array<std::uint8_t, 9> others;
};
static_assert(kIsWire<ErrorRecoveryModePage, 12>);
inline constexpr std::uint8_t kRecoveryWriteReallocation = 0x80;  // AWRE

// [SPC-4: Informational Exceptions Control mode page]
struct InformationalExceptionsModePage {
  std::uint8_t page;
  std::uint8_t length;
  std::uint8_t flags;  // kExceptionsDisabled
  std::array<std::uint8_t, 9> others;
};
static_assert(kIsWire<InformationalExceptionsModePage, 12>);
inline constexpr std::uint8_t kExceptionsDisabled = 0x08;  // DEXCPT

// [SBC-3: Caching mode page]
struct CachingModePage {
  std::uint8_t page;    // bit 7: can be saved
  std::uint8_t length;  // bytes behind this one
  std::uint8_t flags;   // kCachingWce
  std::array<std::uint8_t, 17> others;
};
static_assert(kIsWire<CachingModePage, 20>);
inline constexpr std::uint8_t kCachingWce = 0x04;  // writes may complete before they are on the medium

// [SPC-4: Control mode page]
struct ControlModePage {
  std::uint8_t page;
  std::uint8_t length;
  std::uint8_t flags2;
  std::uint8_t flags3;  // high nibble: queue algorithm modifier
  std::uint8_t flags4;
  std::uint8_t flags5;
  BigEndian16 obsolete;
  BigEndian16 busy_timeout;  // 0xffff: none
  BigEndian16 self_test_time;
};
static_assert(kIsWire<ControlModePage, 12>);
inline constexpr std::uint8_t kControlUnrestrictedReordering = 0x10;  // of flags3

}  // namespace vmbusd::storvsp::scsi
