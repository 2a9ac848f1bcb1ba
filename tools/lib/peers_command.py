"""The command tools/peers."""

import argparse
import json
import pathlib
import resource
import statistics
import sys
import tempfile
import time

import build
import fetch
import peers
import run


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="tools/peers",
        description="Measures vmbusd's ring, disks and NICs with a user-space guest, without a hypervisor, and in the same turns what they are "
        "held against: bare copies and a plain ring, fio and QEMU's storage daemon, DPDK's testpmd. Prints medians, spreads, ratios and goals.",
        epilog="Wants two processors for itself; it says how much others took of them. Absolute figures mean nothing elsewhere.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(peers.PARTS)}; none means all")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="of each, interleaved (default 5)")
    parser.add_argument("--seconds", type=int, default=2, metavar="N", help="of each measurement (default 2)")
    parser.add_argument("--json", metavar="FILE", help="write what each turn read")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(peers.PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(peers.PARTS)}")
    return arguments


class Others:
    """How much of the machine's processors went to processes that are not ours."""

    def __init__(self):
        self._begin = self._now()

    @staticmethod
    def _now():
        ours = resource.getrusage(resource.RUSAGE_CHILDREN)
        ticks = [int(word) for word in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        total = sum(ticks) / 100
        return total, total - (ticks[3] + ticks[4]) / 100, ours.ru_utime + ours.ru_stime

    def share(self):
        total, busy, ours = (now - begin for now, begin in zip(self._now(), self._begin))
        return max(0.0, busy - ours) / total if total else 0.0


def spread_of(values):
    return statistics.median(values), min(values), max(values)


def summary(name, readings):
    """A row's figures over the turns: ours and the peer's as (median, least, greatest), their ratio likewise, and whether it is won.

    The ratio is that of the medians; its spread, of the turns.
    """
    row = peers.ROWS[name]
    entry = {"name": name, "ours": spread_of([ours for ours, _ in readings])}
    if row.peer:
        entry["peer"] = spread_of([peer for _, peer in readings])
        ratios = [ours / peer for ours, peer in readings]
        entry["ratio"] = (entry["ours"][0] / entry["peer"][0], min(ratios), max(ratios))
    if row.goal:
        entry["met"] = row.reached((entry["ratio"] if row.peer else entry["ours"])[0])
    return entry


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def spread_text(spread):
    median, least, greatest = (number(value) for value in spread)
    return f"{median} ({least} to {greatest})"


def print_table(entries):
    widths = (44, 24, 22, 24, 24, 15)
    print()
    print("".join(f"{text:{width}}" for text, width in zip(("", "vmbusd", "beside", "", "ratio", "goal"), widths)))
    for entry in entries:
        row = peers.ROWS[entry["name"]]
        goal = f"{row.goal[0]} {number(row.goal[1])}" if row.goal else ""
        cells = (
            f"{entry['name']}{', ' + row.unit if row.unit else ''}",
            spread_text(entry["ours"]),
            row.peer,
            spread_text(entry["peer"]) if row.peer else "",
            spread_text(entry["ratio"]) if row.peer else "",
            goal,
        )
        verdict = {True: "met", False: "missed", None: ""}[entry.get("met")]
        print(("".join(f"{text:{width}}" for text, width in zip(cells, widths)) + verdict).rstrip())


def main():
    arguments = parse_arguments()
    if not build.compile_all(targets=peers.PROGRAMS):
        return run.fail("tools/peers: vmbusd does not build")
    parts = arguments.parts or list(peers.PARTS)
    turns = []
    with tempfile.TemporaryDirectory(prefix="vmbusd-peers-") as folder:
        for number_of_turn in range(arguments.turns):
            readings = {}
            begin, others = time.monotonic(), Others()
            for part in parts:
                readings.update(peers.PARTS[part](pathlib.Path(folder), arguments.seconds))
            turns.append({"readings": readings, "others": others.share()})
            print(f"turn {number_of_turn + 1}: {time.monotonic() - begin:.0f} s, others had {turns[-1]['others']:.0%} of the processors", flush=True)
    names = [name for name in peers.ROWS if all(name in turn["readings"] for turn in turns)]
    entries = [summary(name, [turn["readings"][name] for turn in turns]) for name in names]
    print_table(entries)
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"seconds": arguments.seconds, "rows": entries, "turns": turns}, file, indent=1)
            file.write("\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (peers.PeerError, fetch.FetchError) as problem:
        sys.exit(f"tools/peers: {problem}")
