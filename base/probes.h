// Points at which a tracer can look on: USDT probes of the provider "vmbusd", see docs/tracing.md.
//
// VMBUSD_PROBE(name, arguments...) is one no-operation in the code, and a note beside it that says where it
// is and which registers or memory hold the arguments: integers and pointers that are at hand anyway, at most
// 12. Nothing is computed for a probe and no branch taken. Without <sys/sdt.h> there is nothing at all.
#pragma once

#if __has_include(<sys/sdt.h>)
#define SDT_USE_VARIADIC
#include <sys/sdt.h>
#define VMBUSD_PROBE(...) STAP_PROBEV(vmbusd, __VA_ARGS__)
#else
#define VMBUSD_PROBE(...) static_cast<void>(0)
#endif
