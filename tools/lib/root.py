"""The root partition that guests run under: this machine where its KVM can, else an emulated one.

The emulated root partition is a virtual machine whose processor QEMU emulates with SVM, so that kvm-amd inside it offers
the Hyper-V SynIC on any machine. Its root is this machine's own file system, read-only with an overlay, so every built
and installed program is there; what it writes below RESULTS comes out.
"""

import fcntl
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import cpio
import fetch
import guest_image
import kernel

ROOT_FILES = pathlib.Path(__file__).resolve().parents[1] / "root"

# Where a command in the emulated root partition leaves its results, and where it has files that know O_DIRECT.
RESULTS = pathlib.Path("/run/root-partition/results")
FILES = pathlib.Path("/run/root-partition/files")

MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "9p", "9pnet_virtio", "overlay", "ext4", "crc32c_generic", "kvm_amd",
           "loop", "tun")  # fmt: skip

# `tsc=reliable`: else the clock is the HPET, KVM gives guests no usable reference TSC page, and each look at the clock in
# a guest is an exit. The rest shortens the way through the emulated processor, as does a processor without ERMS and FSRM:
# kernels then copy by eight bytes for each step of the emulation, not by one.
COMMAND_LINE = "console=ttyS0 mitigations=off nokaslr tsc=reliable kvm_amd.nested=0 init_on_alloc=0 panic=-1 quiet loglevel=4"

# [linux: Documentation/virt/kvm/api.rst; include/uapi/linux/kvm.h]
KVM_CREATE_VM = 0xAE01
KVM_CHECK_EXTENSION = 0xAE03
KVM_CAP_HYPERV_SYNIC2 = 148


class RootError(Exception):
    """The root partition did not run its command to the end; the text says what was seen."""


def kvm_lacks():
    """Why this machine's KVM cannot run Hyper-V guests, or the empty string where it can."""
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    try:
        if not fcntl.ioctl(device, KVM_CHECK_EXTENSION, KVM_CAP_HYPERV_SYNIC2):
            return "/dev/kvm offers no Hyper-V SynIC"
        os.close(fcntl.ioctl(device, KVM_CREATE_VM, 0))
    except OSError as error:
        return f"/dev/kvm makes no virtual machine: {error.strerror}"
    finally:
        os.close(device)
    return ""


def emulator():
    """QEMU's program and the arguments that it needs to find its own files."""
    system = shutil.which("qemu-system-x86_64") or "/usr/bin/qemu-system-x86_64"
    try:
        names = ("qemu-system-x86", "qemu-system-common", "qemu-system-data")
        debs = [fetch.package("bookworm-backports", name) for name in names]
        tree = fetch.unpack(debs, "qemu-backports")
        program = tree / "usr/bin/qemu-system-x86_64"
        probe = subprocess.run([program, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if probe.returncode == 0:
            # Firmware (seabios, ipxe-qemu) is the system's: its packages are the same in both suites.
            return [str(program), "-L", str(tree / "usr/share/qemu"), "-L", "/usr/share/seabios", "-L", "/usr/share/qemu"]
        reason = probe.stderr.strip()
    except fetch.FetchError as error:
        reason = str(error)
    print(f"no QEMU of bookworm-backports ({reason}); the system's is used, under which guests have died", file=sys.stderr)
    return [system]


def _image(of_kernel):
    def make():
        archive = cpio.Archive()
        archive.device("dev/console", 5, 1)
        for folder in ("proc", "sys", "lower", "over", "root"):
            archive.folder(folder)
        guest_image.add_busybox(archive)
        archive.file("init", (ROOT_FILES / "init").read_text(encoding="utf-8"), 0o755)
        guest_image.add_modules(archive, of_kernel, MODULES)
        return archive.data()

    inputs = guest_image.inputs_of(__file__, ROOT_FILES / "init", cpio.__file__, guest_image.__file__, of_kernel.image)
    return guest_image.cached(f"root-{of_kernel.release}", inputs, make)


def prepare():
    """Fetches and makes what an emulated root partition needs; quick where it is there."""
    of_kernel = kernel.for_root()
    return of_kernel, _image(of_kernel), emulator()


def run_emulated(command, results, silence_s=180, memory="6G", terminal=False, output=None):
    """Runs a command in an emulated root partition and returns its exit status.

    `results` is a folder of this machine that the command sees as RESULTS; the partition's own console goes to
    root-console.log in it. Output goes to `output`, a function called with each line, or to this program's own. With
    `terminal` the command talks to this terminal. Raises RootError where the partition dies, or prints no line
    for `silence_s` seconds.
    """
    of_kernel, image, emulator = prepare()
    results = pathlib.Path(results).absolute()
    console = results / "root-console.log"
    (results / "status").unlink(missing_ok=True)
    (results / "terminal").unlink(missing_ok=True)
    (results / "command").write_text(shlex.join(str(word) for word in command) + "\n")
    (results / "modules").write_text(str(of_kernel.modules) + "\n")
    if terminal:
        size = os.get_terminal_size() if sys.stdout.isatty() else os.terminal_size((80, 24))
        (results / "terminal").write_text(f"rows {size.lines} cols {size.columns}\n")

    with tempfile.TemporaryDirectory(prefix="vmbusd-root-", dir="/var/tmp") as scratch:
        disk = pathlib.Path(scratch) / "files.img"
        with open(disk, "wb") as file:
            file.truncate(16 << 30)  # sparse
        subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1", "-O", "^has_journal", str(disk)], check=True)
        # One processor: with two the emulated SVM does not keep them apart, and root partitions die of overrun stacks or lose
        # interrupts. Seen in one of 8 to 10 boots of a guest with two; in none of 20 with one, which is slower by a half.
        arguments = [
            *emulator,
            *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,-la57,+svm,+npt,-erms,-fsrm"),
            *("-smp", "1", "-m", memory, "-nodefaults", "-display", "none", "-no-reboot"),
            *("-kernel", str(of_kernel.image), "-initrd", str(image)),
            *("-append", f"{COMMAND_LINE} ROOT_START={ROOT_FILES / 'start'}"),
            *("-fsdev", "local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=machine,mount_tag=machine"),
            *("-fsdev", f"local,id=results,path={results},security_model=none,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=results,mount_tag=results"),
            *("-drive", f"file={disk},format=raw,if=none,id=files,cache=unsafe,discard=unmap"),
            *("-device", "virtio-blk-pci,drive=files"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
            # Not "stdio" for output alone: at the end of its input it counts as unplugged, and writers wait for ever.
            *("-chardev", "stdio,id=out,signal=off" if terminal else "file,id=out,path=/dev/fd/1", "-device"),
            "virtconsole,chardev=out" if terminal else "virtserialport,chardev=out,name=out",
        ]
        status = _supervise(arguments, silence_s, terminal, output or print_line)

    if (results / "status").exists():
        return int((results / "status").read_text())
    tail = console.read_text(errors="replace").splitlines()[-30:] if console.exists() else []
    raise RootError("\n".join([f"the emulated root partition ended without a result ({status}); its console:", *tail]))


def print_line(line):
    print(line, flush=True)


def _supervise(arguments, silence_s, terminal, output):
    """Runs QEMU to its end, or until it says nothing for too long; tells in words how it ended."""
    if terminal:
        saved = subprocess.run(["stty", "-g"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
        try:
            return f"exit status {subprocess.run(arguments, check=False).returncode}"
        finally:
            if saved:
                subprocess.run(["stty", saved], check=False)
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        heard = [time.monotonic()]
        silent = threading.Event()

        def watch():
            while process.poll() is None:
                if time.monotonic() > heard[0] + silence_s:
                    silent.set()
                    process.kill()
                time.sleep(1)

        threading.Thread(target=watch, daemon=True).start()
        try:
            for line in process.stdout:
                heard[0] = time.monotonic()
                output(line.rstrip("\r\n"))
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
        return f"ended by the watchdog after {silence_s} s of silence" if silent.is_set() else f"exit status {process.returncode}"


def main():
    """Runs a command in an emulated root partition: python3 tools/lib/root.py COMMAND..."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print("usage: root.py [--terminal] COMMAND...   runs COMMAND in an emulated root partition")
        return 0
    terminal = sys.argv[1] == "--terminal"
    command = sys.argv[2 if terminal else 1 :]
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vmbusd-results-", dir="/var/tmp") as results:
        status = run_emulated(command, results, terminal=terminal)
        print(f"exit status {status} after {time.monotonic() - start:.1f} s", file=sys.stderr)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RootError, fetch.FetchError) as problem:
        sys.exit(f"root.py: {problem}")
