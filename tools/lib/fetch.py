"""Fetches Debian packages into a cache, verified, and never installs them.

Each suite has a private apt state below the cache: a sources list made from the system's own mirror and keyring, so that
the system's lists and preferences stay as they are. apt checks a package against the suite's signed index when it fetches
it; its SHA-256 is written down then, and checked again each time the package is used.
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Where a package is looked for when the caller names no suite. The first that has it wins.
SUITES = ("bookworm", "bookworm-backports", "trixie")


class FetchError(Exception):
    """A package could not be had; the text says which and why."""


def cache_folder():
    default = pathlib.Path.home() / ".cache" / "vmbusd"
    path = pathlib.Path(os.environ.get("VMBUSD_CACHE", default)).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _mirror():
    """The URI that the system itself gets Debian's packages from."""
    text = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    rows = [line.split() for line in text.splitlines()]
    for uri, release, component in (row for row in rows if len(row) == 3):
        if component == "main" and release in ("bookworm", "stable", "oldstable"):
            return uri
    raise FetchError("apt's sources name no mirror of Debian's main archive; see /etc/apt/sources.list")


def source_line(suite, kind="deb"):
    """The line of a sources list that names a suite's main archive and the keys that sign it."""
    return f"{kind} [signed-by={KEYRING}] {_mirror()} {suite} main"


def _apt_environment(suite, kind):
    """An environment in which apt knows one suite only. The state is made and updated where it is missing."""
    state = cache_folder() / "apt" / f"{suite}-{kind}"
    config = state / "apt.conf"
    if not config.exists():
        shutil.rmtree(state, ignore_errors=True)
        for folder in ("lists/partial", "archives/partial"):
            (state / folder).mkdir(parents=True)
        (state / "sources.list").write_text(source_line(suite, kind) + "\n")
        draft = state / "draft.conf"
        draft.write_text(
            f'Dir::Etc::sourcelist "{state}/sources.list";\n'
            'Dir::Etc::sourceparts "/nonexistent";\n'
            'Dir::Etc::preferences "/nonexistent";\n'
            'Dir::Etc::preferencesparts "/nonexistent";\n'
            f'Dir::State::lists "{state}/lists";\n'
            f'Dir::Cache "{state}";\n'
            'APT::Sandbox::User "root";\n'
            'Acquire::Languages "none";\n'
        )
        print(f"reading the package list of {suite}", flush=True)
        update = subprocess.run(
            ["apt-get", "update", "-qq", "--error-on=any"],
            env={**os.environ, "APT_CONFIG": str(draft)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if update.returncode != 0:
            raise FetchError(f"the mirror gives no package list of {suite}: {update.stdout.strip()}")
        draft.rename(config)  # the state is complete
    return {**os.environ, "APT_CONFIG": str(config)}


def _apt(suite, command, folder=None, kind="deb"):
    result = subprocess.run(
        command,
        env=_apt_environment(suite, kind),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise FetchError(f"{suite}: {' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


class _Manifest:
    """What the cache holds: "suite/package" to file name and SHA-256."""

    def __init__(self):
        self.path = cache_folder() / "manifest.json"
        self.entries = json.loads(self.path.read_text()) if self.path.exists() else {}

    def put(self, key, entry):
        self.entries[key] = entry
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(self.entries, indent=1, sort_keys=True) + "\n")
        draft.rename(self.path)


def package(suite, name, retried=False):
    """The path of a package of a suite, from the cache where it is there."""
    manifest = _Manifest()
    folder = cache_folder() / "packages" / suite
    key = f"{suite}/{name}"
    entry = manifest.entries.get(key)
    if entry and (folder / entry["file"]).exists():
        path = folder / entry["file"]
        if _sha256(path) == entry["sha256"]:
            return path
        print(f"{path} is damaged; it is fetched again", flush=True)
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _apt(suite, ["apt-cache", "show", "--no-all-versions", name])
    fields = dict(line.split(": ", 1) for line in wanted.splitlines() if ": " in line and not line.startswith(" "))
    print(f"fetching {name} {fields['Version']} of {suite}", flush=True)
    try:
        _apt(suite, ["apt-get", "download", "-qq", name], folder)
    except FetchError:
        if retried:
            raise
        # The mirror has moved on since the list was read.
        shutil.rmtree(cache_folder() / "apt" / f"{suite}-deb")
        return package(suite, name, retried=True)
    path = folder / f"{name}_{fields['Version'].replace(':', '%3a')}_{fields['Architecture']}.deb"
    if not path.exists() or _sha256(path) != fields["SHA256"]:
        raise FetchError(f"{path} is not the file that the index of {suite} describes")
    manifest.put(key, {"file": path.name, "sha256": fields["SHA256"]})
    return path


def dependency(suite, name, prefix):
    """The package that a meta-package depends on, by the beginning of its name."""
    for line in _apt(suite, ["apt-cache", "depends", name]).splitlines():
        relation, _, target = line.strip().partition(": ")
        if relation == "Depends" and target.startswith(prefix):
            return target
    raise FetchError(f"{name} of {suite} depends on no {prefix}*")


def has_package(suite, name):
    try:
        return bool(_apt(suite, ["apt-cache", "show", name]).strip())
    except FetchError:
        return False


def unpack(debs, name):
    """Unpacks packages into one folder of the cache, once. `name` tells this set of packages from others."""
    folder = cache_folder() / "unpacked" / name
    stamp = folder.with_suffix(folder.suffix + ".done")
    wanted = "\n".join(deb.name for deb in debs)
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for deb in debs:
            subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], check=True)
        stamp.write_text(wanted)
    return folder


def source(suite, name):
    """Fetches a source package and unpacks it; the path of its tree. apt checks the files against the signed index."""
    tree = cache_folder() / "sources" / f"{suite}-{name}"
    if not tree.exists():
        folder = tree.with_suffix(".files")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        print(f"fetching the source of {name} of {suite}", flush=True)
        _apt(suite, ["apt-get", "source", "-qq", "--download-only", name], folder, kind="deb-src")
        description = next(folder.glob("*.dsc"))
        draft = tree.with_suffix(".new")
        shutil.rmtree(draft, ignore_errors=True)
        subprocess.run(
            ["dpkg-source", "--no-check", "-x", str(description), str(draft)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        draft.rename(tree)
    return tree
