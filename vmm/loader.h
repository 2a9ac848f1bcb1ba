// Puts kernel, initrd, command line, zero page and first page tables into guest memory.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "vmm/guest_ram.h"
#include "vmm/hypervisor.h"

namespace vmbusd::vmm {

struct BootSource {
  std::string kernel_path;
  std::string initrd_path;  // empty: none
  std::string command_line;
};

// Loads `source` for the 64-bit boot protocol; the files are read anew at each call, so a reboot takes up a
// changed kernel. `error_text` names the file and the reason on failure. [linux:
// Documentation/arch/x86/boot.rst]
[[nodiscard]] Result<BootState> load_kernel(const BootSource& source, const GuestRam& ram,
                                            std::uint64_t rsdp_gpa, std::string& error_text);

}  // namespace vmbusd::vmm
