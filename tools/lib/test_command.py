"""The command tools/test."""

import argparse
import sys
import time

import build


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="tools/test",
        description="Builds vmbusd and runs its tests. The last line tells how many passed and failed.",
        epilog="NAME is a test (unit/base), a group (unit: the quick part; asan, tsan: the same under sanitizers), or the "
        "beginning of names. Without a NAME everything runs. "
        "VMBUSD_BUILD_DIR names a build folder other than build/.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--list", action="store_true", help="print the tests' names, run nothing")
    return parser.parse_args()


def wanted(name, patterns):
    """A pattern is a whole name, a group or a beginning; no pattern wants all."""
    return not patterns or any(name == p or name.startswith(p) for p in patterns)


def report(outcome):
    reason = f": {outcome.reason}" if outcome.reason else ""
    print(f"{outcome.result:8} {outcome.name} ({outcome.seconds:.1f} s){reason}", flush=True)


def run_variant(variant, patterns):
    if not any(p.startswith(variant.suite) for p in patterns) and patterns:
        return []
    print(f"building {build.folder(variant)}", flush=True)
    start = time.monotonic()
    if not build.compile_all(variant):
        return [build.Outcome(f"{variant.suite}/build", "failed", time.monotonic() - start, "does not build")]
    names = [n for n in build.unit_names(variant) if wanted(f"{variant.suite}/{n}", patterns)]
    return build.run_units(variant, names) if names else []


def main():
    arguments = parse_arguments()
    if not build.configure():
        print("tools/test: meson cannot configure the build", file=sys.stderr)
        return 1
    if arguments.list:
        units = build.unit_names()
        for variant in build.VARIANTS:
            for name in units:
                if wanted(f"{variant.suite}/{name}", arguments.names):
                    print(f"{variant.suite}/{name}")
        return 0

    outcomes = []
    for variant in build.VARIANTS:
        for outcome in run_variant(variant, arguments.names):
            report(outcome)
            outcomes.append(outcome)

    count = {word: sum(o.result == word for o in outcomes) for word in ("passed", "failed", "skipped")}
    if not outcomes:
        print(f"tools/test: no test is called {' '.join(arguments.names)}; see tools/test --list", file=sys.stderr)
        return 2
    tail = f", {count['skipped']} skipped" if count["skipped"] else ""
    print(f"{count['passed']} passed, {count['failed']} failed{tail}")
    return 1 if count["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
