"""Completion of vmbusctl: what each shell makes of keys that are typed at its prompt.

completion_test.py COMPLETIONS VMBUSCTL
"""

import os
import pathlib
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

COMPLETIONS = pathlib.Path(sys.argv[1]).resolve()
VMBUSCTL = sys.argv[2]
PATIENCE_S = 60
PROMPT = b"READY>"

# Takes vmbusctl's place: says what a completion asks for, and writes down what it is called with otherwise.
STAND_IN = r"""#!/bin/sh
case "$*" in
  status) printf 'PARTITION STATE\nguest1 serving\n  guest1.example, Debian 12,\n' ;;
  inspect\ guest1/devices) printf '/scsi0:\n  name: scsi0\n  type: scsi\n/nic0:\n  name: nic0\n  type: nic\n' ;;
  *) printf '%s\n' "$*" >"$HOME/called.new" && mv "$HOME/called.new" "$HOME/called" ;;
esac
"""

# What is typed, \t being the tabulator, and what vmbusctl is called with.
TYPED = {
    "met\t": "metrics",
    "log-\tw\t": "log-level warning",
    "insp\tg\t": "inspect guest1",
    "upg\tg\t": "upgrade guest1",
    "link g\td\t": "link guest1/nic0 down",
    "config d\t": "config dump",
    "events --f\t": "events --follow",
    "shutdown g\t--reb\t": "shutdown guest1 --reboot",
    "freeze --tim\t5 g\t": "freeze --timeout 5 guest1",
    "--js\tstat\t-": "--json status -",
}


def typed_at(shell, keys):
    """What vmbusctl is called with by `keys` at an interactive shell's prompt."""
    with tempfile.TemporaryDirectory(prefix="vmbusd-completion-") as folder:
        home = pathlib.Path(folder)
        (home / "bin").mkdir()
        (home / "bin/vmbusctl").write_text(STAND_IN)
        (home / "bin/vmbusctl").chmod(0o755)
        environment = {"HOME": folder, "PATH": f"{home}/bin:{os.environ['PATH']}", "TERM": "dumb", "LC_ALL": "C.UTF-8"}
        (home / "bash").write_text(f"PS1='READY>'\n. {COMPLETIONS}/vmbusctl.bash\n")
        shutil.copy(COMPLETIONS / "vmbusctl.zsh", home / "_vmbusctl")
        (home / ".zshrc").write_text(f"PS1='READY>'\nfpath=({folder} $fpath)\nautoload -Uz compinit\ncompinit -u -D\n")
        prompt = "function fish_prompt; echo -n 'READY>'; end; function fish_greeting; end"
        command = {
            "bash": ["bash", "--noprofile", "--rcfile", str(home / "bash"), "-i"],
            "zsh": ["zsh", "--no-globalrcs", "-i"],
            "fish": ["fish", "--init-command", f"{prompt}; source {COMPLETIONS}/vmbusctl.fish", "-i"],
        }[shell]
        child, terminal = pty.fork()
        if child == 0:
            os.chdir(folder)
            os.execvpe(command[0], command, environment)
        shown = b""
        deadline = time.monotonic() + PATIENCE_S
        waiting = [f"vmbusctl {keys}\n".encode()]
        called = home / "called"
        try:
            while not called.exists():
                if time.monotonic() > deadline:
                    raise AssertionError(f"{shell} did not call vmbusctl; it showed {shown!r}")
                if terminal in select.select([terminal], [], [], 0.1)[0]:
                    shown += os.read(terminal, 4096)
                if waiting and PROMPT in shown:
                    os.write(terminal, waiting.pop())
            return called.read_text().strip()
        finally:
            os.kill(child, 9)
            os.close(terminal)
            os.waitpid(child, 0)


class Completion(unittest.TestCase):
    """One test a shell; one that is not installed is passed over."""

    def completes(self, shell):
        if shutil.which(shell) is None:
            self.skipTest(f"{shell} is not installed")
        for keys, wanted in TYPED.items():
            with self.subTest(shell=shell, keys=keys):
                self.assertEqual(typed_at(shell, keys), wanted)

    def test_bash(self):
        self.completes("bash")

    def test_zsh(self):
        self.completes("zsh")

    def test_fish(self):
        self.completes("fish")

    def test_every_command_is_known(self):
        summary = subprocess.run([VMBUSCTL, "--help"], capture_output=True, text=True, check=True).stdout
        commands = re.findall(r"^  ([a-z-]+) ", summary.partition("Subcommands:")[2], re.MULTILINE)
        self.assertIn("status", commands)
        for path in COMPLETIONS.iterdir():
            words = set(re.findall(r"[a-z-]+", path.read_text()))
            self.assertEqual([command for command in commands if command not in words], [], path.name)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
