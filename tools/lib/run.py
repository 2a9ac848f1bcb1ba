"""Runs scenarios in a root partition, this machine's or an emulated one, and brings their outcomes back."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import build
import guest_image
import kernel
import root

SCENARIOS = pathlib.Path(__file__).resolve().parent / "scenarios.py"


def programs():
    """The programs under test, as the plan names them."""
    return {target.split("/")[-1]: str((build.folder() / target).absolute()) for target in build.PROGRAMS}


def guest_of(of_kernel):
    """The part of a plan that tells which guest to boot."""
    return {"kernel": str(of_kernel.vmlinux()), "initrd": str(guest_image.guest_image(of_kernel))}


def base_plan(of_kernel=None):
    return {**programs(), **guest_of(of_kernel or kernel.for_guest())}


def mode(force_emulated):
    """("kvm" or "emulated", why)."""
    lacks = root.kvm_lacks()
    if force_emulated:
        return "emulated", "--emulated was given"
    return ("emulated", lacks) if lacks else ("kvm", "")


def run(plan, results, emulated, output=None, terminal=False):
    """Runs a plan's scenarios. Each outcome is in NAME.json in `results`; returns the exit status of the runner."""
    results = pathlib.Path(results).absolute()
    results.mkdir(parents=True, exist_ok=True)
    path = results / "plan.json"
    command = ["/usr/bin/python3", str(SCENARIOS)]
    if emulated:
        path.write_text(json.dumps({**plan, "results": str(root.RESULTS), "files": str(root.FILES)}, indent=1))
        return root.run_emulated([*command, str(root.RESULTS / path.name)], results, terminal=terminal, output=output)
    with tempfile.TemporaryDirectory(prefix="vmbusd-files-", dir="/var/tmp") as files:
        os.chmod(files, 0o711)  # for scenarios whose vmbusd has no privileges
        path.write_text(json.dumps({**plan, "results": str(results), "files": files}, indent=1))
        # Loop devices and mounts need root.
        as_root = [] if os.geteuid() == 0 else ["sudo"]
        command = [*as_root, *command, str(path)]
        if terminal:
            return subprocess.run(command, check=False).returncode
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                (output or root.print_line)(line.rstrip("\n"))
        return process.returncode


def outcomes(plan, results, emulated, report):
    """Runs a plan's scenarios one after the other and calls `report` with each outcome, a dictionary.

    Where an emulated root partition dies or freezes under a scenario, a new one takes that and the rest. Emulators do so
    now and then under guests, QEMU's own devices among them; who does it twice has failed.
    """
    again = set()
    left = list(plan["scenarios"])
    results = pathlib.Path(results)
    while left:
        seen = []
        died = False

        def heard(line, seen=seen):
            word, _, name = line.partition(" ")
            if word == "done":
                seen.append(name)
                report(json.loads((results / f"{name}.json").read_text()))
            elif word not in ("start", "alive"):
                root.print_line(line)

        try:
            run({**plan, "scenarios": left}, results, emulated, heard)
            reason = "the runner ended before it"
        except root.RootError as error:
            reason, died = str(error), True
        left = [name for name in left if name not in seen]
        if left:
            console = results / "root-console.log"
            if console.exists():
                shutil.copy(console, results / f"root-console-{left[0]}.log")
            if died and left[0] not in again:
                again.add(left[0])
                root.print_line(f"{left[0]}: {reason}\n{left[0]}: once more")
                continue
            report({"name": left[0], "result": "failed", "reason": reason, "seconds": 0.0, "deaths": 0})
            left = left[1:]


def keep_folder(keep):
    """The folder for logs, and whether it is the caller's to keep."""
    if keep:
        folder = pathlib.Path(keep).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    return pathlib.Path(tempfile.mkdtemp(prefix="vmbusd-results-", dir="/var/tmp"))


def explain_mode(name, why):
    if name == "kvm":
        print("guests run on this machine's KVM", flush=True)
    else:
        print(f"guests run in an emulated root partition ({why}); its speeds say nothing in absolute terms", flush=True)


def fail(text):
    print(text, file=sys.stderr)
    return 1
