"""Makes the guests' initramfs: BusyBox, test programs with their libraries, and one kernel's unmodified modules."""

import hashlib
import os
import pathlib
import shutil
import subprocess

import cpio
import fetch

GUEST_FILES = pathlib.Path(__file__).resolve().parents[1] / "guest"

MODULES = (
    "hv_vmbus", "hv_storvsc", "hv_netvsc", "hv_utils", "hv_balloon", "uio_hv_generic", "sd_mod", "sr_mod", "sg", "ext4",
    "crc32c_generic", "loop", "af_packet",
)  # fmt: skip
# Modules that only some kernels have as modules of their own, or at all.
OPTIONAL_MODULES = ("crc32c-intel", "pci-hyperv", "hv_sock", "ptp", "vsock", "virtio_pci",
                    "virtio_blk", "virtio_scsi", "virtio_net")  # fmt: skip

PROGRAMS = ("mkfs.ext4", "fsck.ext4", "debugfs", "sfdisk", "blockdev", "sg_inq", "sg_vpd", "sg_raw", "sg_unmap", "sg_reset",
            "sg_luns", "sg_verify", "sg_write_same", "sg_compare_and_write", "sg_get_lba_status", "sg_opcodes", "sg_modes", "sg_readcap",
            "sg_persist", "sg_logs", "sg_requests", "sg_turs", "sg_sync", "sg_prevent", "sg_start", "sg_wr_mode", "blkdiscard", "fstrim", "ethtool", "iperf3", "ip", "tc", "taskset", "nstat", "ping", "socat")  # fmt: skip


def _which(program):
    path = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if not path:
        raise fetch.FetchError(f"{program} is not installed")
    return path


def _libraries(path):
    """The shared libraries that a program loads, its interpreter included."""
    text = subprocess.run(["ldd", path], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False).stdout
    words = (word for line in text.splitlines() for word in line.split())
    return sorted({word for word in words if word.startswith("/")})


def static_fio():
    """fio without its storage clients' libraries: those of Debian's program are 80 MB and take seconds to load in a guest."""
    program = fetch.cache_folder() / "fio-static"
    if not program.exists():
        tree = fetch.source("bookworm", "fio")
        print("building a static fio", flush=True)
        with open(tree.with_suffix(".log"), "w", encoding="utf-8") as log:
            for command in (["./configure", "--build-static", "--disable-native"], ["make", f"-j{os.cpu_count()}", "fio"]):
                subprocess.run(command, cwd=tree, stdout=log, stderr=log, check=True)
        draft = program.with_suffix(".new")
        subprocess.run(["strip", "-o", str(draft), str(tree / "fio")], check=True)
        draft.rename(program)
    return program


def add_busybox(archive):
    archive.copy("/bin/busybox")
    applets = subprocess.run(["/bin/busybox", "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            archive.link(f"bin/{applet}", "busybox")
    archive.link("sbin/modprobe", "../bin/busybox")


def add_modules(archive, kernel, names, optional=()):
    """Puts modules into an archive, unpacked, with the index that modprobe reads."""
    present = []
    for name in optional:
        try:
            present += kernel.module_files([name])
        except fetch.FetchError:
            continue
    files = list(dict.fromkeys([*kernel.module_files(names), *present]))
    staging = fetch.cache_folder() / "staging"
    shutil.rmtree(staging, ignore_errors=True)
    folder = staging / "lib" / "modules" / kernel.release
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(kernel.modules / file, target)
        unpacker = {".xz": "xz", ".zst": "zstd"}.get(target.suffix)
        if unpacker:
            subprocess.run([unpacker, "-dq", "--force", str(target)], check=True)
            target.unlink(missing_ok=True)
    for name in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
        if (kernel.modules / name).exists():
            shutil.copy(kernel.modules / name, folder / name)
    subprocess.run(["depmod", "-b", str(staging), kernel.release], check=True)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in ("modules.builtin.modinfo", "modules.order") and path.suffix != ".bin":
            archive.file(str(path.relative_to(staging)), path.read_bytes())
    shutil.rmtree(staging)


def cached(name, inputs, make):
    """The file `name` made by `make()` from inputs that are told by text; made again where one of them changed."""
    digest = hashlib.sha256("\n".join(str(item) for item in inputs).encode()).hexdigest()[:16]
    path = fetch.cache_folder() / "images" / f"{name}-{digest}.cpio"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        print(f"making the image {name}", flush=True)
        draft = path.with_suffix(".new")
        draft.write_bytes(make())
        draft.rename(path)
    return path


def inputs_of(*paths):
    """What tells a change of these files: for those of the checkout their text, for others size and time."""
    for path in map(pathlib.Path, paths):
        if path.is_relative_to(GUEST_FILES.parent):
            yield path.read_text(encoding="utf-8")
        else:
            status = path.stat()
            yield f"{path} {status.st_size} {status.st_mtime_ns}"


def guest_image(kernel):
    """The path of the guests' initramfs for a kernel."""
    fio = static_fio()
    programs = [_which(program) for program in PROGRAMS]

    def make():
        archive = cpio.Archive()
        archive.device("dev/console", 5, 1)
        for folder in ("proc", "sys", "tmp", "mnt", "root", "run", "var/tmp"):
            archive.folder(folder)
        add_busybox(archive)
        # BusyBox's own shell takes its applets before the programs below.
        archive.copy("/bin/dash", "bin/sh")
        for program in ("/bin/dash", *programs):
            archive.copy(program)
            for library in _libraries(program):
                archive.copy(library)
        archive.copy(fio, "usr/bin/fio")
        archive.copy("/etc/mke2fs.conf")
        archive.link("etc/mtab", "/proc/self/mounts")
        archive.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        archive.file("init", (GUEST_FILES / "init").read_text(encoding="utf-8"), 0o755)
        archive.file("lib/guest.sh", (GUEST_FILES / "guest.sh").read_text(encoding="utf-8"))
        archive.file("lib/udhcpc.sh", (GUEST_FILES / "udhcpc.sh").read_text(encoding="utf-8"), 0o755)
        add_modules(archive, kernel, MODULES, OPTIONAL_MODULES)
        return archive.data()

    files = (GUEST_FILES / name for name in ("init", "guest.sh", "udhcpc.sh"))
    sources = (__file__, *files, cpio.__file__, fio, kernel.image, *programs)
    return cached(f"guest-{kernel.release}", inputs_of(*sources), make)


def with_job(images, job, target):
    """Writes to `target` the images with a job behind them: the kernel unpacks archives that follow each other."""
    archive = cpio.Archive()
    archive.file("job.sh", job, 0o755)
    with open(target, "wb") as file:
        for image in images:
            file.write(pathlib.Path(image).read_bytes())
        file.write(archive.data())
    return target
