"""Makes the disk image of a full Debian system: systemd, its own kernel and initramfs, networkd, an ssh server, fio, iperf3.

mmdebstrap installs the packages into a folder, where apt verifies them by the archive's signatures, and mke2fs copies that
into a partition of the image. Both need root, but neither a loop device nor, as containers know it, the right to mount.

The image is for tests on this machine: whoever reads it has its keys, and root has no password on its console.
"""

import hashlib
import os
import pathlib
import shlex
import shutil
import subprocess
import uuid

import fetch
import guest_image
import kernel

SETUP = pathlib.Path(__file__).resolve().parents[1] / "distro" / "setup"

SUITE = "bookworm"
PACKAGES = (
    "systemd-sysv", "dbus", "libpam-systemd", "udev", "kmod", "iproute2", "iputils-ping", "procps", "openssh-server",
    "linux-image-cloud-amd64", "initramfs-tools", "zstd", "busybox", "fio", "iperf3", "ethtool",
)  # fmt: skip
# As small cloud images do.
WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")

SIZE_MIB = 1024
PARTITION_MIB = 1  # where the one partition starts; its end is 1 MiB before the image's, for the second copy of the GPT


def _run_as_root(log, *command):
    as_root = [] if os.geteuid() == 0 else ["sudo"]
    words = [*as_root, *(str(word) for word in command)]
    result = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False)
    if result.returncode != 0:
        tail = " | ".join(pathlib.Path(log.name).read_text(errors="replace").splitlines()[-5:])
        raise fetch.FetchError(f"the Debian system could not be made: {command[0]}: {tail}; see {log.name}")


def _check_initramfs(path):
    """The system's root and network are on VMBus: its initramfs must have brought the drivers by itself."""
    unpacked = subprocess.run(["zstd", "-dcq", str(path)], stdout=subprocess.PIPE, check=True).stdout
    for module in ("hv_vmbus", "hv_storvsc", "hv_netvsc"):
        if f"/{module}.ko".encode() not in unpacked:
            raise fetch.FetchError(f"the initramfs of the Debian system has no {module}")


def _make(folder, log):
    """Makes the system into `folder`; its tree is in `tree` there meanwhile."""
    tree, disk, key = folder / "tree", folder / "disk.img", folder / "key"
    file_system = str(uuid.uuid4())
    comment = "key of vmbusd's test system"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", key], check=True)
    setup = shlex.join(["sh", str(SETUP)]) + ' "$1" ' + shlex.join([file_system, f"{key}.pub"])
    _run_as_root(
        log, "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", f"--include={','.join(PACKAGES)}",
        *(f"--dpkgopt=path-exclude={path}" for path in WITHOUT), "--aptopt=Acquire::Languages \"none\"",
        f"--customize-hook={setup}", SUITE, tree, fetch.source_line(SUITE),
    )  # fmt: skip
    for name in ("vmlinuz", "initrd.img"):
        shutil.copyfile(tree / name, folder / name)
    _check_initramfs(folder / "initrd.img")
    shutil.copyfile(tree / "etc/ssh/ssh_host_ed25519_key.pub", folder / "host_key.pub")
    (folder / "root").write_text(f"UUID={file_system}")
    with open(disk, "wb") as file:
        file.truncate(SIZE_MIB << 20)
    table = f"label: gpt\nstart={PARTITION_MIB}MiB, size={SIZE_MIB - PARTITION_MIB - 1}MiB, type=linux\n"
    subprocess.run(["sfdisk", "--quiet", str(disk)], input=table, text=True, check=True, stdout=log, stderr=log)
    _run_as_root(
        log, "mke2fs", "-q", "-t", "ext4", "-U", file_system, "-d", tree,
        "-E", f"offset={PARTITION_MIB << 20},assume_storage_prezeroed=1", disk, f"{SIZE_MIB - PARTITION_MIB - 1}M",
    )  # fmt: skip
    _run_as_root(log, "rm", "-rf", "--one-file-system", tree)


def distro():
    """The part of a plan that tells which system to boot; the system is made where the cache has none.

    The image is for copying: it stays as it was made.
    """
    digest = hashlib.sha256("\n".join(guest_image.inputs_of(__file__, SETUP)).encode()).hexdigest()[:16]
    folder = fetch.cache_folder() / "distro" / digest
    if not folder.exists():
        print("making a Debian system: two hundred packages are fetched and installed, which takes some minutes", flush=True)
        draft = folder.with_suffix(".new")
        folder.parent.mkdir(exist_ok=True)
        with open(folder.with_suffix(".log"), "w", encoding="utf-8") as log:
            _run_as_root(log, "rm", "-rf", "--one-file-system", draft)  # of a run that was broken off
            draft.mkdir()
            _make(draft, log)
        draft.rename(folder)
    return {
        "kernel": str(kernel.vmlinux(folder / "vmlinuz")),
        "initrd": str(folder / "initrd.img"),
        "root": (folder / "root").read_text(),  # the kernel's argument
        "disk": str(folder / "disk.img"),
        "key": str(folder / "key"),  # that root is let in with
        "host_key": (folder / "host_key.pub").read_text(),
    }
