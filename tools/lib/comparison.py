"""vmbusd and QEMU's virtio devices in turns: the same root partition, guest kernel, image, back ends and jobs."""

import pathlib
import threading
import time

from host import Disk, run
from network import IPV4, Network, Nic

CPUS = 2
MEMORY = "1G"
DISK_MIB = 512  # of the file; null_blk's device is twice as large, by which guests tell the two apart
NULL_GIB = 1

# Of KVM's statistics for all guests together. [linux: Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD; arch/x86/kvm/x86.c]
KVM_COUNTERS = ("exits", "halt_exits", "irq_injections")


def counters():
    """What the root partition counts: KVM's exits; seconds of processors, in guests and not; the clock."""
    folder = pathlib.Path("/sys/kernel/debug/kvm")
    values = {name: int((folder / name).read_text()) for name in KVM_COUNTERS if (folder / name).exists()}
    times = [int(word) for word in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = times[3] + times[4]
    # What guests used is in user's and nice's, too. [linux: Documentation/filesystems/proc.rst, 1.7]
    values["guest_s"] = sum(times[8:10]) / 100
    values["host_s"] = (sum(times[:8]) - idle) / 100 - values["guest_s"]
    values["clock_s"] = time.monotonic()
    return values


def _null_disk(session):
    """A block device of the root partition that stores nothing and answers at once."""
    session.undo("modprobe", "-r", "null_blk")
    run("modprobe", "null_blk", f"gb={NULL_GIB}", "nr_devices=1", f"submit_queues={CPUS}", "bs=512", "irqmode=0")
    return pathlib.Path("/dev/nullb0")


class Measured:
    """Takes what a guest of perf.sh says: the results, and what was counted between each job's begin and end."""

    def __init__(self):
        self.results = {}  # job to what the guest said of it
        self.counted = {}  # job to counters, as differences
        self._begin = {}
        self._lock = threading.Lock()

    def heard(self, key, value):
        with self._lock:
            if key == "begin":
                self._begin = counters()
            elif key == "end":
                now = counters()
                self.counted[value] = {name: round(now[name] - self._begin[name], 3) for name in now}
            elif key in ("fio", "iperf", "ping"):
                self.results[value.split()[0]] = (key, value)


def _jobs(plan):
    return {
        "HOST": f"{IPV4}.1", "RUNTIME": plan["seconds"], "FILE_MIB": DISK_MIB, "NULL_MIB": NULL_GIB << 10, "PINGS": plan["pings"], "JOBS": " ".join(plan["jobs"]),
    }  # fmt: skip


def _vmbusd(session, lan, images, variables):
    disks = [Disk(image, f"PERF{number}") for number, image in enumerate(images)]
    session.start_daemon({"demo": [*disks, Nic("vmtap0", options=f"queues = {CPUS}")]}, lan.prefix)
    lan.serve("vmtap0")
    initrd = session.job_image("vmbusd", "perf", **variables, NIC_DRIVER="hv_netvsc", DRIVERS="")
    return session.vmm_command("demo", initrd, CPUS, MEMORY)


def _qemu(controller, disk_device, drivers, vhost):
    def command(session, lan, images, variables):
        if vhost:
            run("modprobe", "vhost_net")
        lan.run("ip", "tuntap", "add", "vmtap0", "mode", "tap", "vnet_hdr", "multi_queue")
        lan.serve("vmtap0")
        initrd = session.job_image("qemu", "perf", **variables, NIC_DRIVER="virtio_net", DRIVERS=f"virtio_pci virtio_net {drivers}")
        disks = []
        for number, image in enumerate(images):
            disks += ["-drive", f"file={image},format=raw,if=none,id=disk{number},cache=none,aio=io_uring"]
            disks += ["-device", f"{disk_device},drive=disk{number}"]
        return [
            *lan.prefix, *session.plan["qemu"],
            *("-accel", "kvm", "-machine", "q35,usb=off,smbus=off,sata=off", "-cpu", "host", "-smp", str(CPUS), "-m", MEMORY),
            *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", session.plan["bzimage"]),
            *("-initrd", str(initrd), "-append", "console=ttyS0 panic=-1 mitigations=off init_on_alloc=0"),
            *("-object", "iothread,id=io", *controller, *disks),
            *("-netdev", f"tap,id=net,ifname=vmtap0,script=no,downscript=no,queues={CPUS},vhost={'on' if vhost else 'off'}"),
            *("-device", f"virtio-net-pci,netdev=net,mq=on,vectors={2 * CPUS + 2}"),
        ]  # fmt: skip

    return command


CONTENDERS = {
    "vmbusd": _vmbusd,
    "virtio-blk, virtio-net": _qemu((), f"virtio-blk-pci,iothread=io,num-queues={CPUS}", "virtio_blk", vhost=False),
    "virtio-scsi, vhost-net": _qemu(
        ("-device", f"virtio-scsi-pci,id=scsi,iothread=io,num_queues={CPUS}"), "scsi-hd,bus=scsi.0", "virtio_scsi sd_mod", vhost=True
    ),
}


def turn(session, contender):
    """One contender's guest from boot to power-off: a list of rows, one a job."""
    lan = Network(session)
    image = session.image("perf.img", DISK_MIB)
    with open(image, "r+b") as file:  # written once: what is measured is no allocation
        for _ in range(DISK_MIB):
            file.write(bytes(1 << 20))
    command = CONTENDERS[contender](session, lan, (image, _null_disk(session)), _jobs(session.plan))
    measured = Measured()
    guest = session.boot("perf", command, measured.heard)
    guest.finish(60 + 60 * (session.plan["seconds"] + 10))
    return [
        {"contender": contender, "job": job, "kind": kind, "said": said, "counted": measured.counted[job]}
        for job, (kind, said) in measured.results.items()
    ]
