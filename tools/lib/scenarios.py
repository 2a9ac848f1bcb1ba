"""What guests must show, one function a scenario. Runs in a root partition: scenarios.py PLAN.json.

The plan names the programs, the guest's kernel and image, the folders and the scenarios; run.py writes it. Each outcome
goes to the results at once, so that what was done is known even where the root partition dies.
"""

import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import traceback

import comparison

from host import Disk, Failure, Session, check, run
from login import Login
from network import IPV4, IPV6, UNPRIVILEGED, UPLINK, Network, Nic

ALIVE_S = 10  # between signs of life

# Bandwidth, IOPS, first percentile; counted from 0. The time in milliseconds is behind the IOPS. [fio(1): TERSE OUTPUT]
FIO_FIELD = {"read": (6, 7, 17), "write": (47, 48, 58)}


def parse_fio(line):
    """One line said by fio.sh: the job's label and fio's terse output, version 3."""
    label, _, terse = line.partition(" ")
    fields = terse.split(";")
    direction = "write" if "write" in label else "read"
    bandwidth, iops, percentiles = FIO_FIELD[direction]
    p50, p99 = (float(fields[percentiles + n].split("=")[1]) for n in (0, 1))
    return {
        "job": label,
        "iops": int(fields[iops]),
        "mbps": round(int(fields[bandwidth]) * 1024 / 1e6, 1),
        "p50_us": p50,
        "p99_us": p99,
    }


def iops_of_both(line):
    """Of a job that wrote and read: its operations by the time that they took."""
    fields = line.partition(" ")[2].split(";")
    rates = [(int(fields[iops]), int(fields[iops + 1])) for _, iops, _ in FIO_FIELD.values()]
    return sum(rate * time_ms for rate, time_ms in rates) / sum(time_ms for _, time_ms in rates)


def checksums_on_host(image, folder, session):
    """Opens the image without vmbusd: the first partition's file count and the checksum of its checksums."""
    table = json.loads(run("sfdisk", "-J", image))["partitiontable"]
    first = table["partitions"][0]
    sector = table.get("sectorsize", 512)
    loop = run("losetup", "--find", "--show", "--read-only", "--offset", first["start"] * sector,
               "--sizelimit", first["size"] * sector, image).strip()  # fmt: skip
    session.undo("losetup", "--detach", loop)
    run("fsck.ext4", "-fn", loop)
    folder.mkdir(exist_ok=True)
    run("mount", "-t", "ext4", "-o", "ro", loop, folder)
    session.undo("umount", folder)
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append((b"./" + str(path.relative_to(folder)).encode(), digest))
    listing = b"".join(digest.encode() + b"  " + name + b"\n" for name, digest in sorted(lines))
    return f"{len(lines)} {hashlib.sha256(listing).hexdigest()}"


def eventually(what, holds, timeout_s=60):
    """Waits until a condition holds."""
    end = time.monotonic() + timeout_s
    while not holds():
        check(time.monotonic() < end, f"not within {timeout_s} s: {what}")
        time.sleep(0.2)


def check_identity(guest, disk):
    said = [part.strip() for part in guest.last("disk").split("|")]
    expected = [disk.vendor, disk.product, disk.serial]
    check(said == expected, f"the guest sees the disk as {said}, vmbusd was told {expected}")
    log = guest.said.get("log", [])
    check(any("Hypervisor detected: Microsoft Hyper-V" in line for line in log), "the guest's kernel did not detect Hyper-V")
    check(any("Vmbus version:" in line for line in log), "the guest's log tells no VMBus version")
    check(guest.last("driver") in ("hv_storvsc", "storvsc"), f"the disk's driver is {guest.last('driver')}")


def vmbus_version(guest):
    line = next(line for line in guest.said["log"] if "Vmbus version:" in line)
    return line.split("Vmbus version:")[1].split()[0]


def verified_disk(session, disk, image, mib, cpus, memory, jobs="disk", timeout_s=900, **variables):
    """The disk test: the guest's own proof, then the host's. The daemon may run with further devices."""
    if not session.has_daemon():
        session.start_daemon({"demo": [disk]})
    guest = session.start_guest("demo", jobs, cpus, memory, SERIAL=disk.serial, MIB=mib, **variables)
    guest.finish(timeout_s)
    check_identity(guest, disk)
    check(guest.last("fsck") == "clean" and guest.last("compare") == "equal", guest.trouble())
    session.check_daemon()
    on_host = checksums_on_host(image, session.files / "mnt", session)
    check(on_host == guest.last("checksums"), f"the host finds {on_host}, the guest wrote {guest.last('checksums')}")
    return guest


def demo(session):
    """The demonstration: 256 MiB verified by guest and host, fio's table, the NIC, iperf3's table."""
    image = session.image("disk.img", 1024)
    disk = Disk(image, "DEMO0001", vendor="VMBUSD", product="DEMO DISK")
    plan = session.plan
    lan = Network(session)
    nic, host = demo_nic(session, lan, plan.get("nic_backend", "tap"))
    session.start_daemon({"demo": [disk, nic]}, lan.prefix)
    if nic.tap:
        lan.serve(nic.tap)
    guest = verified_disk(session, disk, image, 256, plan.get("cpus", 2), plan.get("memory", "1G"), "disk fio network iperf",
                          RUNTIME=plan.get("runtime", 4), PART="", SECONDS_EACH=plan.get("runtime", 4), UDP_RATE="50M", **host)  # fmt: skip
    check_nic(guest, plan.get("cpus", 2) if nic.tap else 1)
    check(not lan.checksum_errors(), f"wrong checksums on the host: {lan.checksum_errors()}")
    return {
        "guest": {"kernel": guest.last("kernel"), "vmbus": vmbus_version(guest)},
        "disk": {"checksum": "match", "fio": [parse_fio(line) for line in guest.said["fio"]]},
        "net": {"iperf3": [parse_iperf(line) for line in guest.said["iperf"]]},
        "log": guest.said["log"],
    }


def demo_nic(session, lan, backend):
    """A NIC on a back end, and the variables that tell guests where the other side is."""
    if backend == "tap":
        return Nic("vmtap0"), HOST
    lan.uplink()
    lan.iperf3()
    run("chown", "nobody:nogroup", session.files)
    socket = session.files / "passt.sock"
    lan.passt(socket)
    return Nic(socket=socket), {"HOST": f"{UPLINK}.1", "HOST6": ""}


def one_cpu_256m(session):
    """One VP, 256 MiB of memory, a disk in a file."""
    image = session.image("disk.img", 256)
    verified_disk(session, Disk(image, "SMALL-1"), image, 64, 1, "256M")


def four_cpus_4g_loop_device(session):
    """Four VPs, 4 GiB of memory (so RAM above 4 GiB carries I/O), a disk on a block device."""
    image = session.image("backing.img", 256)
    loop = run("losetup", "--find", "--show", "--direct-io=on", image).strip()
    session.undo("losetup", "--detach", loop)
    verified_disk(session, Disk(pathlib.Path(loop), "LOOP-1"), image, 64, 4, "4G")


def polled_disk(session):
    """A disk on a device with a queue that completes only what is polled for: the guest's data is right, and it was polled."""
    run("modprobe", "null_blk", "gb=1", "memory_backed=1", "nr_devices=1", "submit_queues=1", "poll_queues=1", "irqmode=0")
    session.undo("modprobe", "-r", "null_blk")
    device = pathlib.Path("/dev/nullb0")
    tracing = pathlib.Path("/sys/kernel/tracing")
    if not (tracing / "kprobe_events").exists():
        run("mount", "-t", "tracefs", "tracefs", tracing)
    # How often the driver was asked. [linux: Documentation/trace/kprobetrace.rst]
    (tracing / "kprobe_events").write_text("p:vmbusd_polled null_poll\n")
    enabled = tracing / "events/kprobes/vmbusd_polled/enable"
    enabled.write_text("1")
    try:
        session.start_daemon({"demo": [Disk(device, "POLL-1", options='direct = "on"\n    poll = true')]})
        verified_disk(session, Disk(device, "POLL-1"), device, 64, 2, "512M")
        hits = next(line.split()[1] for line in (tracing / "kprobe_profile").read_text().splitlines() if "vmbusd_polled" in line)
    finally:
        enabled.write_text("0")
        (tracing / "kprobe_events").write_text("")  # which empties it
    # Partition table and file system are looked at by pages, each of which is asked for once at least.
    check(int(hits) >= 20, f"the device was asked {hits} times only for what is done")
    session.say("polled", f"the device was asked {hits} times")


def second_kernel(session):
    """The disk test with another kernel than the default one."""
    session.plan.update(session.plan["second"])
    image = session.image("disk.img", 256)
    guest = verified_disk(session, Disk(image, "SECOND-1"), image, 64, 2, "512M")
    return {"guest": {"kernel": guest.last("kernel"), "vmbus": vmbus_version(guest)}}


def reboot(session):
    """The guest restarts inside its VM; vmbusd and vmbus-vmm stay; the disk is there with its data."""
    image = session.image("disk.img", 64)
    session.start_daemon({"demo": [Disk(image, "REBOOT-1")]})
    guest = session.start_guest("demo", "reboot", SERIAL="REBOOT-1")
    guest.finish(180)
    check(guest.said["boot"] == ["first", "second"], f"boots seen: {guest.said['boot']}")
    check(guest.last("kept") == "equal", guest.trouble())


def read_only(session):
    """A read-only disk reads, and refuses writes with DATA PROTECT, WRITE PROTECTED."""
    image = session.image("disk.img", 64)
    content = session.files / "content"
    content.mkdir()
    (content / "hello").write_text("from the host\n")
    run("mkfs.ext4", "-q", "-F", "-d", content, image)
    before = run("sha256sum", image)
    session.start_daemon({"demo": [Disk(image, "READONLY-1", readonly=True)]})
    guest = session.start_guest("demo", "readonly", SERIAL="READONLY-1")
    guest.finish(180)
    check(guest.last("ro") == "1", "the guest does not take the disk for read-only")
    check(guest.last("hello") == "from the host", f"the guest read {guest.last('hello')!r}")
    sense = guest.last("sense").lower()
    check("data protect" in sense and "write protected" in sense, f"the refused write's sense: {sense}")
    check(run("sha256sum", image) == before, "the image of the read-only disk changed")


def host_write_error(session):
    """Errors of the host's storage reach the guest's application; its other disk goes on."""
    bad_file = session.image("bad.img", 64)
    loop = run("losetup", "--find", "--show", bad_file).strip()
    session.undo("losetup", "--detach", loop)
    half = (32 << 20) // 512
    name = "vmbusd-test-bad"
    subprocess.run(
        ["dmsetup", "create", "--noudevsync", "--noudevrules", name],
        input=f"0 {half} linear {loop} 0\n{half} {half} error\n", text=True, check=True,
    )  # fmt: skip
    session.undo("dmsetup", "remove", "--noudevsync", "--force", name)
    # Not /dev/mapper/NAME, which only udev makes, and there may be none.
    bad = pathlib.Path("/dev") / run("dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", name).strip()
    small = session.files / "small"
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", small)
    session.undo("umount", small)
    with open(small / "full.img", "wb") as file:
        file.truncate(64 << 20)
    good = session.image("good.img", 64)
    session.start_daemon({"demo": [Disk(bad, "BAD-1"), Disk(small / "full.img", "FULL-1"), Disk(good, "GOOD-1")]})
    guest = session.start_guest("demo", "errors", cpus=2, BAD="BAD-1", FULL="FULL-1", GOOD="GOOD-1")
    guest.finish(240)
    check(guest.last("good") == "verified", guest.trouble())


def thin_disk(session):
    """On four channels discard reaches the host, and fstrim makes its file smaller."""
    image = session.image("disk.img", 256)
    session.start_daemon({"demo": [Disk(image, "THIN-1")]}, scsi="channels = 4")
    guest = session.start_guest("demo", "thin", cpus=4, SERIAL="THIN-1")
    guest.wait_for("filled", 240)
    filled = image.stat().st_blocks // 2048
    guest.finish(240)
    trimmed = image.stat().st_blocks // 2048
    check(filled >= 128, f"the guest filled the image with {filled} MiB only")
    check(trimmed <= filled - 100, f"fstrim left {trimmed} of {filled} MiB")
    check(guest.last("channels") == "4", f"the guest uses {guest.last('channels')} channels")
    check(guest.last("errors") == "0", f"the guest's kernel logged {guest.last('errors')} I/O errors")


# Families of libiscsi's tests whose commands there are, and tests that fail; why: docs/storage.md, What tests of others say.
LIBISCSI_FAMILIES = (
    "CompareAndWrite", "GetLBAStatus", "Inquiry", "Mandatory", "ModeSense6", "NoMedia", "PrinReadKeys", "PrinReportCapabilities",
    "PrinServiceactionRange", "ProutClear", "ProutRegister", "Read16", "ReadCapacity10", "ReadCapacity16", "ReadOnly", "ReportSupportedOpcodes",
    "StartStopUnit", "TestUnitReady", "Unmap", "Verify16", "Write16",
)  # fmt: skip
# The same again by shorter CDBs, what skips most of its tests, and what writes much: minutes in an emulated root partition.
LIBISCSI_LONG = (
    "PreventAllow", "ProutPreempt", "ProutReserve", "Read10", "Read12", "Read6", "Reserve6", "Verify10", "Verify12", "Write10", "Write12",
    "WriteSame10", "WriteSame16", "WriteVerify10", "WriteVerify12", "WriteVerify16",
)  # fmt: skip
LIBISCSI_FAILURES = {"GetLBAStatus.UnmapSingle", "Inquiry.EVPD", "WriteSame16.Unmap"}


def sg3_utils(session):
    """sg3-utils read each page and run each command, and libiscsi's tests fail where they must, listed in docs/storage.md."""
    families, at_least = (LIBISCSI_FAMILIES, 55)
    if session.plan.get("libiscsi_long"):
        families, at_least = (LIBISCSI_FAMILIES + LIBISCSI_LONG, 130)
    image = session.image("disk.img", 256)
    session.start_daemon({"demo": [Disk(image, "SG-1", options=f'reservations = "{session.files}/reservations"')]}, scsi="channels = 2")
    guest = session.start_guest("demo", "sg3-utils libiscsi", cpus=2, more_images=(session.plan["libiscsi"],), SERIAL="SG-1",
                                FAMILIES=" ".join(families))  # fmt: skip
    guest.finish(600)
    check("complaint" not in guest.said, f"sg3-utils complain: {' | '.join(guest.said.get('complaint', []))}")
    outcomes = {"passed": set(), "failed": set(), "skipped": set()}
    for line in guest.said["test"]:
        outcome, name = line.split()[:2]
        outcomes[outcome].add(name)
    check(outcomes["failed"] <= LIBISCSI_FAILURES, f"libiscsi's tests fail: {', '.join(sorted(outcomes['failed'] - LIBISCSI_FAILURES))}")
    check(len(outcomes["passed"]) >= at_least, f"only {len(outcomes['passed'])} of libiscsi's tests passed")
    return {"tried": guest.last("tried"), **{outcome: sorted(names) for outcome, names in outcomes.items()}}


def nbd(session):
    """Disks on NBD servers: errors and delays of one arrive as such and on no other; a server that is killed and comes back costs a pause."""

    def serve(log, socket, *arguments):
        path = session.files / socket
        path.unlink(missing_ok=True)
        server = session.start(log, "nbdkit", "--foreground", "--unix", path, *arguments)
        end = time.monotonic() + 20
        while not path.exists():
            check(server.poll() is None and time.monotonic() < end, f"nbdkit does not serve {path}: see {log}.log")
            time.sleep(0.05)
        return server, f"nbd+unix:///?socket={path}"

    _, bad = serve("nbdkit-bad", "bad.sock", "--filter=error", "--filter=delay", "memory", "16M", "error=EIO", "error-rate=1%",
                   "rdelay=200ms", "wdelay=200ms")  # fmt: skip
    image = session.image("killed.img", 32)
    server, killed = serve("nbdkit-1", "killed.sock", "file", image)
    disks = [Disk(bad, "BAD-1"), Disk(session.image("good.img", 64), "GOOD-1"), Disk(killed, "KILLED-1")]
    session.start_daemon({"demo": disks}, scsi="channels = 2")
    guest = session.start_guest("demo", "nbd", cpus=2, BAD="BAD-1", GOOD="GOOD-1", KILLED="KILLED-1")
    guest.wait_for("round", 240)
    time.sleep(5)
    server.kill()
    server.wait()
    session.wait_for_log("lost the NBD server")
    time.sleep(5)
    check(len(guest.said["round"]) == 1, "fio was done before the server came back")
    serve("nbdkit-2", "killed.sock", "file", image)
    back = session.wait_for_log("the NBD server is there again").split("again ")[-1]
    guest.finish(240)
    check(int(guest.last("bad")) > 0, "fio saw no error of the faulty disk")
    check(int(guest.last("medium-errors")) > 0, "the faulty disk's errors are no medium errors")
    check(guest.last("other-errors") == "0", f"other disks have errors: {' | '.join(guest.said.get('log', []))}")
    check(guest.last("killed-errors") == "0", "the server's absence reached the guest as an error")
    return {"errors": guest.last("bad"), "server back": back}


def vmm_killed(session):
    """SIGKILL of one guest's VMM under I/O: its neighbour sees no error, and the partition takes a new guest."""
    disks = {name: Disk(session.image(f"{name}.img", 64), f"{name.upper()}-1") for name in ("victim", "neighbour")}
    session.start_daemon({name: [disk] for name, disk in disks.items()})
    victim = session.start_guest("victim", "busy", SERIAL="VICTIM-1")
    neighbour = session.start_guest("neighbour", "steady", SERIAL="NEIGHBOUR-1", ROUNDS=6)
    victim.wait_for("busy", 180)
    rounds = len(neighbour.said.get("round", []))
    neighbour.wait_for("round", 180, times=max(1, rounds))
    victim.kill()
    session.check_daemon()
    check(len(neighbour.said.get("round", [])) < 6, "the neighbour was done before the victim was killed")
    neighbour.finish(150)
    check(neighbour.last("errors") == "0", f"the neighbour's kernel logged {neighbour.last('errors')} I/O errors")
    session.check_daemon()
    again = session.start_guest("victim", "steady", name="again", SERIAL="VICTIM-1", ROUNDS=1)
    again.finish(180)


def worker_killed(session):
    """SIGKILL of the worker process, then upgrades, under verified I/O and iperf3: the guest sees pauses and no error."""
    kills, upgrades = session.plan.get("worker_kills", 10), session.plan.get("upgrades", 3)
    lan = Network(session)
    session.start_daemon({"demo": [Disk(session.image("disk.img", 64), "KILLED-1"), Nic("vmtap0", options="queues = 2")]}, lan.prefix,
                         scsi="channels = 2", control=True)  # fmt: skip
    lan.serve("vmtap0")
    beats = session.files / "beats"
    beats.touch()
    lan.start("beats", "socat", "-u", f"EXEC:tail -n +1 -f {beats}", "TCP-LISTEN:5005,reuseaddr")
    guest = session.start_guest("demo", "network worker-killed", cpus=2, **HOST, SERIAL="KILLED-1")
    guest.wait_for("round", 180)
    log = session.logs / "vmbusd.log"
    before = session.worker("demo")

    def wait_for_pauses(count):
        nonlocal before
        end = time.monotonic() + 60
        while log.read_text(errors="replace").count(TAKEN_UP) < count or session.worker("demo") in (None, before):
            check(time.monotonic() < end, f"after {count} workers the guest was not taken up")
            guest.check_alive()
            check("failed" not in guest.said, guest.trouble())
            time.sleep(0.02)
        before = session.worker("demo")
        with open(beats, "a", encoding="utf-8") as file:
            file.write(f"beat {count}\n")
        time.sleep(random.uniform(0.5, 1.5))

    session.deaths_wanted = kills
    for number in range(1, kills + 1):
        os.kill(before, signal.SIGKILL)
        wait_for_pauses(number)
    for number in range(kills + 1, kills + upgrades + 1):
        session.control("upgrade", "demo")
        wait_for_pauses(number)
    with open(beats, "a", encoding="utf-8") as file:
        file.write("stop\n")
    guest.finish(300)
    check(guest.last("errors") == "0", f"the guest's kernel logged {guest.last('errors')} errors")
    check(guest.last("beats") == str(kills + upgrades), f"of {kills + upgrades} lines the connection brought {guest.last('beats')}")
    session.check_daemon()
    pauses = [int(line.split(TAKEN_UP)[1].split()[0]) for line in log.read_text().splitlines() if TAKEN_UP in line]
    result = {}
    for name, some in (("kills", sorted(pauses[:kills])), ("upgrades", sorted(pauses[kills:]))):
        if not some:
            continue
        # Of few, all but the longest: the first restart reads the program from a cold file system.
        result[name] = {"count": len(some), "p50_ms": some[len(some) // 2], "p99_ms": some[int(len(some) * 0.99) - 1], "max_ms": some[-1]}
        session.say("pauses", f"{name}: {result[name]}")
        check(result[name]["p99_ms"] < 1000, f"the pauses of {name} are {some} ms")
    return {**result, "rounds": len(guest.said["round"]), "iperf3": guest.said.get("streamed", [])}


def supervisor_killed(session):
    """SIGKILL and SIGTERM of vmbusd, started again, under verified I/O, iperf3 and a TCP connection that lasts: no error."""
    restarts = session.plan.get("supervisor_kills", 5)
    lan = Network(session)
    # The interface stays while no vmbusd has it.
    lan.run("ip", "tuntap", "add", "vmtap0", "mode", "tap", "vnet_hdr", "multi_queue")
    session.start_daemon({"demo": [Disk(session.image("disk.img", 64), "KILLED-2"), Nic("vmtap0", options="queues = 2")]}, lan.prefix,
                         scsi="channels = 2")  # fmt: skip
    lan.serve("vmtap0")
    beats = session.files / "beats"
    beats.touch()
    lan.start("beats", "socat", "-u", f"EXEC:tail -n +1 -f {beats}", "TCP-LISTEN:5005,reuseaddr")
    guest = session.start_guest("demo", "network worker-killed", cpus=2, **HOST, SERIAL="KILLED-2")
    guest.wait_for("round", 180)
    vmm_log = session.logs / "vmm-demo.log"
    pauses = []
    for number in range(1, restarts + 1):
        rounds = len(guest.said["round"])
        began = time.monotonic()
        # Without a process that has it open, as by a crash, or in order, as by systemctl restart.
        session.end_daemon(signal.SIGTERM if number % 5 == 4 else signal.SIGKILL)
        session.run_daemon()
        while vmm_log.read_text(errors="replace").count(VMM_BACK) < number:
            check(time.monotonic() - began < 60, f"after {number} restarts the guest was not taken up")
            guest.check_alive()
            session.check_daemon()
            check("failed" not in guest.said, guest.trouble())
            check(VMM_LOST not in vmm_log.read_text(errors="replace"), f"after {number} restarts the guest has lost its devices")
            time.sleep(0.02)
        pauses.append(int((time.monotonic() - began) * 1000))
        session.say("pause", f"{pauses[-1]} ms")
        with open(beats, "a", encoding="utf-8") as file:
            file.write(f"beat {number}\n")
        # The disk and its verification went on.
        guest.wait_for("round", 120, rounds + 1)
        time.sleep(random.uniform(0, 1))
    with open(beats, "a", encoding="utf-8") as file:
        file.write("stop\n")
    guest.finish(300)
    check(guest.last("errors") == "0", f"the guest's kernel logged {guest.last('errors')} errors")
    check(guest.last("beats") == str(restarts), f"of {restarts} lines the connection brought {guest.last('beats')}")
    session.check_daemon()
    return {"restarts": restarts, "pauses_ms": pauses, "rounds": len(guest.said["round"]), "iperf3": guest.said.get("streamed", [])}


def hot_plug(session):
    """A disk comes, is written, grows and goes, and a NIC comes and goes, while the guest uses another disk of the controller."""
    lan = Network(session)
    session.start_daemon({"demo": [Disk(session.image("disk.img", 64), "STEADY")]}, lan.prefix, control=True)
    plugged = session.image("plugged.img", 64)
    guest = session.start_guest("demo", "hot-plug", cpus=2, HOST=f"{IPV4}.1", GUEST=f"{IPV4}.50", SERIAL="STEADY",
                                PLUGGED="PLUGGED", TIMES=2)  # fmt: skip
    guest.wait_for("ready", 180)
    for times in (1, 2):
        size = 64 * (times + 1)
        session.control("add", "demo/demo-scsi0", "disk", "lun=5", f"path={plugged}", "serial=PLUGGED")
        guest.wait_for("written", 120, times)
        session.control("resize", "demo/demo-scsi0/5", f"{size}M")
        seen = guest.wait_for("grown", 60, times)
        check(seen == str(size << 11), f"the disk of {size} MiB has {seen} sectors for the guest")
        guest.wait_for("end-written", 60, times)
        session.control("remove", "demo/demo-scsi0/5")
        guest.wait_for("gone", 60, times)
        check(open_files(session, plugged) == [], "the image that was removed is open still")
        session.control("add", "demo", "nic", "name=nic7", "backend=tap", "tap=vmtap0")
        lan.wait_for_link("vmtap0")
        lan.address("vmtap0")
        guest.wait_for("pinged", 120, times)
        session.control("remove", "demo/nic7")
        guest.wait_for("nic-gone", 60, times)
        check(not lan.has_link("vmtap0"), "the interface that was removed is there still")
    guest.finish(180)
    check(guest.last("errors") == "0", f"the guest's kernel logged {guest.last('errors')} errors of the disk in use")
    session.check_daemon()
    return {"rounds": int(guest.last("rounds"))}


def open_files(session, path):
    """The descriptors of vmbusd and the worker that lead to a file."""
    worker = session.worker("demo")
    parent = pathlib.Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]
    links = [link for pid in (worker, parent) for link in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if os.path.exists(link) and os.path.samefile(link, path)]


def hostile_neighbour(session):
    """Verified I/O of a guest alone and, in turns, beside a hostile one of less weight: nothing is lost, and its IOPS stay."""
    turns = session.plan.get("neighbour_turns", 8)
    disk = Disk(session.image("disk.img", 64), "STEADY")
    prey = [Disk(session.image("hostile.img", 8), "PREY"), Nic(backend="loopback"), Nic(backend="null", name="nic1", options="receive_bytes = 60")]
    # One processor is all that an emulated root partition has. What an operator does about it: docs/quotas.md, Processor time.
    session.start_daemon({"demo": [disk], "hostile": prey}, keys={"hostile": "nice = 19"})
    guest = session.start_guest("demo", "neighbour", SERIAL="STEADY", TURNS=turns, MIB=4)
    iops = {"alone": [], "beside": []}
    for turn in range(turns):
        guest.wait_for("turn", 180, times=turn + 1)
        hostile = None
        if turn % 2 == 1:
            hostile = session.start("hostile", "nice", "-n", 19, session.plan["vmbus-hostile"], "--socket", session.socket("hostile"), "--seconds", 3600)
        said = guest.wait_for("fio", 240, times=turn + 1)
        if hostile:
            check(hostile.poll() is None, f"vmbus-hostile ended: {(session.logs / 'hostile.log').read_text().strip()}")
            hostile.kill()
            hostile.wait()
        iops["beside" if hostile else "alone"].append(round(iops_of_both(said)))
    guest.finish(60)
    check(guest.last("errors") == "0", f"the guest's kernel logged {guest.last('errors')} I/O errors")
    lives = (session.logs / "vmbusd.log").read_text(errors="replace").count("hostile: VMM attached")
    check(lives >= turns, f"the hostile guest attached {lives} times only")
    alone, beside = (statistics.median(iops[name]) for name in ("alone", "beside"))
    result = {"iops": iops, "ratio": round(beside / alone, 2), "hostile_lives": lives}
    session.say("neighbour", result)
    # Wide: what is emulated has bad moments. docs/testing.md has what was measured.
    check(beside > alone / 3, f"beside a hostile guest there are {beside} of {alone} IOPS left: {iops}")
    return result


TAKEN_UP = "the guest goes on after "
VMM_BACK = "vmbusd is back"
VMM_LOST = "do not answer any more"

HOST = {"HOST": f"{IPV4}.1", "HOST6": f"{IPV6}::1"}

FEATURES = {
    "tx-checksumming", "rx-checksumming", "scatter-gather", "tcp-segmentation-offload", "tx-tcp6-segmentation",
    "generic-receive-offload",
}  # fmt: skip


def parse_iperf(line):
    """One line said by iperf.sh: the job's label, then iperf3's last lines of text."""
    label, _, text = line.partition(" | ")
    report = {"job": label}
    for end in text.split("|"):
        words = end.split()
        if not words:
            continue
        at = words.index("Kbits/sec")
        if words[-1] == "receiver":
            report["gbps"] = round(float(words[at - 1]) / 1e6, 3)
        elif "ms" not in words:  # TCP: retransmits follow the rate
            report["retransmits"] = int(words[at + 1])
    return report


def check_nic(guest, cpus):
    features = set(guest.last("features").split())
    check(FEATURES <= features, f"the guest has no {', '.join(sorted(FEATURES - features))}; it has {', '.join(sorted(features))}")
    check(guest.last("channels").split()[-1] == str(cpus), f"the NIC has {guest.last('channels')} channels for {cpus} VPs")
    queues = set(guest.last("indirection").split())
    # With one channel there is no table.
    check(queues == {str(queue) for queue in range(cpus)} or (cpus == 1 and not queues), f"the indirection table names the queues {queues}")


def random_image(session, name, mib):
    path = session.files / name
    run("dd", "if=/dev/urandom", f"of={path}", "bs=1M", f"count={mib}")
    return path


def network(session):
    """Address by DHCP, IPv6, pings without loss, iperf3 both ways, 256 MiB both ways with equal checksums."""
    mib, pings = 256, session.plan.get("pings", 10000)
    source, target = random_image(session, "source.img", mib), session.image("target.img", mib)
    lan = Network(session)
    session.start_daemon({"demo": [Disk(source, "SOURCE", readonly=True), Disk(target, "TARGET"), Nic("vmtap0", options="queues = 2")]}, lan.prefix)
    lan.serve("vmtap0")
    received = {port: session.files / f"received-{port}" for port in (5000, 5006)}
    for port, path in received.items():
        lan.receiver(port, path)
    lan.sender(5001, source)
    guest = session.start_guest("demo", "network pings iperf copy", 2, "512M", **HOST, SOURCE="SOURCE", TARGET="TARGET",
                                SIZES="0 1472", PINGS=pings, SECONDS_EACH=2, UDP_RATE="200M")  # fmt: skip
    guest.finish(300)
    session.check_daemon()
    check_nic(guest, 2)
    digest = run("sha256sum", source).split()[0]
    for path in (*received.values(), target):
        check(run("sha256sum", path).split()[0] == digest, f"{path.name} differs from what was sent")
    check(not guest.last("checksum-errors"), f"wrong checksums in the guest: {guest.last('checksum-errors')}")
    check(not lan.checksum_errors(), f"wrong checksums on the host: {lan.checksum_errors()}")
    return {"iperf3": [parse_iperf(line) for line in guest.said["iperf"]]}


def network_offloads(session):
    """With each offload switched off in the guest, data arrives right both ways, without a wrong checksum."""
    source = random_image(session, "source.img", 8)
    lan = Network(session)
    session.start_daemon({"demo": [Nic("vmtap0", options="queues = 2")]}, lan.prefix)
    lan.serve("vmtap0")
    lan.sender(5001, source)
    lan.digester(5002)
    digest = run("sha256sum", source).split()[0]
    guest = session.start_guest("demo", "network offloads", 2, **HOST, DIGEST=digest, BYTES=8 << 20)
    guest.finish(300)
    check(not lan.checksum_errors(), f"wrong checksums on the host: {lan.checksum_errors()}")
    return {"right": guest.said["right"], "fixed": guest.said.get("fixed", [])}


def network_changes(session):
    """MTU, 50 times down and up, 20 times unbind and bind, a restart, under traffic: the NIC works after each."""
    lan = Network(session)
    image = session.image("disk.img", 16)
    session.start_daemon({"demo": [Disk(image, "CHANGES"), Nic("vmtap0", options="mtu = 9000\nqueues = 2")]}, lan.prefix)
    lan.serve("vmtap0", mtu=9000)
    lan.sink(5003)
    guest = session.start_guest("demo", "network changes", 2, **HOST, SERIAL="CHANGES", ROUNDS=50, REBINDS=20)
    guest.finish(420)
    check(guest.said["boot"] == ["first", "second"], f"boots seen: {guest.said['boot']}")
    session.check_daemon()


def network_queues(session):
    """Four VPs, four channels, eight streams: packets on every queue, and on those alone that the guest's indirection table names."""
    lan = Network(session)
    session.start_daemon({"demo": [Nic("vmtap0", options="queues = 4")]}, lan.prefix)
    lan.serve("vmtap0")
    guest = session.start_guest("demo", "network queues", 4, **HOST)
    guest.finish(240)
    check_nic(guest, 4)
    counts = dict(word.split(":") for word in guest.last("queues").split())
    check(len(counts) == 8 and all(int(count) for count in counts.values()), f"packets of the queues: {guest.last('queues')}")
    check(len(guest.said["steered"]) == 3, guest.trouble())
    for line in guest.said["steered"]:
        weights, before, after = ([int(word) for word in part.split()] for part in line.split("|"))
        counts = [end - begin for begin, end in zip(before, after)]
        wanted = sum(count for count, weight in zip(counts, weights) if weight)
        # What is no IP packet comes on queue 0.
        check(wanted >= 100 and wanted >= 0.95 * sum(counts), f"weights {weights}, packets received on the queues: {counts}")


def network_dpdk(session):
    """DPDK's netvsc driver over uio_hv_generic answers every ping, with one queue and with two."""
    lan = Network(session)
    session.start_daemon({"demo": [Nic("vmtap0", options="queues = 2\nmonitor = true")]}, lan.prefix)
    # IPv6 sends frames of its own, and what is counted here is pings and ARP.
    lan.run("sysctl", "-q", "net.ipv6.conf.vmtap0.disable_ipv6=1")
    lan.run("ip", "link", "set", "vmtap0", "up")
    # Several addresses, so that the hashes of their packets take both queues.
    sources = [f"{IPV4}.{number}" for number in range(1, 9)]
    for source in sources:
        lan.run("ip", "address", "add", f"{source}/24", "dev", "vmtap0")
    each = 125
    # testpmd copies frames of up to 512 bytes to a send section and names longer ones by their pages.
    sizes = (56, 1400)
    pings = each * len(sources) * len(sizes)
    guest = session.start_guest("demo", "dpdk", 2, "1G", more_images=[session.plan["dpdk"]], PINGS=pings)
    for queues in (1, 2):
        guest.wait_for("forwarding", 240, times=queues)
        before = lan.packets("vmtap0")
        for size in sizes:
            for source in sources:
                lan.run("ping", "-f", "-q", "-c", each, "-s", size, "-I", source, f"{IPV4}.100")
        counters = dict(word.split(":") for word in guest.wait_for("counters", 240, times=queues).split())
        after = lan.packets("vmtap0")
        # The kernel's count, for ping itself waits only two round trips for the last answers.
        answers = lan.echo_replies()
        check(answers == queues * pings, f"{answers} of {queues * pings} pings were answered")
        for ours, theirs in (("tx", "rx"), ("rx", "tx")):
            count = int(counters[f"{theirs}_good_packets"])
            check(count == after[ours] - before[ours], f"{ours} of the TAP: from {before} to {after}, testpmd counts {counters}")
            per_queue = [int(counters[f"{theirs}_q{queue}_good_packets"]) for queue in range(queues)]
            check(all(per_queue) and sum(per_queue) == count, f"testpmd with {queues} queues counts {counters}")
    guest.finish(60)
    session.check_daemon()
    return {"testpmd": guest.said["counters"]}


def two_guests(session):
    """Two guests on one bridge exchange traffic."""
    lan = Network(session)
    names = ("first", "second")
    session.start_daemon({name: [Nic(f"vm-{name}")] for name in names}, lan.prefix)
    lan.serve(lan.bridge(*(f"vm-{name}" for name in names)))
    server = session.start_guest("first", "network serve", **HOST)
    address = server.wait_for("address", 120).split("/")[0]
    server.wait_for("serving", 60)
    client = session.start_guest("second", "network iperf", **{**HOST, "HOST": address}, SECONDS_EACH=1, UDP_RATE="50M")
    client.finish(240)
    server.kill()
    return {"iperf3": [parse_iperf(line) for line in client.said["iperf"]]}


def served_file(session):
    """A folder for an HTTP server, with the file "data" in it, and the file's SHA-256."""
    folder = session.files / "www"
    folder.mkdir()
    return folder, run("sha256sum", random_image(session, "www/data", 2)).split()[0]


def passt_unprivileged(session):
    """vmbusd and passt without privileges: the guest loads a file over HTTP; passt is killed under disk I/O and comes back."""
    files = session.files
    folder, digest = served_file(session)
    disk, socket = session.image("disk.img", 64), files / "passt.sock"
    # A copy of the program: the build may lie where only its owner looks.
    session.plan = {**session.plan, "vmbusd": shutil.copy(session.plan["vmbusd"], files)}
    run("chown", "-R", "nobody:nogroup", files)
    lan = Network(session)
    lan.uplink()
    lan.http(folder, "127.0.0.1")
    passt = lan.passt(socket)
    session.start_daemon({"demo": [Disk(disk, "STEADY"), Nic(socket=socket)]}, [*lan.prefix, *UNPRIVILEGED])
    guest = session.start_guest("demo", "network link-loss", 2, HOST=f"{UPLINK}.1", HOST6="", SERIAL="STEADY", DIGEST=digest)
    guest.wait_for("ready", 180)
    passt.kill()
    passt.wait()
    guest.wait_for("link-down", 60)
    session.wait_for_log("link down")
    guest.wait_for("disk-goes-on", 120)
    lan.passt(socket)
    guest.finish(240)
    session.check_daemon()


def tap_removed(session):
    """The TAP is deleted under traffic: the link goes down, the disk goes on, and the NIC works again on the TAP made anew."""
    folder, digest = served_file(session)
    lan = Network(session)
    disk = session.image("disk.img", 64)
    session.start_daemon({"demo": [Disk(disk, "STEADY"), Nic("vmtap0", options="queues = 2")]}, lan.prefix)
    lan.serve("vmtap0")
    lan.http(folder, "0.0.0.0")
    guest = session.start_guest("demo", "network link-loss", 2, **HOST, SERIAL="STEADY", DIGEST=digest)
    guest.wait_for("ready", 180)
    lan.run("ip", "link", "delete", "vmtap0")
    session.wait_for_log("link down")
    guest.wait_for("disk-goes-on", 120)
    lan.wait_for_link("vmtap0")
    lan.address("vmtap0")
    guest.finish(240)
    session.check_daemon()


def serve_distro(session):
    """Serves a copy of the Debian system's disk, and a NIC; returns the network and the command that boots the system."""
    system, plan = session.plan["distro"], session.plan
    plan["kernel"] = system["kernel"]
    disk = session.files / "disk.img"
    # Unbuffered, for it is read ten times as fast where it is on 9p, as it is in an emulated root partition.
    run("dd", f"if={system['disk']}", f"of={disk}", "bs=480K", "iflag=direct", "conv=sparse")
    lan = Network(session)
    session.start_daemon({"demo": [Disk(disk, "DISTRO-1", product="DEBIAN DISK"), Nic("vmtap0")]}, lan.prefix)
    lan.serve("vmtap0")
    append = f"root={system['root']} ro quiet"
    return lan, session.vmm_command("demo", system["initrd"], plan.get("cpus", 1), plan.get("memory", "1G"), append)


def distro(session):
    """A full Debian system boots from the disk with its own initramfs; by ssh: fio, iperf3, reboot, poweroff."""
    lan, command = serve_distro(session)
    runtime = session.plan.get("runtime", 4)
    start = time.monotonic()
    guest = session.boot("demo", command)
    address = lan.lease(guest, 300)
    session.say("address", f"{address} by DHCP, {time.monotonic() - start:.0f} s after the start")
    login = Login(guest, lan, address, session.plan["distro"])
    first = login.wait(300)
    session.say("ssh", f"let in as root, {time.monotonic() - start:.0f} s after the start")
    login.run("system fio iperf", PART="/var/tmp/fio", RUNTIME=runtime, HOST=HOST["HOST"], SECONDS_EACH=runtime, UDP_RATE="50M")
    check(guest.last("state") == "running", f"systemd is {guest.last('state')}: {guest.said.get('unit')}")
    check(guest.last("root").split()[1:] == ["DISTRO-1", "hv_storvsc"], f"the root is on {guest.last('root')}")
    start = time.monotonic()
    login.request("systemctl reboot")
    login.wait(300, after=first)
    session.say("reboot", f"let in again {time.monotonic() - start:.0f} s later, on another boot")
    login.request("systemctl poweroff")
    guest.end(180)
    session.say("poweroff", "vmbus-vmm ended with status 0")
    check(not lan.checksum_errors(), f"wrong checksums on the host: {lan.checksum_errors()}")
    return {
        "guest": {"kernel": guest.last("kernel"), "vmbus": vmbus_version(guest), "startup": guest.last("startup")},
        "disk": {"fio": [parse_fio(line) for line in guest.said["fio"]]},
        "net": {"iperf3": [parse_iperf(line) for line in guest.said["iperf"]]},
    }


def integration(session):
    """Heartbeat, clock, keys, freeze, thaw and a clean power-off, by vmbusctl and a guest's hv_utils and Debian's daemons."""
    image = session.image("disk.img", 64)
    lan = Network(session)
    session.start_daemon({"demo": [Disk(image, "INTEGRATION"), Nic("vmtap0")]}, lan.prefix, control=True)
    guest = session.start_guest("demo", "integration", more_images=(session.plan["daemons"],), SERIAL="INTEGRATION")

    def seen():
        partition = next(each for each in json.loads(session.control("--json", "status"))["partitions"] if each["name"] == "demo")
        return partition["guest"]

    def part(path):
        return session.control("inspect", f"demo/{path}").strip()

    clock_off = int(guest.wait_for("clock", 180)) - round(time.time())
    check(abs(clock_off) < 20, f"the guest's clock is off by {clock_off} s")
    eventually("the guest's heartbeat is ok", lambda: seen()["health"] == "ok")

    guest.wait_for("daemons", 60)
    start = time.monotonic()
    eventually("the guest's address is known", lambda: "192.0.2.7" in seen()["addresses"])
    known_s = round(time.monotonic() - start, 1)
    told = seen()
    check(told["name"] == "vmbusd-guest.example", f"the guest is called {told['name']}")
    check(told["os"] == "Debian GNU/Linux 12", f"its system is {told['os']}")
    eventually("the guest's key is known", lambda: "grüße" in part("guest/keys"))
    session.control("key", "demo", "from-host", "grüße")
    check(guest.wait_for("told", 60) == "from-host grüße", f"the guest was told {guest.last('told')}")
    session.control("key", "demo", "from-host", "--delete")
    guest.wait_for("forgotten", 60)

    def beats():
        return len(guest.said.get("beat", []))

    check(session.refused("thaw", "demo").endswith("the guest is not frozen"), "what is not frozen was thawed")
    session.control("freeze", "demo", "--timeout", 60)
    frozen_at = beats()
    check(part("integration/vss/freeze") == "frozen", f"the guest is {part('integration/vss/freeze')}")
    time.sleep(3)
    # One may have been on its way to the console.
    check(beats() <= frozen_at + 1, f"the guest wrote {beats() - frozen_at} times while it was frozen")
    session.control("thaw", "demo")
    eventually("the guest writes on", lambda: beats() > frozen_at + 3)
    for time_s, what in ((2, "time"), (60, "the worker process that follows")):
        session.control("freeze", "demo", "--timeout", time_s)
        frozen_at = beats()
        if time_s == 60:
            session.control("upgrade", "demo")
        eventually(f"the guest is thawed by {what}", lambda at=frozen_at: beats() > at + 3)
        reason = session.refused("thaw", "demo")
        check("the guest was thawed before" in reason, f"thaw says {reason}")
    eventually("the guest's heartbeat is ok again", lambda: seen()["health"] == "ok")

    session.control("shutdown", "demo")
    guest.end(60)
    check("powers-off" in guest.said and "exit" not in guest.said, f"the guest did not power off by its own program; {guest.trouble()}")
    guest.last("unmounted")
    session.check_daemon()
    check(seen()["health"] == "unknown", f"the guest that is gone is {seen()['health']}")
    return {"clock_off_s": clock_off, "known_s": known_s}


SCENARIOS = {
    "demo": demo,
    "one-cpu-256m": one_cpu_256m,
    "four-cpus-4g-loop-device": four_cpus_4g_loop_device,
    "polled-disk": polled_disk,
    "reboot": reboot,
    "read-only": read_only,
    "host-write-error": host_write_error,
    "nbd": nbd,
    "thin-disk": thin_disk,
    "sg3-utils": sg3_utils,
    "vmm-killed": vmm_killed,
    "worker-killed": worker_killed,
    "supervisor-killed": supervisor_killed,
    "hot-plug": hot_plug,


    "hostile-neighbour": hostile_neighbour,
    "second-kernel": second_kernel,
    "network": network,
    "network-offloads": network_offloads,
    "network-changes": network_changes,
    "network-queues": network_queues,
    "network-dpdk": network_dpdk,
    "two-guests": two_guests,
    "passt-unprivileged": passt_unprivileged,
    "tap-removed": tap_removed,
    "distro": distro,
    "integration": integration,
}


def function_of(plan, name):
    """A scenario by its name: one of SCENARIOS, or a turn of tools/perf, whose contender the plan tells."""
    contender = plan.get("turns", {}).get(name)
    return SCENARIOS[name] if contender is None else lambda session: comparison.turn(session, contender)


def run_scenario(plan, name, on_line=None):
    """Runs one scenario; its outcome as a dictionary."""
    start = time.monotonic()
    outcome = {"name": name, "result": "passed", "reason": "", "deaths": 0}
    session = Session(dict(plan), name, on_line)
    try:
        with session:
            outcome["data"] = function_of(plan, name)(session)
    except Failure as failure:
        outcome.update(result="failed", reason=str(failure))
    except Exception:  # pylint: disable=broad-except  # one scenario's fault must not end the others
        outcome.update(result="failed", reason=traceback.format_exc())
    outcome.update(deaths=session.deaths, seconds=round(time.monotonic() - start, 1))
    return outcome


def shell(plan):
    """A guest with a disk and a NIC, its console on this terminal."""
    with Session(plan, "shell") as session:
        if "distro" in plan:
            _, command = serve_distro(session)
            return subprocess.run(command, check=False).returncode
        image = session.image("disk.img", 1024)
        lan = Network(session)
        nic, _ = demo_nic(session, lan, plan.get("nic_backend", "tap"))
        session.start_daemon({"demo": [Disk(image, "DEMO0001", product="DEMO DISK"), nic]}, lan.prefix)
        if nic.tap:
            lan.serve(nic.tap)
        command = session.vmm_command("demo", plan["initrd"], plan.get("cpus", 2), plan.get("memory", "1G"), "quiet")
        return subprocess.run(command, check=False).returncode


def show_life():
    """Tells whoever started the root partition that it has not frozen."""
    while True:
        time.sleep(ALIVE_S)
        print("alive", flush=True)


def main():
    plan = json.loads(pathlib.Path(sys.argv[1]).read_text())
    if plan.get("shell"):
        return shell(plan)
    results = pathlib.Path(plan["results"])
    threading.Thread(target=show_life, daemon=True).start()
    speak = (lambda key, value: print(f"said {key} {value}", flush=True)) if plan.get("speak") else None
    for name in plan["scenarios"]:
        print(f"start {name}", flush=True)
        outcome = run_scenario(plan, name, speak)
        (results / f"{name}.json").write_text(json.dumps(outcome, indent=1) + "\n")
        print(f"done {name}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
