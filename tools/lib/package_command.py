"""The command tools/package."""

import argparse
import os
import pathlib
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile

import build
import fetch
import run

SUITE = "bookworm"
READY_S = 30
# What removing packages leaves by Debian's own rules: the records of dpkg and apt, and the system user.
NOT_OURS = ("/var/lib/dpkg", "/var/lib/apt", "/var/cache", "/var/log", "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow",
            "/etc/.pwd.lock", "/etc/ld.so.cache", "/tmp", "/run", "/proc", "/dev", "/root")  # fmt: skip


class Failure(Exception):
    """What was wrong with the packages."""


def call(*command, **how):
    words = [str(word) for word in command]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **how)
    if result.returncode != 0:
        raise Failure(f"{shlex.join(words)} ended with {result.returncode}:\n{result.stdout}")
    return result.stdout


def build_packages(folder):
    """Builds the packages from the files that git knows or would add; returns their paths in `folder`."""
    with tempfile.TemporaryDirectory(prefix="vmbusd-package-") as scratch:
        source = pathlib.Path(scratch) / "vmbusd"
        names = call("git", "-C", build.SOURCE, "ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0")
        for name in filter(None, names):
            if (build.SOURCE / name).exists():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(build.SOURCE / name, source / name, follow_symlinks=False)
        compiler_cache = "/usr/lib/ccache"
        environment = {**os.environ, "PATH": f"{compiler_cache}:{os.environ['PATH']}", "CCACHE_NOHASHDIR": "1"}
        call("dpkg-buildpackage", "--unsigned-source", "--unsigned-changes", "--build=binary", cwd=source, env=environment)
        print(call("lintian", "--allow-root", "--fail-on", "error", *sorted(pathlib.Path(scratch).glob("*.changes"))), end="")
        made = []
        for package in sorted(pathlib.Path(scratch).glob("*.deb")):
            made.append(pathlib.Path(shutil.copy2(package, folder)))
        return made


def files_of(tree):
    """All files of a system but for what belongs to its package manager."""
    found = set()
    for folder, folders, names in os.walk(tree):
        inside = "/" + os.path.relpath(folder, tree).removeprefix(".")
        folders[:] = [name for name in folders if os.path.join(inside, name) not in NOT_OURS]
        found |= {os.path.join(inside, name) for name in folders + names if os.path.join(inside, name) not in NOT_OURS}
    return found


def in_tree(tree, script, **how):
    """The command that runs a shell script with `tree` as root. Not by chroot(2): no user namespace can be made in one."""
    enter = f"""set -e
mount --bind {shlex.quote(str(tree))} {shlex.quote(str(tree))}
cd {shlex.quote(str(tree))}
mount -t proc proc proc
mount --rbind /dev dev
pivot_root . mnt
exec chroot . sh -ec {shlex.quote("umount -l /mnt; " + script)}"""
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", enter]


def unit_settings(tree):
    """Key to values of the installed unit's [Service] section."""
    settings = {}
    for path in (tree / "lib/systemd/system/vmbusd.service", tree / "usr/lib/systemd/system/vmbusd.service"):
        if path.exists():
            lines = path.read_text().partition("[Service]")[2].partition("\n[")[0].splitlines()
            for line in (line for line in lines if "=" in line and not line.startswith("#")):
                key, _, value = line.partition("=")
                settings.setdefault(key, []).append(value)
            return settings
    raise Failure("the unit is not installed")


def try_service(tree):
    """Starts the daemon by its unit's command line as the unit's user, asks it by vmbusctl, and stops it."""
    settings = unit_settings(tree)
    (command,), (user,) = settings["ExecStart"], settings["User"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening, socket.socket(socket.AF_UNIX) as control:
        listening.bind(str(tree / "run/notify"))
        os.chmod(tree / "run/notify", 0o777)
        listening.settimeout(READY_S)
        # The control socket is given, as the socket unit does it, and is not the service's to remove.
        (tree / "run/vmbusd").mkdir()
        control.bind(str(tree / "run/vmbusd/control.sock"))
        control.listen()
        # setpriv's stand-in for User=, NoNewPrivileges= and an empty CapabilityBoundingSet=.
        script = (
            f"install -d -o {user} -g {user} -m 750 /run/vmbusd /var/lib/vmbusd; exec 3<&{control.fileno()}; "
            "export NOTIFY_SOCKET=/run/notify LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=control; "
            f"exec setpriv --reuid={user} --regid={user} --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all {command}"
        )
        log = tree / "run/log"
        with open(log, "w", encoding="utf-8") as said:
            daemon = subprocess.Popen(in_tree(tree, script), stdout=said, stderr=said, pass_fds=[control.fileno()])
        try:
            try:
                while b"READY=1" not in listening.recv(4096).split(b"\n"):
                    pass
            except TimeoutError:
                raise Failure(f"the service did not become ready: {log.read_text()}") from None
            ask = (
                "truncate -s 64M /var/lib/vmbusd/g1.img; chown vmbusd: /var/lib/vmbusd/g1.img; "
                "vmbusctl add name=g1 socket=/run/vmbusd/g1.sock scsi.name=scsi0 scsi.disk.lun=0 scsi.disk.path=/var/lib/vmbusd/g1.img; "
                "vmbusctl status; vmbusctl metrics >/run/metrics; vmbusctl events; "
                "vmbusctl config dump >/run/dump.toml; vmbusd --check-config --config /run/dump.toml; rm /var/lib/vmbusd/g1.img"
            )
            print(call("nsenter", f"--target={daemon.pid}", "--mount", "--root", "sh", "-ec", ask), end="")
        finally:
            daemon.terminate()
            status = daemon.wait(READY_S)
        if status != 0:
            raise Failure(f"the service ended with {status}: {log.read_text()}")
        if not (tree / "run/vmbusd/control.sock").exists():
            raise Failure("the service removed a socket that it was given")


def try_packages(packages):
    """Installs the packages in a clean Debian system, runs what is in them, and removes them."""
    with tempfile.TemporaryDirectory(prefix="vmbusd-package-") as scratch:
        tree = pathlib.Path(scratch) / "tree"
        print(f"making a clean Debian system ({SUITE})", flush=True)
        call("mmdebstrap", "--mode=root", "--variant=apt", "--format=directory", "--include=systemd", SUITE, tree, fetch.source_line(SUITE))
        before = files_of(tree)
        for package in packages:
            shutil.copy2(package, tree / "tmp")
        apt = "DEBIAN_FRONTEND=noninteractive apt-get -qq -y"
        call(*in_tree(tree, f"{apt} update; {apt} install --no-install-recommends /tmp/*.deb"))
        installed = files_of(tree)
        call(*in_tree(tree, "vmbusd --check-config --config /etc/vmbusd/vmbusd.toml; vmbusd --version; vmbus-vmm --version; vmbus-bench --help"))
        try_service(tree)
        names = " ".join(package.name.partition("_")[0] for package in packages)
        call(*in_tree(tree, f"{apt} purge --auto-remove {names}"))
        left = sorted(files_of(tree) - before)
        print(f"{len(installed - before)} files installed, {len(left)} left after the packages were removed")
        if left:
            raise Failure("these are left behind:\n" + "\n".join(left))


def main():
    parser = argparse.ArgumentParser(
        prog="tools/package",
        description="Builds Debian packages of this tree and has lintian look at them. With --try, as root, installs them in "
        "a clean Debian system, starts the service by its unit's command line, and removes them again.",
    )
    parser.add_argument("folder", nargs="?", default="build-packages", metavar="DIR", help="where they are put (default: build-packages)")
    parser.add_argument("--try", action="store_true", dest="attempt", help="install, start and remove them")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.attempt and os.geteuid() != 0:
        return run.fail("tools/package: --try needs root")
    try:
        packages = build_packages(folder)
        print("\n".join(str(package) for package in packages))
        if arguments.attempt:
            try_packages([package for package in packages if "-dbgsym_" not in package.name])
    except Failure as failure:
        return run.fail(f"tools/package: {failure}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
