"""The command tools/hostile."""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import build

VARIANTS = {"address": build.ASAN, "thread": build.TSAN, "none": build.NORMAL}
DISK_BYTES = 8 << 20
# What vmbusd writes where something is wrong with itself.
ALARMS = ("Sanitizer: ", "runtime error: ", "ended unexpectedly", "internal error: ")
# Memory that was freed is held back a little only: what grows is to be the daemon's.
SANITIZER_OPTIONS = {"ASAN_OPTIONS": "quarantine_size_mb=4", "UBSAN_OPTIONS": "print_stacktrace=1"}
# A daemon that hangs must not make this command hang.
PATIENCE_SECONDS = 120


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="tools/hostile",
        description="Runs vmbus-hostile, a user-space guest that breaks every rule of the rings, the protocols and the attach socket "
        "in a random order, against a vmbusd of its own, beside a guest whose disk is checked all the time. Ends non-zero where a worker "
        "dies, a sanitizer speaks, the other guest loses a byte, or memory or descriptors grow.",
    )
    parser.add_argument("--minutes", type=float, default=5, help="how long (default: %(default)s)")
    parser.add_argument("--sanitizer", choices=sorted(VARIANTS), default="address", help="that vmbusd is built with (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="repeats what a run did that printed it")
    parser.add_argument("--keep", metavar="FILE", help="keep vmbusd's log there")
    return parser.parse_args()


def configuration(folder):
    """Two partitions that have of everything; the hostile guest has one, the bystander the other."""
    text = ""
    for name in ("hostile", "bystander"):
        text += f'[[partition]]\nname = "{name}"\nsocket = "{folder}/{name}.sock"\nio_threads = 2\n'
        text += '[[partition.scsi]]\nname = "scsi0"\nchannels = 4\n'
        for lun in (0, 1):
            image = folder / f"{name}-{lun}.img"
            image.write_bytes(b"")
            os.truncate(image, DISK_BYTES)
            text += f'[[partition.scsi.disk]]\nlun = {lun}\npath = "{image}"\nreadonly = {"true" if lun else "false"}\n'
        text += '[[partition.nic]]\nname = "nic0"\nbackend = "loopback"\n'
        text += '[[partition.nic]]\nname = "nic1"\nbackend = "null"\nreceive_bytes = 60\n'
    return text


def wait_ready(daemon, log):
    for _ in range(PATIENCE_SECONDS * 10):
        if "ready: " in log.read_text():
            return True
        if daemon.poll() is not None:
            return False
        time.sleep(0.1)
    return False


def run_child(arguments, folder, prefix, daemon, environment):
    command = [
        *prefix,
        build.folder(VARIANTS[arguments.sanitizer]) / "guest" / "vmbus-hostile",
        *("--socket", folder / "hostile.sock"),
        *("--bystander", folder / "bystander.sock"),
        *("--daemon", daemon.pid),
        *("--seconds", arguments.minutes * 60),
        *(("--seed", arguments.seed) if arguments.seed is not None else ()),
    ]
    try:
        limit = arguments.minutes * 60 + PATIENCE_SECONDS
        return subprocess.run([str(word) for word in command], env=environment, timeout=limit, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        print("FAILED: vmbusd does not answer any more")
        return False


def stop(daemon):
    """Whether vmbusd ends as it should when it is told to."""
    daemon.send_signal(signal.SIGTERM)
    try:
        return daemon.wait(PATIENCE_SECONDS) == 0
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
        return False


def main():
    arguments = parse_arguments()
    variant = VARIANTS[arguments.sanitizer]
    if not build.compile_all(variant, ["daemon/vmbusd", "guest/vmbus-hostile"]):
        print("tools/hostile: vmbusd does not build", file=sys.stderr)
        return 1
    prefix = build.fixed_addresses() if variant is build.TSAN else []
    environment = {**os.environ, **SANITIZER_OPTIONS}
    with tempfile.TemporaryDirectory(prefix="vmbusd-hostile-") as name:
        folder = pathlib.Path(name)
        config = folder / "vmbusd.toml"
        config.write_text(configuration(folder))
        log = pathlib.Path(arguments.keep).resolve() if arguments.keep else folder / "log"
        with log.open("w") as output:
            command = [*prefix, str(build.folder(variant) / "daemon" / "vmbusd"), "--config", str(config)]
            daemon = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        # Told to stop, this command takes vmbusd with it.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            fine = wait_ready(daemon, log) and run_child(arguments, folder, prefix, daemon, environment)
        finally:
            stopped = stop(daemon)
        fine = fine and stopped
        lines = log.read_text(errors="replace").splitlines()
        alarms = [number for number, line in enumerate(lines) if any(alarm in line for alarm in ALARMS)]
        if alarms or not fine:
            begin = max(0, alarms[0] - 5) if alarms else max(0, len(lines) - 40)
            print("\n".join(f"  | {line}" for line in lines[begin : begin + 80]))
        print(f"{arguments.minutes:g} minutes, sanitizer {arguments.sanitizer}: {'FAILED' if alarms or not fine else 'no finding'}")
        return 1 if alarms or not fine else 0


if __name__ == "__main__":
    sys.exit(main())
