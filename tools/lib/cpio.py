"""Writes initramfs archives: the "newc" format of cpio. [linux: Documentation/driver-api/early-userspace/buffer-format.rst]"""

import os
import pathlib
import stat


class Archive:
    """Collects members and writes them in the order they came in. Owners are root, times zero: equal input, equal file."""

    def __init__(self):
        self._members = {}

    def folder(self, name):
        name = name.strip("/")
        if name and name not in self._members:
            self.folder(name.rpartition("/")[0])
            self._members[name] = (stat.S_IFDIR | 0o755, b"", 0)

    def file(self, name, data, mode=0o644):
        self._add(name, stat.S_IFREG | mode, data.encode() if isinstance(data, str) else data)

    def copy(self, path, name=None):
        """Copies a file of this machine, followed through links, under its own path or `name`."""
        mode = 0o755 if os.access(path, os.X_OK) else 0o644
        self.file(name or str(path), pathlib.Path(path).read_bytes(), mode)

    def link(self, name, target):
        self._add(name, stat.S_IFLNK | 0o777, target.encode())

    def device(self, name, major, minor):
        self._add(name, stat.S_IFCHR | 0o600, b"", major << 32 | minor)

    def _add(self, name, mode, data, device=0):
        name = name.strip("/")
        self.folder(name.rpartition("/")[0])
        self._members[name] = (mode, data, device)

    def data(self):
        parts = []
        for number, (name, (mode, data, device)) in enumerate(self._members.items(), 1):
            parts.append(_member(name, number, mode, data, device))
        parts.append(_member("TRAILER!!!", 0, 0, b"", 0))
        image = b"".join(parts)
        return image + bytes(-len(image) % 512)


def _member(name, number, mode, data, device):
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, device >> 32, device & 0xFFFFFFFF, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    head += bytes(-len(head) % 4)
    return head + data + bytes(-len(data) % 4)
