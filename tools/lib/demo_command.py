"""The command tools/demo."""

import argparse
import json
import re
import shutil
import sys
import time

import build
import distro_image
import fetch
import kernel
import root
import run


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="tools/demo",
        description="Boots an unmodified Debian kernel as a guest on vmbusd with a disk and a NIC. 256 MiB are written and verified in the "
        "guest and checked again on the host; then fio measures the disk, iperf3 the NIC.",
        epilog="Where /dev/kvm offers no Hyper-V SynIC, all of it runs in an emulated root partition. "
        "Downloads are kept in ~/.cache/vmbusd; VMBUSD_CACHE names another folder. "
        "VMBUSD_BUILD_DIR names a build folder other than build/.",
    )
    parser.add_argument("--distro", action="store_true",
                        help="boot a full Debian system from the disk instead: DHCP, ssh, fio, iperf3, reboot, poweroff")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write what was measured")
    parser.add_argument("--shell", action="store_true", help="give a shell in the guest instead; it ends with the shell (vmbus-vmm's escape: Ctrl-A x)")
    parser.add_argument("--keep", metavar="DIR", help="keep logs and disk images there")
    parser.add_argument("--emulated", action="store_true", help="use the emulated root partition even where KVM would do")
    parser.add_argument("--kernel", metavar="PACKAGE-OR-FILE",
                        help="the guest's kernel: a package of bookworm, bookworm-backports or trixie (NAME or NAME/SUITE), "
                        "a .deb or a bzImage; default: linux-image-cloud-amd64/bookworm")  # fmt: skip
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="virtual processors of the guest (default 2)")
    parser.add_argument("--nic-backend", choices=("tap", "passt"), default="tap",
                        help="what is behind the NIC: a TAP, or passt, which needs no privilege (default tap)")  # fmt: skip
    parser.add_argument("--memory", default="1G", metavar="SIZE", help="memory of the guest (default 1G)")
    arguments = parser.parse_args()
    if arguments.distro and (arguments.kernel or arguments.nic_backend != "tap"):
        parser.error("--distro boots the system's own kernel, and reaches it over a TAP: it takes no --kernel and no --nic-backend")
    return arguments


# Of the guest's kernel log, the lines that tell of vmbusd.
EVIDENCE = ("Hypervisor detected", "Vmbus version", "hv_storvsc", "hv_netvsc", "VMBUSD", "Attached SCSI")

# Of what ethtool calls features, those that vmbusd has a part in.
OFFLOADS = re.compile("^(rx-checksumming|tx-checksum-ipv.|tx-tcp.*segmentation|large-receive-offload|.x-vlan-offload|receive-hashing)$")


def show(line):
    """One line that the guest said, for a person who watches."""
    word, _, text = line.partition(" ")
    key, _, value = text.partition(" ")
    if word != "said":
        if word not in ("start", "done", "alive"):
            print(line, flush=True)
        return
    if key == "log":
        if any(evidence in value for evidence in EVIDENCE):
            print(f"    guest: {value}", flush=True)
    elif key == "disk":
        print("  disk: vendor {}, model {}, serial {}".format(*(part.strip() for part in value.split("|"))), flush=True)
    elif key == "fio":
        print(f"  fio {value.split()[0]} done", flush=True)
    elif key in ("seconds", "exit"):
        return
    elif key == "nic":
        print("  NIC: {}, MAC address {}, MTU {}".format(*value.split()), flush=True)
    elif key == "iperf":
        print(f"  iperf3 {value.split()[0]} done", flush=True)
    elif key == "features":
        print(f"  offloads: {', '.join(word for word in value.split() if OFFLOADS.search(word))}", flush=True)
    elif key == "channels":
        print(f"  channels: {value.split()[-1]}", flush=True)
    elif key == "indirection":
        return
    else:
        print(f"  {key}: {value}", flush=True)


def print_fio(rows):
    print()
    print(f"{'fio job':24} {'IOPS':>9} {'MB/s':>9} {'p50 us':>10} {'p99 us':>10}")
    for row in rows:
        print(f"{row['job']:24} {row['iops']:9} {row['mbps']:9.1f} {row['p50_us']:10.0f} {row['p99_us']:10.0f}")
    print()


def print_iperf(rows):
    print(f"{'iperf3 job':24} {'Gbit/s':>9} {'retransmits':>12}")
    for row in rows:
        print(f"{row['job']:24} {row['gbps']:9.3f} {row.get('retransmits', '-'):>12}")
    print()


def main():
    arguments = parse_arguments()
    start = time.monotonic()
    mode, why = run.mode(arguments.emulated)
    run.explain_mode(mode, why)
    print(f"building {build.folder()}", flush=True)
    if not build.compile_all(targets=build.PROGRAMS):
        return run.fail("tools/demo: vmbusd does not build")
    name = "distro" if arguments.distro else "demo"
    if arguments.distro:
        guest = {"distro": distro_image.distro()}
        title = f"Debian {distro_image.SUITE}" + (", log in as root without a password" if arguments.shell else "")
    else:
        guest_kernel = kernel.find(arguments.kernel) if arguments.kernel else kernel.for_guest()
        guest = run.guest_of(guest_kernel)
        title = f"Linux {guest_kernel.release}"
    plan = {
        **run.programs(),
        **guest,
        "scenarios": [name],
        "cpus": arguments.cpus,
        "memory": arguments.memory,
        "speak": True,
        "nic_backend": arguments.nic_backend,
        "shell": arguments.shell,
        "keep_images": bool(arguments.keep),
    }
    results = run.keep_folder(arguments.keep)
    print(f"guest: {arguments.cpus} VPs, {arguments.memory}, {title}", flush=True)
    try:
        if arguments.shell:
            return run.run(plan, results, mode == "emulated", terminal=True)
        outcome_file = results / f"{name}.json"
        outcome_file.unlink(missing_ok=True)
        run.run(plan, results, mode == "emulated", show)
        outcome = json.loads(outcome_file.read_text())
        if outcome["deaths"]:
            print(f"guest kernels that died: {outcome['deaths']}")
        if outcome["result"] != "passed":
            return run.fail(f"tools/demo: {outcome['reason']}\nlogs: {results}")
    except root.RootError as error:
        return run.fail(f"tools/demo: {error}\nlogs: {results}")

    data = outcome["data"]
    if not arguments.distro:
        print("the host opened the image and found the same checksums")
    print_fio(data["disk"]["fio"])
    print_iperf(data["net"]["iperf3"])
    if arguments.json:
        report = {"mode": mode, "guest": data["guest"], "disk": data["disk"], "net": data["net"]}
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=2)
            file.write("\n")
    if not arguments.keep:
        shutil.rmtree(results, ignore_errors=True)
    print(f"demo passed in {time.monotonic() - start:.0f} s ({mode})")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except fetch.FetchError as problem:
        sys.exit(f"tools/demo: {problem}")
