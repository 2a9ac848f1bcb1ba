"""Runs vmbusd's benchmarks and what they are measured beside, each for a turn of tools/peers.

A measurement returns its rows' readings: the row's name in ROWS to what vmbusd reached and what the peer did.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import time

import build
import fetch

VMBUS_BENCH = "bench/vmbus-bench"
PROGRAMS = ("daemon/vmbusd", VMBUS_BENCH)

# Debian 12 has no libblkio; its C library is new enough for the next one's.
LIBBLKIO_SUITE = "trixie"
LIBBLKIO = ("libblkio1", "libblkio-dev")

PATIENCE_SECONDS = 20
MEASUREMENT_SECONDS_MAX = 300  # of one program's; the longest takes seven times what --seconds says, and a little


class PeerError(Exception):
    """A program ended badly or says nothing; the text says which and what it said."""


@dataclasses.dataclass(frozen=True)
class Row:
    """`goal` bounds vmbusd's figure as a multiple of the peer's; by itself where there is no peer."""

    part: str
    unit: str
    peer: str = ""
    goal: tuple = ()  # "at least" or "at most", and the bound

    def reached(self, value):
        word, bound = self.goal
        return value >= bound if word == "at least" else value <= bound


# How the file is read, by both sides.
FILES = {"O_DIRECT": (), "page cache": ("--cached",)}
FRAME_BYTES = (64, 1514)
DIRECTIONS = ("transmit", "receive")
SIGNALS_GOAL = ("at most", 1 / 16)


def network_row(direction, size):
    return f"{direction} {size} B"


ROWS = {
    "64 B in and out, one at a time": Row("ring", "ns", "the copies alone", ("at most", 3)),
    "64 B in and out, 16 at a time": Row("ring", "ns", "the copies alone", ("at most", 3)),
    "4 KiB in and out, one at a time": Row("ring", "ns", "the copies alone", ("at most", 1.15)),
    "4 KiB in and out, 16 at a time": Row("ring", "ns", "the copies alone", ("at most", 1.15)),
    "64 B between two threads, 16 at a time": Row("ring", "M/s", "a plain atomic ring", ("at least", 1.5)),
    **{
        f"{file}, depth {what}": row
        for file in FILES
        for what, row in {
            "1: latency": Row("storage", "us", "fio, io_uring", ("at most", 1.15)),
            "32": Row("storage", "k/s", "fio, io_uring", ("at least", 0.95)),
            "32: calls a read": Row("storage", "", goal=("at most", 0.125)),
        }.items()
    },
    "null, depth 1": Row("storage", "k/s", "QEMU's storage daemon"),
    "null, depth 32": Row("storage", "k/s", "QEMU's storage daemon", ("at least", 1.5)),
    **{
        network_row(direction, size): Row("network", "M/s", "DPDK's testpmd", ("at least", 0.5 if size == 64 else 1))
        for direction in DIRECTIONS
        for size in FRAME_BYTES
    },
    "doorbells a frame, the most of these": Row("network", "", goal=SIGNALS_GOAL),
    "interrupts a frame, the most of these": Row("network", "", goal=SIGNALS_GOAL),
}


def _tail(path):
    return " | ".join(pathlib.Path(path).read_text(errors="replace").splitlines()[-5:])


def _json_of(command):
    try:
        result = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False, timeout=MEASUREMENT_SECONDS_MAX,
        )  # fmt: skip
        return json.loads(result.stdout)
    except subprocess.TimeoutExpired:
        raise PeerError(f"{command[0]} hangs") from None
    except ValueError:
        raise PeerError(f"{command[0]} gave no figures: {(result.stderr or result.stdout).strip()[-300:]}") from None


def _vmbus_bench(subcommand, *options):
    return _json_of([build.folder() / VMBUS_BENCH, subcommand, "--json", *options])


@contextlib.contextmanager
def _running(command, log, **options):
    """A program in the background; it is ended with the block."""
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=subprocess.STDOUT, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _until(what, done, process, log):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (seen := done()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise PeerError(f"{what}: {_tail(log)}")
        time.sleep(0.02)
    return seen


def ring(_folder, _seconds):
    """One turn of the ring's; Google Benchmark takes as long as it needs."""
    report = _vmbus_bench("ring", "--filter", "^(cycle<.*/memory:1|copies_alone.*|two_threads/batch:16/.*|two_threads_plain_ring.*)$")
    rate = {run["name"].replace("/memory:1", "").replace("/real_time", ""): run["items_per_second"] for run in report["benchmarks"]}
    readings = {
        f"{text} in and out, {how} at a time": tuple(1e9 / rate[f"{name}<{size}>/batch:{batch}"] for name in ("cycle", "copies_alone"))
        for size, text in ((64, "64 B"), (4096, "4 KiB"))
        for batch, how in ((1, "one"), (16, "16"))
    }
    readings["64 B between two threads, 16 at a time"] = (rate["two_threads/batch:16"] / 1e6, rate["two_threads_plain_ring"] / 1e6)
    return readings


def _blkio_bench(folder):
    """Compiles the benchmark that libblkio's authors wrote for it; the path of the program."""
    tree = fetch.unpack([fetch.package(LIBBLKIO_SUITE, name) for name in LIBBLKIO], "libblkio")
    libraries = next(tree.glob("usr/lib/*/libblkio.so")).parent
    source = tree / "usr/share/doc/libblkio-dev/examples/blkio-bench.c"
    program = folder / "blkio-bench"
    if not program.exists():
        command = ["cc", "-O2", "-pthread", "-o", program, source, f"-I{tree}/usr/include", f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lblkio"]
        subprocess.run(command, check=True)
    return program


def _storage_daemon(folder, seconds, depth):
    """Thousand reads a second from the null driver behind vhost-user-blk."""
    path, log = folder / "storage.sock", folder / "storage-daemon.log"
    path.unlink(missing_ok=True)
    program = _blkio_bench(folder)
    daemon = (
        "qemu-storage-daemon", "--object", "iothread,id=io",
        "--blockdev", "driver=null-co,node-name=null,size=268435456,read-zeroes=off",
        "--export", f"vhost-user-blk,id=export,node-name=null,iothread=io,writable=on,addr.type=unix,addr.path={path}",
    )  # fmt: skip
    # By interrupts: its polling gains some 8 % at depth 32, but was seen to hang.
    command = [program, f"--iodepth={depth}", "--readwrite=randread", f"--runtime={seconds}", "virtio-blk-vhost-user", f"path={path}"]
    with _running(daemon, log) as process:
        _until("QEMU's storage daemon does not listen", path.exists, process, log)
        return _json_of(command)["aggregate"]["kiops"]


def storage(folder, seconds):
    """One turn of the disks'; fio's is vmbus-bench's own business."""
    common = ("--rounds", "1", "--seconds", str(seconds), "--bs", "4096", "--qd", "1,32")
    readings = {}
    for file, options in FILES.items():
        # fio sleeps until a read is done; so does the guest.
        rows = _vmbus_bench("storage", *common, "--no-null", "--halt-poll", "0", *options)
        by_name = {(row["backend"], row["qd"]): row for row in rows}
        if not all(by_name["fio", depth]["iops"]["median"] for depth in (1, 32)):
            raise PeerError("fio measured nothing")
        ours, fio = by_name["file", 1], by_name["fio", 1]
        readings[f"{file}, depth 1: latency"] = (ours["latency_us"]["median"], fio["latency_us"]["median"])
        ours, fio = by_name["file", 32], by_name["fio", 32]
        readings[f"{file}, depth 32"] = (ours["iops"]["median"] / 1000, fio["iops"]["median"] / 1000)
        if (calls := ours["worker_system_calls_per_io"]) >= 0:
            readings[f"{file}, depth 32: calls a read"] = (calls, None)
    for row in _vmbus_bench("storage", *common, "--no-file"):
        depth = row["qd"]
        readings[f"null, depth {depth}"] = (row["iops"]["median"] / 1000, _storage_daemon(folder, seconds, depth))
    return readings


class _Testpmd:
    """One of the pair: forwards with one thread on one processor. The other's is where this one's main thread sleeps."""

    def __init__(self, folder, name, cpus, device, forward, size):
        self.log = folder / f"{name}.log"
        self._runtime = folder / name
        self._runtime.mkdir(exist_ok=True)
        main, forwarding = cpus
        self._command = (
            # Without huge pages, as the memory of vmbus-bench's guest.
            "dpdk-testpmd", "--no-huge", "-m", "512", "--no-pci", "--file-prefix", name, f"--lcores=0@{main},1@{forwarding}",
            "--vdev", device, "--", "--nb-cores=1", f"--forward-mode={forward}", f"--txpkts={size}", "--total-num-mbufs=16384",
        )  # fmt: skip

    def running(self):
        # It ends when its standard input does.
        return _running(self._command, self.log, stdin=subprocess.PIPE, env={**os.environ, "RUNTIME_DIRECTORY": str(self._runtime)})

    def received(self, process):
        """Packets so far. [dpdk: doc/guides/howto/telemetry.rst]"""
        path = next(self._runtime.glob("**/dpdk_telemetry.v2"), None)
        if path is None:
            return 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            try:
                client.connect(str(path))
                client.recv(4096)  # who it is
                client.send(b"/ethdev/stats,0")
                answer = json.loads(client.recv(65536))
            except (OSError, ValueError) as problem:
                if process.poll() is None:
                    return 0  # it is not that far
                raise PeerError(f"testpmd has ended: {_tail(self.log)}") from problem
        return (answer["/ethdev/stats"] or {}).get("ipackets", 0)


def _testpmd_pair(folder, seconds, direction, size):
    """Million packets a second through vhost-user, counted where they come out."""
    path = folder / "network.sock"
    path.unlink(missing_ok=True)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        raise PeerError("testpmd's pair needs two processors")
    forwards = ("rxonly", "txonly") if direction == "transmit" else ("txonly", "rxonly")
    host = _Testpmd(folder, "vhost", cpus, f"net_vhost0,iface={path},queues=1", forwards[0], size)
    guest = _Testpmd(folder, "virtio", cpus[::-1], f"net_virtio_user0,path={path},queues=1", forwards[1], size)
    with host.running() as host_process:
        _until("testpmd with vhost does not listen", path.exists, host_process, host.log)
        with guest.running() as guest_process:
            sink, process = (host, host_process) if direction == "transmit" else (guest, guest_process)
            _until("testpmd's pair moves nothing", lambda: sink.received(process), process, sink.log)
            begin, before = time.monotonic(), sink.received(process)
            time.sleep(seconds)
            rate = (sink.received(process) - before) / (time.monotonic() - begin)
    return rate / 1e6


def network(folder, seconds):
    """One turn of the NICs', both with null behind them."""
    rows = _vmbus_bench("network", "--rounds", "1", "--seconds", str(seconds))
    by_name = {(row["load"], row["bytes"]): row for row in rows}
    readings = {}
    for direction in DIRECTIONS:
        for size in FRAME_BYTES:
            ours = by_name[direction, size]["frames_per_second"]["median"] / 1e6
            readings[network_row(direction, size)] = (ours, _testpmd_pair(folder, seconds, direction, size))
    for signal in ("doorbells", "interrupts"):
        most = max(by_name[direction, size][f"{signal}_per_frame"] for direction in DIRECTIONS for size in FRAME_BYTES)
        readings[f"{signal} a frame, the most of these"] = (most, None)
    return readings


PARTS = {"ring": ring, "storage": storage, "network": network}
