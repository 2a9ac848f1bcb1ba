"""The command tools/test."""

import argparse
import concurrent.futures
import os
import shutil
import sys
import threading
import time

import build
import coverage
import dpdk
import distro_image
import fetch
import hyperv_daemons
import kernel
import libiscsi
import run
import scenarios

# The second kernel of the guests: Debian 13's.
SECOND_KERNEL = ("trixie", "linux-image-cloud-amd64")

# Scenarios that the emulated root partition is not asked for unless each is named in full, and why.
NOT_EMULATED = {
    "network-dpdk": "a guest that polls all the time froze the emulated root partition in two runs; name this test to run it",
}

# What some scenarios need beside the common image: its key in the plan, and what makes it.
NEEDS = {
    "second-kernel": ("second", lambda: run.guest_of(kernel.from_suite(*SECOND_KERNEL))),
    "network-dpdk": ("dpdk", lambda: str(dpdk.image())),
    "distro": ("distro", distro_image.distro),
    "sg3-utils": ("libiscsi", lambda: str(libiscsi.image())),
    "hostile-neighbour": ("vmbus-hostile", lambda: str((build.folder() / build.HOSTILE).absolute())),
    "integration": ("daemons", lambda: str(hyperv_daemons.image())),
}


def parse_arguments():
    groups = "\n".join(
        [
            "groups of tests:",
            "  unit   meson's unit tests, the quick part",
            "  asan   the same under the address and undefined behaviour sanitizers",
            "  tsan   the same under the thread sanitizer",
            "  coverage  how much of the guest-facing code the unit tests run; only where it is named, and alone",
            "  guest  stock Debian guests on vmbusd, in an emulated root partition where KVM lacks the Hyper-V SynIC:",
            *(f"    guest/{name}: {function.__doc__.splitlines()[0]}" for name, function in scenarios.SCENARIOS.items()),
        ]
    )
    parser = argparse.ArgumentParser(
        prog="tools/test",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Builds vmbusd and runs its tests. The last line counts those that passed and failed.",
        epilog=f"{groups}\n\nVMBUSD_BUILD_DIR names a build folder other than build/, VMBUSD_CACHE a folder for downloads\n"
        "other than ~/.cache/vmbusd, VMBUSD_TEST_KILLS how often the recovery tests, guest/worker-killed and\n"
        "guest/supervisor-killed kill something,\n"
        "VMBUSD_TEST_LIBISCSI=1 for all of libiscsi's tests in guest/sg3-utils.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a test, a group, or the beginning of names; none means all")
    parser.add_argument("--list", action="store_true", help="print the tests' names, run nothing")
    parser.add_argument("--emulated", action="store_true", help="use the emulated root partition even where KVM would do")
    parser.add_argument("--keep", metavar="DIR", help="keep the guests' logs there")
    return parser.parse_args()


def wanted(name, patterns):
    """Whether the patterns, beginnings of names, want a test; none wants all."""
    return not patterns or any(name.startswith(pattern) for pattern in patterns)


def group_wanted(group, patterns):
    return not patterns or any(pattern.split("/")[0] and group.startswith(pattern.split("/")[0]) for pattern in patterns)


def run_variant(variant, patterns, report):
    if not group_wanted(variant.suite, patterns):
        return
    print(f"building {build.folder(variant)}", flush=True)
    start = time.monotonic()
    if not build.compile_all(variant):
        report(build.Outcome(f"{variant.suite}/build", "failed", time.monotonic() - start, "does not build"))
        return
    names = [n for n in build.unit_names(variant) if wanted(f"{variant.suite}/{n}", patterns)]
    if names:
        for outcome in build.run_units(variant, names):
            report(outcome)


def guests_wanted(arguments, report):
    """The scenarios to run; those asked for but not run here are reported. Builds what they need."""
    names = [name for name in scenarios.SCENARIOS if wanted(f"guest/{name}", arguments.names)]
    if run.mode(arguments.emulated)[0] == "emulated":
        for name in [name for name in names if name in NOT_EMULATED and f"guest/{name}" not in arguments.names]:
            names.remove(name)
            report(build.Outcome(f"guest/{name}", "skipped", 0.0, NOT_EMULATED[name]))
    if names and not build.compile_all(targets=(*build.PROGRAMS, build.HOSTILE)):
        for name in names:
            report(build.Outcome(f"guest/{name}", "failed", 0.0, "vmbusd does not build"))
        return []
    return names


def run_guests(names, arguments, report):
    if not names:
        return
    mode, why = run.mode(arguments.emulated)
    run.explain_mode(mode, why)
    results = run.keep_folder(arguments.keep)
    deaths = 0
    failures = 0

    def heard(outcome):
        nonlocal deaths, failures
        deaths += outcome["deaths"]
        failures += outcome["result"] == "failed"
        report(build.Outcome(f"guest/{outcome['name']}", outcome["result"], outcome["seconds"], outcome["reason"]))

    plan = {**run.base_plan(), "runtime": 1}
    if kills := os.environ.get("VMBUSD_TEST_KILLS"):
        plan.update(worker_kills=int(kills), supervisor_kills=int(kills), upgrades=20)
    plan["libiscsi_long"] = bool(os.environ.get("VMBUSD_TEST_LIBISCSI"))
    for name, (key, make) in NEEDS.items():
        if name in names:
            try:
                plan[key] = make()
            except fetch.FetchError as problem:
                names.remove(name)
                failures += 1
                report(build.Outcome(f"guest/{name}", "failed", 0.0, str(problem)))
    plan["scenarios"] = names
    run.outcomes(plan, results, mode == "emulated", heard)
    if deaths:
        print(f"guest kernels that died: {deaths}")
    if failures or arguments.keep:
        print(f"logs: {results}")
    else:
        shutil.rmtree(results, ignore_errors=True)


def main():
    arguments = parse_arguments()
    if arguments.names == ["coverage"]:
        return 0 if coverage.report() else 1
    if not build.configure():
        return run.fail("tools/test: meson cannot configure the build")
    if arguments.list:
        units = build.unit_names()
        names = [f"{v.suite}/{name}" for v in build.VARIANTS for name in units if name not in v.without]
        names += [f"guest/{name}" for name in scenarios.SCENARIOS]
        print("\n".join(name for name in names if wanted(name, arguments.names)))
        return 0

    count = {"passed": 0, "failed": 0, "skipped": 0}

    reporting = threading.Lock()

    def report(outcome):
        reason = f": {outcome.reason}" if outcome.reason else ""
        with reporting:
            count[outcome.result] += 1
            print(f"{outcome.result:8} {outcome.name} ({outcome.seconds:.1f} s){reason}", flush=True)

    def guests(names):
        try:
            run_guests(names, arguments, report)
        except fetch.FetchError as problem:
            report(build.Outcome("guest/set-up", "failed", 0.0, str(problem)))

    # An emulated root partition has one processor: its guests, and the builds and their tests, go side by side.
    names = guests_wanted(arguments, report)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        beside = pool.submit(guests, names)
        for variant in build.VARIANTS:
            run_variant(variant, arguments.names, report)
        beside.result()
    if not any(count.values()):
        return run.fail(f"tools/test: no test is called {' '.join(arguments.names)}; see tools/test --list")
    tail = f", {count['skipped']} skipped" if count["skipped"] else ""
    print(f"{count['passed']} passed, {count['failed']} failed{tail}")
    return 1 if count["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
