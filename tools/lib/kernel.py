"""Kernels for the root partition and its guests, taken unmodified from Debian's packages."""

import dataclasses
import lzma
import os
import pathlib
import shutil
import struct
import subprocess
import zlib

import fetch


@dataclasses.dataclass(frozen=True)
class Kernel:
    release: str  # as `uname -r` prints it
    image: pathlib.Path  # bzImage
    modules: pathlib.Path  # lib/modules/RELEASE, with modules.dep

    def vmlinux(self):
        return vmlinux(self.image)

    def module_files(self, names):
        """The named modules and all that they need, as paths below `modules`. Names that are built in have no file."""
        table = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, needs = line.split(":")
            table[_module_name(path)] = [path, *needs.split()]
        builtin = {_module_name(line) for line in (self.modules / "modules.builtin").read_text().splitlines()}
        files = []
        for name in names:
            name = name.replace("-", "_")
            if name in builtin:
                continue
            if name not in table:
                raise fetch.FetchError(f"kernel {self.release} has no module {name}")
            files += [path for path in table[name] if path not in files]
        return files


def vmlinux(image):
    """The ELF file inside a bzImage: it boots some seconds faster under emulation, where unpacking is slow."""
    path = fetch.cache_folder() / "vmlinux" / f"{image.name}-{_fingerprint(image)}"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(path.name + ".new")
        draft.write_bytes(_extract(image.read_bytes()))
        draft.rename(path)
    return path


def _module_name(path):
    return path.rsplit("/", 1)[-1].split(".ko")[0].replace("-", "_")


def _fingerprint(path):
    status = path.stat()
    return f"{status.st_size:x}-{status.st_mtime_ns:x}"


def _extract(image):
    """Unpacks a bzImage's payload. [linux: Documentation/arch/x86/boot.rst, payload_offset, payload_length]"""
    if image[0x202:0x206] != b"HdrS":
        raise fetch.FetchError("the kernel is no bzImage")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ\x00"):
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x1f\x8b"):
        elf = zlib.decompressobj(31).decompress(payload)
    elif unpacker := {b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4"}.get(payload[:4]):
        # The last four bytes are the unpacked length, which the kernel's build appends.
        elf = subprocess.run([unpacker, "-dc"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    else:
        raise fetch.FetchError(f"the kernel's payload begins with {payload[:4].hex()}: no compression known here")
    if elf[:4] != b"\x7fELF":
        raise fetch.FetchError("the kernel's payload is no ELF file")
    return elf


def _index_modules(tree, release):
    """Makes modules.dep and its fellows, as the package's own installation would."""
    modules = tree / "lib" / "modules" / release
    if not modules.exists() and (tree / "usr/lib/modules" / release).exists():
        (tree / "lib").mkdir(exist_ok=True)
        (tree / "lib/modules").symlink_to("../usr/lib/modules")
    if not (modules / "modules.dep").exists():
        subprocess.run(["depmod", "-b", str(tree), release], check=True)
    return modules


def _from_deb(deb):
    tree = fetch.unpack([deb], f"kernel-{deb.stem}")
    images = sorted((tree / "boot").glob("vmlinuz-*"))
    if not images:
        raise fetch.FetchError(f"{deb} holds no kernel")
    release = images[0].name.removeprefix("vmlinuz-")
    return Kernel(release, images[0], _index_modules(tree, release))


def from_suite(suite, name):
    """`name` is a kernel package, or a meta-package such as linux-image-cloud-amd64."""
    if not any(character.isdigit() for character in name.replace("amd64", "")):
        name = _remembered_dependency(suite, name)
    return _from_deb(fetch.package(suite, name))


def _remembered_dependency(suite, meta):
    """Resolves a meta-package once, so that a filled cache needs no network and no apt."""
    note = fetch.cache_folder() / "packages" / suite / f"{meta}.name"
    if not note.exists():
        name = fetch.dependency(suite, meta, "linux-image-")
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(name)
    return note.read_text()


def _from_image(path):
    """A bzImage file; its modules are looked for beside it, as packages lay them out, and in the system's folder."""
    image = path.read_bytes()
    if image[0x202:0x206] != b"HdrS":
        raise fetch.FetchError(f"{path} is neither a kernel package nor a bzImage")
    (text_offset,) = struct.unpack_from("<H", image, 0x20E)
    release = image[text_offset + 0x200 :].split(b"\0", 1)[0].decode().split()[0]
    for root in (path.parent.parent, pathlib.Path("/")):
        modules = root / "lib" / "modules" / release
        if (modules / "modules.dep").exists():
            return Kernel(release, path, modules)
    raise fetch.FetchError(f"{path} is Linux {release}, whose modules are not in {path.parent.parent}/lib/modules")


def find(text):
    """What `--kernel` takes: a .deb or bzImage file, or a package name, with /SUITE where one suite is meant."""
    path = pathlib.Path(text)
    if path.is_file():
        if path.suffix != ".deb":
            return _from_image(path.absolute())
        copy = fetch.cache_folder() / "packages" / "given" / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or _fingerprint(copy) != _fingerprint(path):
            shutil.copy2(path, copy)
            shutil.rmtree(fetch.cache_folder() / "unpacked" / f"kernel-{copy.stem}", ignore_errors=True)
        return _from_deb(copy)
    if os.sep not in text:
        for suite in fetch.SUITES:
            if fetch.has_package(suite, text):
                return from_suite(suite, text)
        raise fetch.FetchError(f"no suite of {', '.join(fetch.SUITES)} has a package {text}, and it is no file")
    name, suite = text.split(os.sep, 1)
    return from_suite(suite, name)


def for_root():
    """The root partition's own: the cloud flavour lacks 9p."""
    return from_suite("bookworm", "linux-image-amd64")


def for_guest():
    return from_suite("bookworm", "linux-image-cloud-amd64")
