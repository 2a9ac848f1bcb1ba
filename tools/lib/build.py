"""Builds vmbusd by meson and runs the tests that need no guest."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to build the tree. `suite` is the first part of its tests' names."""

    suite: str
    suffix: str
    options: tuple = ()
    compiler: str = "g++"
    without: tuple = ()  # tests that the others have
    prefix: tuple = ()  # in front of every command that builds it or runs its tests
    patience: int = 1  # times of each test's time limit


# clang builds the sanitizers' variants: it is the faster there, and so both compilers see every file. Optimising what the
# sanitizers put in takes three times as long as compiling, and more than running the tests without it.
_SANITIZED = ("-Db_lundef=false", "-Doptimization=0", "-Dbench=disabled")
# What only the normal build's code can be held to, and what is no code of the build.
_ONCE = ("instructions", "perf_report", "signalling_model")
_BEHIND = ("nice", "-n", "10")  # guests run beside them, and theirs is the work that waits for the clock
NORMAL = Variant("unit", "", prefix=_BEHIND)
ASAN = Variant("asan", "-asan", ("-Db_sanitize=address,undefined", *_SANITIZED), "clang++", _ONCE, _BEHIND)
TSAN = Variant("tsan", "-tsan", ("-Db_sanitize=thread", *_SANITIZED), "clang++", _ONCE, _BEHIND)
VARIANTS = (NORMAL, ASAN, TSAN)
# What tools/fuzz builds: its targets alone, with the counters by which libFuzzer finds its way in all code under them.
FUZZ = Variant(
    "fuzz",
    "-fuzz",
    ("-Db_sanitize=address,undefined", *_SANITIZED, "-Doptimization=1", "-Dfuzz=true", "-Dtests=false", "-Dcpp_args=-fsanitize=fuzzer-no-link"),
    "clang++",
)
# What tools/test coverage builds. Threads count the same lines.
COVERAGE = Variant(
    "coverage", "-coverage", ("-Db_coverage=true", "-Doptimization=0", "-Dbench=disabled", "-Dcpp_args=-fprofile-update=atomic"), "g++", patience=10
)

# What guests need of a build, as ninja's targets.
PROGRAMS = ("daemon/vmbusd", "daemon/vmbusctl", "vmm/vmbus-vmm")
HOSTILE = "guest/vmbus-hostile"  # what a scenario needs beside them


@dataclasses.dataclass(frozen=True)
class Outcome:
    name: str
    result: str  # "passed", "failed" or "skipped"
    seconds: float = 0.0
    reason: str = ""


def folder(variant=NORMAL):
    """The build folder; VMBUSD_BUILD_DIR names another than build/."""
    base = os.environ.get("VMBUSD_BUILD_DIR", str(SOURCE / "build"))
    return pathlib.Path(base + variant.suffix)


def _run(command, quiet, **environment):
    """Runs a build step. Quietly means: its output is shown only where it fails."""
    result = subprocess.run(
        [str(word) for word in command],
        # Without the folder's name in it, the compiler cache serves a fresh clone, too.
        env={**os.environ, "CCACHE_NOHASHDIR": "1", **environment},
        stdout=subprocess.PIPE if quiet else sys.stderr,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0 and quiet:
        sys.stderr.write(result.stdout)
    return result.returncode == 0


def configure(variant=NORMAL):
    if (folder(variant) / "build.ninja").exists():
        return True
    command = ["meson", "setup", folder(variant), SOURCE, "-Dwerror=true", *variant.options]
    return _run(command, quiet=True, CXX=variant.compiler)


def compile_all(variant=NORMAL, targets=()):
    return configure(variant) and _run([*variant.prefix, "ninja", "-C", folder(variant), *targets], quiet=False)


def unit_names(variant=NORMAL):
    """The variant's tests of meson's suite `unit`, as meson names them. The folder must be configured."""
    text = subprocess.run(
        ["meson", "introspect", str(folder(variant)), "--tests"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    return [test["name"] for test in json.loads(text) if any(s.split(":")[-1] == "unit" for s in test["suite"])]


def fixed_addresses():
    """The thread sanitizer gives up under much address randomisation; containers may forbid to switch it off."""
    probe = ["setarch", "-R", "true"]
    return probe[:2] if subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0 else []


def run_units(variant, names):
    """Runs the named tests of a built variant; one Outcome each."""
    prefix = [*variant.prefix, *(fixed_addresses() if variant is TSAN else [])]
    log = folder(variant) / "meson-logs" / "testlog.json"
    log.unlink(missing_ok=True)
    command = ["meson", "test", "-C", folder(variant), "--no-rebuild", "--print-errorlogs", "--timeout-multiplier", variant.patience]
    _run([*prefix, *command, *names], quiet=True)
    seen = {}
    if log.exists():
        for line in log.read_text().splitlines():
            record = json.loads(line)
            seen[record["name"].split(" / ")[-1]] = record
    outcomes = []
    for name in names:
        record = seen.get(name)
        word = record["result"] if record else "not run"
        result = {"OK": "passed", "EXPECTEDFAIL": "passed", "SKIP": "skipped"}.get(word, "failed")
        seconds = record["duration"] if record else 0.0
        reason = "" if result == "passed" else word
        if result == "skipped":
            reason = record.get("stdout", "").strip().rpartition("\n")[2] or reason
        outcomes.append(Outcome(f"{variant.suite}/{name}", result, seconds, reason))
    return outcomes
