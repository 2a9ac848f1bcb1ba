"""The command tools/perf."""

import argparse
import json
import pathlib
import shutil
import statistics
import sys

import build
import comparison
import fetch
import kernel
import perf_report
import root
import run
import scenarios

OURS = "vmbusd"

# What is compared of a job, and whether more of it is better.
MEASURES = {"fio": ("IOPS", True), "iperf": ("Mbit/s", True), "ping": ("us", False)}


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="tools/perf",
        description="Runs fio, iperf3 and ping in guests whose disk and NIC are vmbusd's, and in guests with QEMU's virtio devices: the same "
        "root partition, guest kernel, image and back ends, in turns. Prints medians, their spread and their ratio to vmbusd's.",
        epilog="Ratios above 1 are won by vmbusd. Speeds in an emulated root partition say nothing in absolute terms.",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each contender (default 5)")
    parser.add_argument("--seconds", type=int, default=3, metavar="N", help="how long a job runs (default 3)")
    parser.add_argument("--jobs", default="", metavar="NAMES", help="jobs of tools/guest/jobs/perf.sh, with commas; default: all")
    parser.add_argument("--contenders", default="", metavar="NAMES", help=f"which, with semicolons; default: {'; '.join(comparison.CONTENDERS)}")
    parser.add_argument("--json", metavar="FILE", help="write each turn's rows")
    parser.add_argument("--html", metavar="FILE", help="write a report with plots, one file")
    parser.add_argument("--keep", metavar="DIR", help="keep logs there")
    parser.add_argument("--emulated", action="store_true", help="use the emulated root partition even where KVM would do")
    return parser.parse_args()


def row_of(said):
    """A row as a turn gave it, with numbers: the value compared, and what an I/O cost where that is known."""
    kind, text, counted = said["kind"], said["said"], said["counted"]
    row = {"contender": said["contender"], "job": said["job"], "kind": kind, "counted": counted}
    if kind == "fio":
        parsed = scenarios.parse_fio(text)
        row.update(value=parsed["iops"], p50_us=parsed["p50_us"], p99_us=parsed["p99_us"])
    elif kind == "iperf":
        row.update(value=scenarios.parse_iperf(text)["gbps"] * 1000)
    else:  # rtt min/avg/max/mdev = 0.1/0.2/0.3/0.0 ms, ...
        row.update(value=float(text.split("=")[1].split("/")[1]) * 1000)
    return row


def medians(rows):
    """(job, contender) to the median, least and greatest of its values, and medians of what was counted meanwhile."""
    groups = {}
    for row in rows:
        groups.setdefault((row["job"], row["contender"]), []).append(row)
    return {
        key: {
            "kind": group[0]["kind"],
            "median": statistics.median(row["value"] for row in group),
            "least": min(row["value"] for row in group),
            "greatest": max(row["value"] for row in group),
            "exits_per_second": statistics.median(row["counted"].get("exits", 0) / row["counted"]["clock_s"] for row in group),
            **{
                # Shares of one processor.
                share: statistics.median(row["counted"][f"{share}_s"] / row["counted"]["clock_s"] for row in group)
                for share in ("guest", "host")
            },
            "turns": len(group),
        }
        for key, group in groups.items()
    }


def ratio_text(entry, ours):
    """How many times better vmbusd is, as text; empty where that says nothing."""
    if ours is None or entry is ours or not entry["median"] or not ours["median"]:
        return ""
    won = ours["median"] / entry["median"]
    return f"{won if MEASURES[entry['kind']][1] else 1 / won:.2f}"


def exits_per_operation(entry):
    return f"{entry['exits_per_second'] / entry['median']:.2f}" if entry["kind"] == "fio" and entry["median"] else ""


def print_table(table):
    print(f"\n{'job':31} {'contender':22} {'median':>7} {'unit':6} {'spread':>15} {'ratio':>6} {'exits/op':>8} {'CPU guest':>9} {'host':>5}")
    jobs = list(dict.fromkeys(job for job, _ in table))
    for job, contender in sorted(table, key=lambda key: jobs.index(key[0])):
        entry = table[job, contender]
        unit, _ = MEASURES[entry["kind"]]
        spread = f"{entry['least']:.0f} to {entry['greatest']:.0f}"
        ratio = ratio_text(entry, table.get((job, OURS)))
        print(
            f"{job:31} {contender:22} {entry['median']:7.0f} {unit:6} {spread:>15} {ratio:>6} {exits_per_operation(entry):>8} "
            f"{entry['guest']:9.0%} {entry['host']:5.0%}"
        )
    print()


def report(table, mode, arguments):
    """The page of the same table."""
    groups = {}
    for job in dict.fromkeys(job for job, _ in table):
        entries = [(contender, table[job, contender]) for other, contender in table if other == job]
        kind = entries[0][1]["kind"]
        ours = table.get((job, OURS))
        ratios = {contender: ratio_text(entry, ours) for contender, entry in entries}
        groups.setdefault("Disk" if kind == "fio" else "Network", []).append((
            job, *MEASURES[kind],
            [(contender, entry["median"], entry["least"], entry["greatest"], f"vmbusd {ratios[contender]} times" if ratios[contender] else "",
              (exits_per_operation(entry), f"{entry['guest']:.0%}", f"{entry['host']:.0%}"))
             for contender, entry in entries],
        ))  # fmt: skip
    notes = [
        f"Medians of {arguments.rounds} turns each, {arguments.seconds} s a job; the line on a bar goes from the least to the greatest. "
        "Same root partition, guest kernel, image and back ends.",
        "The root partition is emulated: ratios mean something, absolute speeds do not." if mode == "emulated" else "Guests run on this machine's KVM.",
    ]
    return perf_report.render(groups, OURS, "vmbusd and virtio in the same guest", notes)


def main():
    arguments = parse_arguments()
    mode, why = run.mode(arguments.emulated)
    run.explain_mode(mode, why)
    if not build.compile_all(targets=build.PROGRAMS):
        return run.fail("tools/perf: vmbusd does not build")
    contenders = [name.strip() for name in arguments.contenders.split(";") if name.strip()] or list(comparison.CONTENDERS)
    unknown = set(contenders) - set(comparison.CONTENDERS)
    if unknown:
        return run.fail(f"tools/perf: no contender {', '.join(sorted(unknown))}; accepted: {'; '.join(comparison.CONTENDERS)}")
    guest_kernel = kernel.for_guest()
    turns = {}
    for number in range(arguments.rounds):
        # Each round begins with another one, so that none is always the one that runs first.
        order = contenders[number % len(contenders) :] + contenders[: number % len(contenders)]
        turns.update({f"turn-{number + 1}-{contenders.index(name)}": name for name in order})
    plan = {
        **run.base_plan(guest_kernel),
        "bzimage": str(guest_kernel.image),
        "qemu": root.emulator(),
        "scenarios": list(turns),
        "turns": turns,
        "seconds": arguments.seconds,
        "pings": 1000,
        "jobs": [job for job in arguments.jobs.split(",") if job],
    }
    results = run.keep_folder(arguments.keep)
    rows = []
    failed = []

    def heard(outcome):
        if outcome["result"] == "passed":
            rows.extend(row_of(said) for said in outcome["data"])
            print(f"  {outcome['name']}: {turns[outcome['name']]}, {outcome['seconds']:.0f} s", flush=True)
        else:
            failed.append(outcome["name"])
            print(f"  {outcome['name']}: {turns[outcome['name']]} failed: {outcome['reason']}", flush=True)

    run.outcomes(plan, results, mode == "emulated", heard)
    print_table(medians(rows))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump({"mode": mode, "seconds": arguments.seconds, "rows": rows}, file, indent=1)
            file.write("\n")
    if arguments.html:
        pathlib.Path(arguments.html).write_text(report(medians(rows), mode, arguments), encoding="utf-8")
    if failed or arguments.keep:
        print(f"logs: {results}")
    else:
        shutil.rmtree(results, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fetch.FetchError as problem:
        sys.exit(f"tools/perf: {problem}")
