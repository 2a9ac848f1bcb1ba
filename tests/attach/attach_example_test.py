"""The example of libvmbus-attach, in C, against a running vmbusd; and the library exports what its header declares.

attach_example_test.py VMBUSD EXAMPLE LIBRARY
"""

import pathlib
import re
import subprocess
import sys
import tempfile
import time

VMBUSD, EXAMPLE, LIBRARY = sys.argv[1:]
HEADER = pathlib.Path(__file__).parents[2] / "attach/vmbus-attach.h"
PATIENCE_S = 60

CONFIG = """[[partition]]
name = "demo"
socket = "demo.sock"
io_threads = 1
heartbeat = false
shutdown = false
timesync = false
kvp = false
vss = false

[[partition.scsi]]
name = "scsi0"

[[partition.nic]]
name = "nic0"
backend = "null"
"""


def attach(socket):
    return subprocess.run([EXAMPLE, socket], capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def main():
    declared = set(re.findall(r"\b(vmbus_attach_\w+)\(", HEADER.read_text(encoding="utf-8")))
    symbols = subprocess.run(["nm", "--dynamic", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    exported = set(re.findall(r" T (\w+)", symbols))
    assert exported == declared, f"exported: {exported}\ndeclared: {declared}"

    nobody = attach("/nonexistent/demo.sock")
    assert nobody.returncode == 1 and "cannot attach: " in nobody.stderr, nobody

    with tempfile.TemporaryDirectory(prefix="vmbusd-attach-") as folder:
        path = pathlib.Path(folder)
        (path / "c.toml").write_text(CONFIG, encoding="utf-8")
        with open(path / "log", "w", encoding="utf-8") as log:
            daemon = subprocess.Popen([VMBUSD, "--config", path / "c.toml"], stderr=log)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while "ready: " not in (path / "log").read_text(encoding="utf-8"):
                assert daemon.poll() is None and time.monotonic() < deadline, (path / "log").read_text(encoding="utf-8")
                time.sleep(0.02)
            # The second finds what the first left behind: nothing.
            for _ in range(2):
                client = attach(path / "demo.sock")
                assert client.returncode == 0, client
                lines = client.stdout.splitlines()
                assert lines[0] == "the version is accepted", lines
                assert sorted(line.split(" (")[0] for line in lines[1:]) == ["offered: a NIC", "offered: a SCSI controller"], lines
        finally:
            daemon.terminate()
            assert daemon.wait(PATIENCE_S) == 0
    print("attached, and was offered what there is")


main()
