"""Runs each measurement of vmbus-bench for a moment: it measures what it says, and what it could not measure it does not make up.

No figure is judged: that is for quiet machines.
"""

import json
import subprocess
import sys

SKIPPED = 77  # as meson takes it

BENCH, VMBUSD = sys.argv[1:]


def rows(*words):
    """What the subcommand prints as JSON; None where this machine has not what it needs."""
    done = subprocess.run([BENCH, *words, "--json"], capture_output=True, text=True, timeout=120)
    if done.returncode == SKIPPED:
        return None
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return json.loads(done.stdout)


def daemon_rows(*words):
    return rows(*words, "--vmbusd", VMBUSD)


def network():
    for channels in (1, 3):
        found = daemon_rows("network", "--rounds", "1", "--seconds", "0.25", "--channels", str(channels))
        assert [row["bytes"] for row in found] == [64, 1514, found[2]["bytes"], 64, 1514, 64, 1514], found
        for row in found:
            assert row["channels"] == channels
            assert row["frames_per_second"]["median"] > 0
            # The least has an even part at most; on a busy machine a VP may not have run at all.
            assert 0 <= row["least_channels_share"] <= 1 / channels, row
            assert row["worker_system_calls_per_frame"] is not None


def storage():
    found = daemon_rows("storage", "--rounds", "1", "--seconds", "0.05", "--no-file", "--channels", "2", "--qd", "1,32", "--bs", "4096")
    assert [row["qd"] for row in found] == [1, 32], found
    for row in found:
        assert row["backend"] == "null" and row["iops"]["median"] > 0
        # A packet of 16 + 16 + 8 + 64 + 8 bytes at least, and its completion.
        assert 112 <= row["ring_bytes_to_host_per_io"] <= 200, row
        assert 88 <= row["ring_bytes_from_host_per_io"] <= 120, row


def wakeup():
    found = daemon_rows("wakeup", "--rounds", "1", "--requests", "50")
    if found is None:
        return "wakeup: one processor only"
    assert len(found) == 3
    for row in found:
        # On a busy machine those who are to poll may lose their processor, and sleep.
        assert (row["us"] is None) == ("refused" in row), row
    interrupt = found[2]
    if interrupt["us"] is not None:
        assert interrupt["guest_sleeps_per_request"] >= 0.9 and interrupt["host_sleeps_per_request"] >= 0.9
    return None


def idle():
    found = daemon_rows("idle", "--channels", "3", "--seconds", "0.2")
    assert found["channels"] == 3 and found["channels_kib"] > 0


def ring():
    found = rows("ring", "--filter", "gpa_cycle")
    names = {each["name"] for each in found["benchmarks"]}
    for ranges in (1, 16, 64):
        for memory in (0, 1, 2):
            assert f"gpa_cycle/ranges:{ranges}/memory:{memory}" in names, names


for test in (ring, network, storage, wakeup, idle):
    said = test()
    print(said or f"{test.__name__}: good")
