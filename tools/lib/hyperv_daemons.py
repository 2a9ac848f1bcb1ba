"""Makes the image with Debian's Hyper-V daemons, which answer the host's questions in a guest."""

import cpio
import fetch
import guest_image

SUITE = "bookworm"  # of the guests' other programs, whose C library they use
DAEMONS = ("usr/sbin/hv_kvp_daemon", "usr/sbin/hv_vss_daemon")


def image():
    """The path of the image, which a guest unpacks over its initramfs."""

    def make():
        tree = fetch.unpack([fetch.package(SUITE, "hyperv-daemons")], "hyperv-daemons")
        archive = cpio.Archive()
        for daemon in DAEMONS:
            archive.copy(tree / daemon, daemon)
        return archive.data()

    return guest_image.cached("hyperv-daemons", guest_image.inputs_of(__file__, cpio.__file__), make)
