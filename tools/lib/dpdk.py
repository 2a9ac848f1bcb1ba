"""Makes the image with DPDK's testpmd and its netvsc driver, which drives NICs without Linux's."""

import pathlib
import subprocess

import cpio
import fetch
import guest_image

# Debian 12's testpmd polls no queue of this driver: it asks for queue states, which the driver tells from 23.11 on only.
# [dpdk: "app/testpmd: fix primary process not polling all queues"; "net/netvsc: set queue state after start/stop"]
SUITE = "trixie"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
LOADER = f"{LIBRARIES}/ld-linux-x86-64.so.2"
TESTPMD = "usr/bin/dpdk-testpmd"

# What is loaded by name, below LIBRARIES; all else is linked to testpmd or to these. [dpdk: doc/guides/nics/netvsc.rst] The
# last is what its threads are ended with.
LOADED = ("dpdk/pmds-*/librte_net_netvsc.so.25", "dpdk/pmds-*/librte_mempool_ring.so.25", "libgcc_s.so.1")

# The packages of these, the suite's C library, and those that are not called as their libraries are.
PACKAGES = ("dpdk-dev", "librte-net-netvsc25", "librte-mempool-ring25", "libgcc-s1", "libc6", "ibverbs-providers", "libibverbs1",
            "libpcap0.8t64", "libelf1t64")  # fmt: skip


def _package_of(soname):
    """The package of a shared library. [Debian Policy Manual: Run-time shared libraries]"""
    name, version = soname.split(".so.")
    name = name.lower().replace("_", "-")
    return f"{name}-{version}" if name[-1].isdigit() else f"{name}{version}"


def _linked(tree):
    """What testpmd loads: paths by soname, None where neither `tree` nor this machine has the library."""
    loaded = [next((tree / LIBRARIES).glob(pattern)) for pattern in LOADED]
    found = {path.name: path for path in loaded}
    for program in (tree / TESTPMD, *loaded):
        # Unlike the loader's --list it goes on behind a library that is missing. [man: ld.so(8)]
        environment = {"LD_TRACE_LOADED_OBJECTS": "1"}
        command = [tree / LOADER, "--library-path", tree / LIBRARIES, program]
        text = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False).stdout
        for line in text.splitlines():
            soname, arrow, target = line.strip().partition(" => ")
            if arrow:
                found[pathlib.Path(soname).name] = None if target == "not found" else pathlib.Path(target.split()[0])
    return found


def _fetch_all():
    """Unpacks the packages and those of the libraries that are missing then, until none is."""
    names = list(PACKAGES)
    while True:
        tree = fetch.unpack([fetch.package(SUITE, name) for name in names], "dpdk")
        linked = _linked(tree)
        missing = sorted(_package_of(soname) for soname, path in linked.items() if path is None)
        if not missing:
            return tree, linked
        if any(name in names for name in missing):
            raise fetch.FetchError(f"the packages {', '.join(missing)} lack the libraries of their names")
        names += missing


def image():
    """The path of the image, which a guest unpacks over its initramfs: all of it is in /dpdk."""

    def make():
        tree, linked = _fetch_all()
        archive = cpio.Archive()
        # With a folder and a loader of its own: the guest's other programs have another C library.
        for file in (tree / TESTPMD, tree / LOADER):
            archive.copy(file, f"dpdk/{file.name}")
        for soname, path in linked.items():
            archive.copy(path, f"dpdk/{soname}")
        return archive.data()

    return guest_image.cached("dpdk", guest_image.inputs_of(__file__, cpio.__file__), make)
