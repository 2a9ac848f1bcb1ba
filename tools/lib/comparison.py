"""vmbusd and QEMU's virtio devices in turns: the same root partition, guest kernel, image, back ends and jobs."""

import pathlib
import threading

from host import Disk, run
from network import IPV4, Network, Nic

CPUS = 2
MEMORY = "1G"
DISK_MIB = 512

# Of KVM's statistics for all guests together. [linux: Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD; arch/x86/kvm/x86.c]
KVM_COUNTERS = ("exits", "halt_exits", "irq_injections")


def counters():
    """What the root partition counts: KVM's exits, its own processor time in seconds."""
    folder = pathlib.Path("/sys/kernel/debug/kvm")
    values = {name: int((folder / name).read_text()) for name in KVM_COUNTERS if (folder / name).exists()}
    times = [int(word) for word in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = times[3] + times[4]
    values["busy_s"] = (sum(times[:8]) - idle) / 100
    return values


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
        "HOST": f"{IPV4}.1", "RUNTIME": plan["seconds"], "SIZE": f"{DISK_MIB}m", "PINGS": plan["pings"], "JOBS": " ".join(plan["jobs"]),
    }  # fmt: skip


def _vmbusd(session, lan, image, variables):
    session.start_daemon({"demo": [Disk(image, "PERF"), Nic("vmtap0", options=f"queues = {CPUS}")]}, lan.prefix)
    lan.serve("vmtap0")
    initrd = session.job_image("vmbusd", "perf", **variables, DISK="sda", NIC_DRIVER="hv_netvsc", DRIVERS="")
    return session.vmm_command("demo", initrd, CPUS, MEMORY)


def _qemu(disk_device, vhost, disk_name):
    def command(session, lan, image, variables):
        if vhost:
            run("modprobe", "vhost_net")
        lan.run("ip", "tuntap", "add", "vmtap0", "mode", "tap", "vnet_hdr", "multi_queue")
        lan.serve("vmtap0")
        drivers = "virtio_pci virtio_net " + ("virtio_blk" if disk_name == "vda" else "virtio_scsi sd_mod")
        initrd = session.job_image("qemu", "perf", **variables, DISK=disk_name, NIC_DRIVER="virtio_net", DRIVERS=drivers)
        return [
            *lan.prefix, *session.plan["qemu"],
            *("-accel", "kvm", "-machine", "q35,usb=off,smbus=off,sata=off", "-cpu", "host", "-smp", str(CPUS), "-m", MEMORY),
            *("-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", session.plan["bzimage"]),
            *("-initrd", str(initrd), "-append", "console=ttyS0 panic=-1 mitigations=off init_on_alloc=0"),
            *("-object", "iothread,id=io", "-drive", f"file={image},format=raw,if=none,id=disk,cache=none,aio=io_uring"),
            *disk_device,
            *("-netdev", f"tap,id=net,ifname=vmtap0,script=no,downscript=no,queues={CPUS},vhost={'on' if vhost else 'off'}"),
            *("-device", f"virtio-net-pci,netdev=net,mq=on,vectors={2 * CPUS + 2}"),
        ]  # fmt: skip

    return command


CONTENDERS = {
    "vmbusd": _vmbusd,
    "virtio-blk, virtio-net": _qemu(("-device", f"virtio-blk-pci,drive=disk,iothread=io,num-queues={CPUS}"), False, "vda"),
    "virtio-scsi, vhost-net": _qemu(
        ("-device", f"virtio-scsi-pci,id=scsi,iothread=io,num_queues={CPUS}", "-device", "scsi-hd,drive=disk,bus=scsi.0"), True, "sda"
    ),
}


def turn(session, contender):
    """One contender's guest from boot to power-off: a list of rows, one a job."""
    lan = Network(session)
    image = session.image("perf.img", DISK_MIB)
    with open(image, "r+b") as file:  # written once: what is measured is no allocation
        for _ in range(DISK_MIB):
            file.write(bytes(1 << 20))
    command = CONTENDERS[contender](session, lan, image, _jobs(session.plan))
    measured = Measured()
    guest = session.boot("perf", command, measured.heard)
    guest.finish(60 + 40 * (session.plan["seconds"] + 10))
    return [
        {"contender": contender, "job": job, "kind": kind, "said": said, "counted": measured.counted[job]}
        for job, (kind, said) in measured.results.items()
    ]
