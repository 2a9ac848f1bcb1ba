"""Runs vmbusd and its guests in a root partition. Used there, by scenarios.py."""

import dataclasses
import pathlib
import signal
import subprocess
import threading
import time

import guest_image

JOBS = guest_image.GUEST_FILES / "jobs"
GUEST_LIBRARY = guest_image.GUEST_FILES / "guest.sh"

# What a guest's console shows when its kernel, not its job, came to an end.
# Under QEMU's emulated SVM it may be no fault of ours. Probable, from the source and one trace, not proven by a mended
# QEMU: an injected interrupt leaves its vector in exception_index, and a CPU loop that is asked to exit just then delivers
# it once more, with interrupts masked. [qemu: target/i386/tcg, svm_helper.c, helper_vmrun(), SVM_EVTINJ_TYPE_INTR] Such a
# death is counted and fails its scenario all the same: an interrupt that the VMM injects wrongly looks alike.
DEATHS = ("Kernel panic", "double fault", "BUG: unable to handle", "general protection fault", "watchdog: BUG: soft lockup")


class Failure(Exception):
    """A scenario did not show what it must show."""


def check(condition, text):
    if not condition:
        raise Failure(text)


def run(*command):
    """Runs a command of the root partition and returns what it printed; Failure where it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    check(result.returncode == 0, f"{' '.join(words)}: exit status {result.returncode}: {result.stdout.strip()}")
    return result.stdout


def job_script(jobs, variables):
    """The text of jobs of tools/guest/jobs, one after the other, with variables set for them."""
    text = "".join(f"{key}='{value}'\n" for key, value in variables.items())
    return text + "".join((JOBS / f"{job}.sh").read_text(encoding="utf-8") for job in jobs.split())


@dataclasses.dataclass(frozen=True)
class Disk:
    path: pathlib.Path | str  # or the URI of an NBD server
    serial: str
    readonly: bool = False
    vendor: str = "VMBUSD"
    product: str = "TEST DISK"
    options: str = ""  # further keys, as TOML

    def toml(self, lun):
        key = "nbd" if str(self.path).startswith("nbd") else "path"
        return (
            "    [[partition.scsi.disk]]\n"
            f"    lun = {lun}\n"
            f'    {key} = "{self.path}"\n'
            f'    vendor = "{self.vendor}"\n'
            f'    product = "{self.product}"\n'
            f'    serial = "{self.serial}"\n'
            f"    readonly = {str(self.readonly).lower()}\n"
            f"    {self.options}\n"
        )


class Guest:
    """A guest from the start of its VMM to its end, and what it said on its console."""

    def __init__(self, process, name, log_path, on_line):
        self.name = name
        self.process = process
        self.said = {}  # key to the values said, in their order
        self.lines = []
        self._news = threading.Condition()
        self._log_path = log_path
        self._on_line = on_line
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with open(self._log_path, "w", encoding="utf-8", errors="replace") as log:
            for raw in self.process.stdout:
                line = raw.decode(errors="replace").rstrip("\r\n")
                log.write(line + "\n")
                log.flush()
                self.hear(line)

    def hear(self, line):
        """Takes a line that the guest printed, on its console or elsewhere."""
        with self._news:
            self.lines.append(line)
            if line.startswith("@@ "):
                key, _, value = line.removeprefix("@@ ").partition(" ")
                self.said.setdefault(key, []).append(value)
                if self._on_line:
                    self._on_line(key, value)
            self._news.notify_all()

    def last(self, key):
        check(key in self.said, f"guest {self.name} never said {key!r}; {self.trouble()}")
        return self.said[key][-1]

    def wait_for(self, key, timeout_s, times=1):
        """Waits until the guest has said `key` so many times; returns the last value."""
        end = time.monotonic() + timeout_s
        with self._news:
            while len(self.said.get(key, ())) < times:
                left = end - time.monotonic()
                check(left > 0, f"guest {self.name} did not say {key!r} within {timeout_s} s; {self.trouble()}")
                check("failed" not in self.said, f"guest {self.name}: {self.said.get('failed')}")
                check(self._reader.is_alive(), f"guest {self.name} ended before it said {key!r}; {self.trouble()}")
                self._news.wait(min(left, 0.5))
        return self.said[key][-1]

    def death(self):
        """The console line that tells of a crashed kernel, or None."""
        return next((line for line in self.lines if any(mark in line for mark in DEATHS)), None)

    def trouble(self):
        """What a reader wants to know first when a guest went wrong."""
        death = self.death()
        if death:
            return f"its kernel died: {death}"
        if "failed" in self.said:
            return f"its job failed: {self.said['failed'][-1]}"
        tail = " | ".join(self.lines[-6:])
        return f"its console ends: {tail}"

    def check_alive(self):
        check(not self.death(), f"guest {self.name}: {self.trouble()}")
        status = self.process.poll()
        check(status is None, f"the VMM of guest {self.name} ended with status {status}; {self.trouble()}")

    def end(self, timeout_s):
        """Waits for the guest to power itself off."""
        end = time.monotonic() + timeout_s
        while self.process.poll() is None:
            check(not self.death(), f"guest {self.name}: {self.trouble()}")
            check(time.monotonic() < end, f"guest {self.name} did not end within {timeout_s} s; {self.trouble()}")
            time.sleep(0.05)
        self._reader.join(10)
        status = self.process.returncode
        check("failed" not in self.said, f"guest {self.name}: {self.trouble()}")
        check(status == 0, f"the VMM of guest {self.name} ended with status {status}; {self.trouble()}")

    def finish(self, timeout_s):
        """Waits for the guest to power itself off, with its job done."""
        self.end(timeout_s)
        check(self.said.get("exit", ["none"])[-1] == "0", f"guest {self.name}: its job did not end well; {self.trouble()}")

    def kill(self):
        """SIGKILL to the VMM, as a crash of it would be."""
        self.process.kill()
        self.process.wait()
        self._reader.join(10)


class Session:
    """One scenario's world: a vmbusd, its guests, folders for images and logs. Leaves nothing running."""

    def __init__(self, plan, name, on_line=None):
        self.plan = plan
        self.files = pathlib.Path(plan["files"]) / name
        self.logs = pathlib.Path(plan["results"]) / name.replace("/", "-")
        self.deaths = 0
        self.deaths_wanted = 0  # of worker processes
        self._on_line = on_line
        self._daemon = None
        self._daemon_command = []
        self._guests = []
        self._programs = []
        self._undo = []

    def __enter__(self):
        self.files.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind, error, trace):
        for guest in self._guests:
            if guest.process.poll() is None:
                guest.kill()
            self.deaths += guest.death() is not None
        try:
            self._stop_daemon(expect_clean=kind is None)
        finally:
            for program in self._programs:
                program.kill()
                program.wait()
            for command in reversed(self._undo):
                subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            if self.plan.get("keep_images"):
                for image in self.files.glob("*.img"):
                    subprocess.run(["cp", "--sparse=always", image, self.logs], check=False)
            subprocess.run(["rm", "-rf", "--one-file-system", self.files], check=False)
        return False

    def say(self, key, value):
        """Tells who watches, as a guest would."""
        if self._on_line:
            self._on_line(key, str(value))

    def undo(self, *command):
        """A command to run when the scenario is over, last first."""
        self._undo.append([str(word) for word in command])

    def start(self, name, *command):
        """A program that runs until the session ends; its output goes to the log NAME.log."""
        with open(self.logs / f"{name}.log", "w", encoding="utf-8") as log:
            program = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._programs.append(program)
        return program

    def image(self, name, size_mib):
        path = self.files / name
        with open(path, "wb") as file:
            file.truncate(size_mib << 20)
        return path

    def start_daemon(self, partitions, prefix=(), scsi="", control=False, keys=None):
        """Starts vmbusd with partitions, given as name to list of Disk and Nic, and waits for their sockets.

        `prefix` is a command that runs vmbusd, for example in a network namespace; `scsi` further keys of the
        controllers, as TOML; `control` gives it a control socket; `keys` has further keys of partitions by name, as TOML.
        """
        # Beside the images, where a vmbusd without privileges can read it; the logs keep a copy.
        config = self.files / "vmbusd.toml"
        text = f'control_socket = "{self.control_socket()}"\n' if control else ""
        for name, devices in partitions.items():
            disks = [device for device in devices if isinstance(device, Disk)]
            text += f'[[partition]]\nname = "{name}"\nsocket = "{self.socket(name)}"\n{(keys or {}).get(name, "")}\n'
            if disks:
                text += f'  [[partition.scsi]]\n  name = "{name}-scsi0"\n{scsi}\n'
            text += "".join(disk.toml(lun) for lun, disk in enumerate(disks))
            text += "".join(device.toml() for device in devices if device not in disks)
        for place in (config, self.logs / config.name):
            place.write_text(text)
        check_result = subprocess.run(
            [self.plan["vmbusd"], "--config", config, "--check-config"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        check(check_result.returncode == 0, f"vmbusd --check-config: {check_result.stdout.strip()}")
        (self.logs / "vmbusd.log").write_text("")
        self._daemon_command = [*prefix, self.plan["vmbusd"], "--config", str(config), "--log-level", "debug"]
        self.run_daemon()
        end = time.monotonic() + 20
        while not all(self.socket(name).exists() for name in partitions):
            self.check_daemon()
            check(time.monotonic() < end, f"vmbusd made no partition sockets within 20 s; {self._daemon_tail()}")
            time.sleep(0.05)

    def run_daemon(self):
        """Runs vmbusd once more as start_daemon() did; its log goes on."""
        with open(self.logs / "vmbusd.log", "a", encoding="utf-8") as log:
            self._daemon = subprocess.Popen(self._daemon_command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def end_daemon(self, number):
        """Signals vmbusd and waits for its end."""
        self.check_daemon()
        self._daemon.send_signal(number)
        try:
            status = self._daemon.wait(20)
        except subprocess.TimeoutExpired as late:
            raise Failure(f"vmbusd did not end within 20 s of signal {number}") from late
        wanted = -number if number == signal.SIGKILL else 0
        check(status == wanted, f"vmbusd ended with status {status} on signal {number}; {self._daemon_tail()}")

    def control(self, *arguments):
        """Runs vmbusctl and returns what it printed; Failure where it fails."""
        return run(self.plan["vmbusctl"], "--socket", self.control_socket(), *arguments)

    def refused(self, *arguments):
        """The same for what vmbusd must refuse; returns the reason."""
        command = [str(word) for word in (self.plan["vmbusctl"], "--socket", self.control_socket(), *arguments)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        check(result.returncode == 1, f"{' '.join(command)}: exit status {result.returncode}: {result.stdout.strip()}")
        return result.stdout.strip()

    def socket(self, partition):
        return self.files / f"{partition}.sock"

    def control_socket(self):
        return self.files / "control.sock"

    def _daemon_tail(self):
        return "its log ends: " + " | ".join((self.logs / "vmbusd.log").read_text(errors="replace").splitlines()[-5:])

    def has_daemon(self):
        return self._daemon is not None

    def wait_for_log(self, text, timeout_s=30):
        """Waits until vmbusd has logged a text; returns its line."""
        end = time.monotonic() + timeout_s
        while True:
            lines = (self.logs / "vmbusd.log").read_text(errors="replace").splitlines()
            found = [line for line in lines if text in line]
            if found:
                return found[-1]
            self.check_daemon()
            check(time.monotonic() < end, f"vmbusd did not log {text!r} within {timeout_s} s; {self._daemon_tail()}")
            time.sleep(0.1)

    def worker(self, partition):
        """The process id of a partition's worker; None where there is none now."""
        children = pathlib.Path(f"/proc/{self._daemon.pid}/task/{self._daemon.pid}/children").read_text().split()
        for pid in children:
            try:
                title = pathlib.Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
            except OSError:
                continue
            if title.startswith(f"vmbusd: {partition}\0"):
                return int(pid)
        return None

    def check_daemon(self):
        status = self._daemon.poll()
        check(status is None, f"vmbusd ended with status {status}; {self._daemon_tail() if status is not None else ''}")

    def vmm_command(self, partition, initrd, cpus, memory, append=""):
        return [
            self.plan["vmbus-vmm"],
            *("--kernel", self.plan["kernel"], "--initrd", str(initrd)),
            *("--append", f"console=ttyS0 panic=-1 mitigations=off init_on_alloc=0 {append}".strip()),
            *("--cpus", str(cpus), "--memory", memory, "--console", "stdio", "--attach", str(self.socket(partition))),
        ]

    def job_image(self, name, jobs, more_images=(), **variables):
        """The guests' initramfs with jobs of tools/guest/jobs, to run one after the other, with variables set for them.

        `more_images` are unpacked over it.
        """
        return guest_image.with_job((self.plan["initrd"], *more_images), job_script(jobs, variables), self.files / f"{name}.initrd")

    def boot(self, name, command, on_line=None):
        """A guest by a VMM's command, whose standard output is the guest's console."""
        with open(self.logs / f"vmm-{name}.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )  # fmt: skip
        guest = Guest(process, name, self.logs / f"guest-{name}.log", on_line or self._on_line)
        self._guests.append(guest)
        return guest

    def start_guest(self, partition, jobs, cpus=1, memory="512M", name=None, more_images=(), **variables):
        """Boots a guest on vmbus-vmm that runs jobs."""
        name = name or partition
        initrd = self.job_image(name, jobs, more_images, **variables)
        return self.boot(name, self.vmm_command(partition, initrd, cpus, memory))

    def _stop_daemon(self, expect_clean):
        if self._daemon is None:
            return
        if expect_clean:
            self.check_daemon()
        if self._daemon.poll() is None:
            self._daemon.send_signal(signal.SIGTERM)
            try:
                self._daemon.wait(20)
            except subprocess.TimeoutExpired as late:
                self._daemon.kill()
                self._daemon.wait()
                if expect_clean:
                    raise Failure("vmbusd did not stop within 20 s of SIGTERM") from late
        if expect_clean:
            check(self._daemon.returncode == 0, f"vmbusd ended with status {self._daemon.returncode}; {self._daemon_tail()}")
            deaths = [line for line in (self.logs / "vmbusd.log").read_text(errors="replace").splitlines() if "ended unexpectedly" in line]
            check(len(deaths) == self.deaths_wanted, f"worker processes died: {' | '.join(deaths)}")
