"""What `tools/test coverage` does: how much of the guest-facing code unit tests and fuzz corpora run."""

import json
import subprocess

import build

# What reads a guest's bytes, or a VMM's, a client's of the control socket, or a worker's that may be its guest's; and of the VMM what
# needs no hypervisor.
FACING = (
    *(r"ringbuffer/", r"partition/", r"vmbus/", r"devices/", r"storvsp/", r"netvsp/"),
    r"daemon/(command_socket|commands|config|control_api|http_server|partition_status)\.",
    r"vmm/(attachment|hypercall|message_slots|platform|rtc|uart)\.",
)
LEAST = 85  # per cent of each file's lines


def report():
    """Prints a line a file. Whether all files have what is wanted."""
    if not build.compile_all(build.COVERAGE):
        return False
    folder = build.folder(build.COVERAGE)
    for counts in folder.rglob("*.gcda"):
        counts.unlink()
    failed = [outcome for outcome in build.run_units(build.COVERAGE, build.unit_names(build.COVERAGE)) if outcome.result == "failed"]
    for outcome in failed:
        print(f"failed   {outcome.name}: {outcome.reason}")
    command = ["gcovr", "--root", build.SOURCE, "--object-directory", folder, "--exclude", r".*_fuzz\.cc", "--json-summary"]
    # Threads and processes write the same counters; some lines of a file that was killed meanwhile are cut short.
    command += ["--gcov-ignore-parse-errors"]
    # What says of itself that it never runs.
    command += ["--exclude-lines-by-pattern", r".*VMBUSD_ASSERT\(false\).*"]
    for pattern in FACING:
        command += ["--filter", pattern]
    result = subprocess.run(
        [str(word) for word in [*command, folder]], cwd=build.SOURCE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    summary = json.loads(result.stdout)
    below = 0
    for file in sorted(summary["files"], key=lambda file: file["filename"]):
        if file["line_total"] == 0:
            continue
        few = file["line_percent"] < LEAST
        below += few
        print(f"{file['line_percent']:5.1f} %  {file['line_covered']:5} of {file['line_total']:5} lines  {file['filename']}{'  <-- few' if few else ''}")
    print(f"{summary['line_percent']:5.1f} % of all; {below} of {len(summary['files'])} files are below {LEAST} %")
    return not failed and below == 0
