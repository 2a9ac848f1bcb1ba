"""The command tools/fuzz."""

import argparse
import concurrent.futures
import dataclasses
import os
import re
import subprocess
import sys

import build

CORPUS = build.SOURCE / "fuzz" / "corpus"
# An input of a few kilobytes takes no millisecond; sanitizers, and another run beside it, are slow.
INPUT_SECONDS_MAX = 20
MEMORY_MB_MAX = 2048
FINDINGS = ("crash-", "leak-", "timeout-", "oom-")  # how libFuzzer calls the inputs that it saves


@dataclasses.dataclass(frozen=True)
class Outcome:
    executions: int
    edges: int  # libFuzzer's cov: edges of the code that some input went over
    features: int  # libFuzzer's ft: edges, how often, and values compared
    inputs: int  # in the corpus at the end
    findings: tuple  # files
    status: int
    said: str


def folder():
    return build.folder(build.FUZZ)


def program(target):
    return folder() / "fuzz" / f"{target}_fuzz"


def last(pattern, text):
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def fuzz(target, seconds):
    """Runs one target, from the seeds in the tree and from what earlier runs found on."""
    corpus = folder() / "corpus" / target
    findings = folder() / "findings"
    for path in (corpus, findings):
        path.mkdir(parents=True, exist_ok=True)
    prefix = findings / f"{target}-"
    before = set(findings.iterdir())
    command = [
        program(target),
        f"-max_total_time={seconds}",
        f"-timeout={INPUT_SECONDS_MAX}",
        f"-rss_limit_mb={MEMORY_MB_MAX}",
        f"-artifact_prefix={prefix}",
        "-print_final_stats=1",
        corpus,
        CORPUS / target,
    ]
    environment = {**os.environ, "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
    result = subprocess.run(
        [str(word) for word in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    saved = sorted(set(findings.iterdir()) - before)
    return Outcome(
        executions=last(r"stat::number_of_executed_units: (\d+)", result.stdout) or last(r"^#(\d+)\t", result.stdout),
        edges=last(r" cov: (\d+)", result.stdout),
        features=last(r" ft: (\d+)", result.stdout),
        inputs=last(r" corp: (\d+)", result.stdout),
        findings=tuple(path for path in saved if path.name[len(target) + 1 :].startswith(FINDINGS)),
        status=result.returncode,
        said=result.stdout,
    )


def main():
    targets = sorted(path.name for path in CORPUS.iterdir())
    parser = argparse.ArgumentParser(
        prog="tools/fuzz",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Fuzzes what reads the bytes of guests, VMMs and clients, with the address and undefined behaviour sanitizers.\n"
        "Ends non-zero where a target found something; the input that shows it is kept.",
        epilog=f"targets: {' '.join(targets)}\n\nSeeds are in fuzz/corpus/; what a run finds beside them it keeps in the build folder\n"
        "(build-fuzz/corpus), for the next. VMBUSD_BUILD_DIR names a build folder other than build/.",
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="what to fuzz; none means all")
    parser.add_argument("--minutes", type=float, default=5, help="how long each target runs (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets that run at a time (default: one a processor)")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.targets) - set(targets))
    if unknown:
        parser.error(f"no target is called {' '.join(unknown)}; there are {' '.join(targets)}")
    wanted = arguments.targets or targets
    if not build.compile_all(build.FUZZ, [f"fuzz/{target}_fuzz" for target in wanted]):
        print("tools/fuzz: the targets do not build", file=sys.stderr)
        return 1

    found = 0
    total = 0
    print(f"{'target':18} {'executions':>12} {'edges':>7} {'features':>9} {'inputs':>7}  findings", flush=True)
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {pool.submit(fuzz, target, round(arguments.minutes * 60)): target for target in wanted}
        for run in concurrent.futures.as_completed(runs):
            target, outcome = runs[run], run.result()
            total += outcome.executions
            found += bool(outcome.findings) or outcome.status != 0
            print(
                f"{target:18} {outcome.executions:12} {outcome.edges:7} {outcome.features:9} {outcome.inputs:7}  {len(outcome.findings)}",
                flush=True,
            )
            for path in outcome.findings:
                print(f"  {program(target)} {path}", flush=True)
            if outcome.findings or outcome.status != 0:
                tail = outcome.said.splitlines()[-60:]
                print("\n".join(f"  | {line}" for line in tail), flush=True)
    print(f"{len(wanted)} targets, {total} executions, {found} with findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
