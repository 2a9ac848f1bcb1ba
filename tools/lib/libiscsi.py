"""Makes the image with libiscsi's tests of SCSI targets, which drive any disk through its /dev/sg node."""

import os
import pathlib
import subprocess

import cpio
import fetch
import guest_image

SUITE = "bookworm"  # what docs/storage.md lists are this version's tests
PROGRAM = "usr/bin/iscsi-test-cu"
PACKAGES = ("libiscsi-bin", "libiscsi7", "libcunit1", "libibverbs1", "librdmacm1", "libnl-3-200", "libnl-route-3-200")
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")


def _linked(tree):
    """What the program loads, as paths: this machine's C library among it, which the guests' programs have, too."""
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(str(tree / folder) for folder in LIBRARIES)}
    text = subprocess.run(["ldd", tree / PROGRAM], env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    if "not found" in text:
        raise fetch.FetchError(f"{PROGRAM} of {SUITE} needs libraries that {', '.join(PACKAGES)} do not have")
    return [pathlib.Path(line.split(" => ")[1].split()[0]) for line in text.splitlines() if " => " in line]


def image():
    """The path of the image, which a guest unpacks over its initramfs: all of it is in /libiscsi."""

    def make():
        tree = fetch.unpack([fetch.package(SUITE, name) for name in PACKAGES], "libiscsi")
        archive = cpio.Archive()
        for path in (tree / PROGRAM, *_linked(tree)):
            archive.copy(path, f"libiscsi/{path.name}")
        return archive.data()

    return guest_image.cached("libiscsi", guest_image.inputs_of(__file__, cpio.__file__), make)
