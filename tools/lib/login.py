"""Logs into a guest by ssh, from the network namespace that its NIC leads to."""

import subprocess
import time

from host import GUEST_LIBRARY, check, job_script


class Login:
    """root of a guest that runs a system of distro_image.py. What its jobs print counts as said by the guest."""

    def __init__(self, guest, network, address, system):
        self._guest = guest
        self._log = network.session.logs / f"ssh-{guest.name}.log"
        known_hosts = network.session.files / f"known-hosts-{guest.name}"
        known_hosts.write_text(f"{address} {system['host_key']}")
        # The time-outs are for a guest that restarts meanwhile: its side of the connection is never heard of again.
        options = (
            "BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={known_hosts}",
            "GSSAPIAuthentication=no", "ConnectTimeout=30", "ServerAliveInterval=10", "ServerAliveCountMax=6",
        )  # fmt: skip
        self._command = [*network.prefix, "ssh", "-F", "none", "-i", system["key"]]
        for option in options:
            self._command += ["-o", option]
        self._command.append(f"root@{address}")

    def _ask(self, command):
        """(exit status, output) of a command."""
        with open(self._log, "a", encoding="utf-8") as log:
            result = subprocess.run(
                [*self._command, command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, check=False
            )
        return result.returncode, result.stdout

    def wait(self, timeout_s, after=None):
        """Waits until the guest lets us in, having started since its boot `after`; returns the boot's id."""
        end = time.monotonic() + timeout_s
        while True:
            status, boot = self._ask("cat /proc/sys/kernel/random/boot_id")
            if status == 0 and boot != after:
                return boot
            self._guest.check_alive()
            late = f"guest {self._guest.name} let nobody in within {timeout_s} s; {self._guest.trouble()}; see {self._log.name}"
            check(time.monotonic() < end, late)
            time.sleep(0.5)

    def request(self, command):
        """Runs a command after which the connection may end before its status comes."""
        status, output = self._ask(command)
        check(status in (0, 255), f"{command}: exit status {status}: {output}")

    def run(self, jobs, **variables):
        """Runs jobs of tools/guest/jobs in the guest, with variables set for them."""
        script = GUEST_LIBRARY.read_text(encoding="utf-8") + job_script(jobs, variables)
        with open(self._log, "a", encoding="utf-8") as log:
            command = [*self._command, "exec sh"]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as ssh:
                ssh.stdin.write(script)
                ssh.stdin.close()
                for line in ssh.stdout:
                    log.write(f"{time.strftime('%H:%M:%S')} {line}")
                    self._guest.hear(line.rstrip("\n"))
        check(ssh.returncode == 0, f"{jobs} by ssh: exit status {ssh.returncode}; {self._guest.trouble()}")
