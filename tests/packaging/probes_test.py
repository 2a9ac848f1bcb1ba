"""The probes that tracers find in vmbusd are those that docs/tracing.md lists, and the scripts use no others.

probes_test.py VMBUSD DOCUMENT SCRIPT...
"""

import pathlib
import re
import subprocess
import sys

VMBUSD, DOCUMENT, *SCRIPTS = sys.argv[1:]


def main():
    notes = subprocess.run(["readelf", "--notes", "--wide", VMBUSD], capture_output=True, text=True, check=True).stdout
    found = {}
    for name, arguments in re.findall(r"Provider: vmbusd\s+Name: (\w+)\s+Location:.*\s+Arguments: ?(.*)", notes):
        found.setdefault(name, set()).add(len(arguments.split()))
    listed = {}
    for name, arguments in re.findall(r"^\| `(\w+)` \| ([^|]*) \|", pathlib.Path(DOCUMENT).read_text(encoding="utf-8"), re.MULTILINE):
        listed[name] = {len(re.sub(r"\([^)]*\)", "", arguments).split(","))}
    assert found == listed, f"in the program: {found}\nlisted: {listed}"
    for script in SCRIPTS:
        text = pathlib.Path(script).read_text(encoding="utf-8")
        used = set(re.findall(r"^usdt:/usr/bin/vmbusd:vmbusd:(\w+)$", text, re.MULTILINE))
        assert used and used <= set(found), f"{script}: {used - set(found)}"
        for name, body in re.findall(r"vmbusd:(\w+)\n(.*?^})", text, re.MULTILINE | re.DOTALL):
            last = max(map(int, re.findall(r"arg(\d+)", body)), default=-1)
            assert last < min(listed[name]), f"{script}: {name} has no arg{last}"
    print(f"{len(found)} probes")


main()
