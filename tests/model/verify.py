#!/usr/bin/python3
"""Verifies the models of signalling by Spin, and that each mutant of theirs is caught.

verify.py [--units N] SPIN CC: the two programs. Ends non-zero where a model fails or a mutant passes. `--units`: of the rings,
more than the test run has; 4 takes a minute and 2 GB.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent


@dataclasses.dataclass(frozen=True)
class Run:
    model: str
    units: int
    defines: tuple = ()
    mutant: str = ""

    def __str__(self):
        words = [self.model, *(word.lower().replace("_", "-") for word in self.defines), f"{self.units} units", self.mutant]
        return ", ".join(word for word in words if word)


# Who is at the other end: one_ring.pml and channel.pml say what each define stands for.
OURS = ()
LINUX = ("CONSUMER_LINUX",)
MODELS = (
    Run("one_ring", 3, OURS),
    Run("one_ring", 3, LINUX),
    Run("one_ring", 3, ("CONSUMER_NEVER_MASKS",)),
    Run("one_ring", 3, ("PRODUCER_ALWAYS_ASKS",)),
    Run("channel", 2),
    Run("channel", 2, ("GUEST_ASKS_FOR_ROOM",)),
)
# Two rules are needed only because a Linux consumer looks at the amount of room alone; ours would make up for them.
MUTANTS = (
    *(
        Run("one_ring", 3, OURS, mutant)
        for mutant in (
            "write_index_without_barrier",
            "read_index_without_barrier",
            "unmask_without_barrier",
            "pending_without_barrier",
            "no_look_after_unmask",
            "look_before_unmask",
            "no_look_after_arming",
            "forgets_due_signal",
            "sleeps_unreleased",
            "empty_by_batch_end",
            "room_never_signalled",
            "pending_before_read_index",
            "index_before_packet",
            "release_before_read",
            "full_equals_empty",
        )
    ),
    Run("one_ring", 4, LINUX, "arms_with_unpublished"),
    Run("one_ring", 4, LINUX, "write_index_before_pending"),
    Run("channel", 2, OURS, "stalls_unarmed"),
    Run("channel", 2, OURS, "mask_holds_room_signal"),
)


def explore(spin, compiler, run):
    """Tries every interleaving: the number of errors found (0 or 1), the number of states, what was said."""
    with tempfile.TemporaryDirectory() as folder:
        defines = [f"-DUNITS={run.units}", *(f"-D{name}" for name in run.defines)]
        if run.mutant:
            defines.append(f"-DMUTANT={run.mutant}")
        # In breadth: the search has no depth at which it would stop, and what it finds is the shortest.
        steps = (
            [spin, "-a", *defines, FOLDER / f"{run.model}.pml"],
            [compiler, "-O1", "-w", "-DSAFETY", "-DBFS", "-DCOLLAPSE", "-o", "pan", "pan.c"],
            # The models say themselves what must hold where nobody can go on.
            ["./pan", "-E", "-n"],
        )
        said = ""
        for step in steps:
            result = subprocess.run(step, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            said = result.stdout
        errors = re.search(r"errors: (\d+)", said)
        states = re.search(r"(\d+) states, stored", said)
        whole = "Search not completed" not in said or (errors and errors[1] != "0")
        if not errors or not states or not whole or "out of memory" in said:
            return None, 0, said
        return int(errors[1]), int(states[1]), said


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, help="size of the rings of all models")
    parser.add_argument("spin")
    parser.add_argument("compiler")
    arguments = parser.parse_args()
    models = [dataclasses.replace(run, units=arguments.units or run.units) for run in MODELS]
    wrong = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [*models, *MUTANTS]
        for run, (errors, states, said) in zip(
            runs, pool.map(lambda run: explore(arguments.spin, arguments.compiler, run), runs), strict=True
        ):
            expected = 1 if run.mutant else 0
            word = "caught" if run.mutant else "holds"
            if errors != expected:
                wrong += 1
                word = "PASSES" if run.mutant and errors == 0 else f"FAILS\n{said}"
            print(f"{run}: {states} states, {word}", flush=True)
    print(f"{len(MODELS)} models, {len(MUTANTS)} mutants, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
