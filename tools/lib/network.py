"""Networks for guests: a namespace in which vmbusd makes its TAPs, and what answers there."""

import dataclasses
import json
import pathlib
import subprocess
import time

from host import check, run

IPV4 = "10.77.0"  # the network; .1 is the host's side
IPV6 = "fd77:77"
UPLINK = "10.88.0"  # what passt takes over from the namespace; .1 is its gateway, by which guests reach the loopback here

# Who runs what needs no privilege: nobody's and nogroup's numbers in Debian.
UNPRIVILEGED = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]


@dataclasses.dataclass(frozen=True)
class Nic:
    """A NIC as a scenario wants it configured. `options` are further keys of the configuration file, as TOML."""

    tap: str = ""
    socket: pathlib.Path = None
    backend: str = ""  # one that has neither
    name: str = "nic0"
    options: str = ""

    def toml(self):
        if self.tap:
            backend = f'backend = "tap"\ntap = "{self.tap}"'
        elif self.socket:
            backend = f'backend = "stream"\nsocket = "{self.socket}"'
        else:
            backend = f'backend = "{self.backend}"'
        return f'  [[partition.nic]]\nname = "{self.name}"\n{backend}\n{self.options}\n'


class Network:
    """A network namespace. Everything in it ends with the session."""

    def __init__(self, session, name="lan"):
        self.session = session
        self.name = f"vmbusd-{name}"
        self.leases = session.files / "leases"
        self.prefix = ["ip", "netns", "exec", self.name]
        run("ip", "netns", "add", self.name)
        session.undo("ip", "netns", "delete", self.name)
        self.run("ip", "link", "set", "lo", "up")

    def run(self, *command):
        return run(*self.prefix, *command)

    def start(self, name, *command):
        """A program that runs in the namespace until the session ends; its output goes to the log NAME.log."""
        return self.session.start(name, *self.prefix, *command)

    def bridge(self, *taps, name="br0"):
        """Joins TAPs, which vmbusd has made, to a bridge."""
        self.run("ip", "link", "add", name, "type", "bridge")
        for tap in taps:
            self.run("ip", "link", "set", tap, "master", name, "up")
        return name

    def address(self, interface, mtu=1500):
        """Gives this side its addresses."""
        self.run("ip", "link", "set", interface, "mtu", mtu, "up")
        self.run("ip", "address", "add", f"{IPV4}.1/24", "dev", interface)
        self.run("ip", "address", "add", f"{IPV6}::1/64", "dev", interface, "nodad")

    def serve(self, interface, mtu=1500):
        """Gives this side its addresses, and guests theirs by DHCP and router advertisement; iperf3 listens."""
        self.address(interface, mtu)
        self.start(
            "dnsmasq", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--port=0",
            f"--interface={interface}", "--bind-dynamic", "--no-ping", "--dhcp-authoritative", f"--dhcp-leasefile={self.leases}",
            f"--dhcp-range={IPV4}.10,{IPV4}.200,1h", f"--dhcp-range={IPV6}::,ra-stateless,64,1h", "--enable-ra",
            "--log-facility=-", f"--dhcp-option=option:router,{IPV4}.1",
        )  # fmt: skip
        self.iperf3()

    def iperf3(self):
        self.start("iperf3", "iperf3", "--server")

    def http(self, folder, address):
        """Serves a folder's files at an address, port 8000."""
        self.start("http", "busybox", "httpd", "-f", "-p", f"{address}:8000", "-h", folder)

    def uplink(self):
        """An interface and a default route: passt gives its guest the addresses that the namespace has."""
        self.run("ip", "link", "add", "uplink", "type", "dummy")
        self.run("ip", "link", "set", "uplink", "up")
        self.run("ip", "address", "add", f"{UPLINK}.2/24", "dev", "uplink")
        self.run("ip", "route", "add", "default", "via", f"{UPLINK}.1")

    def passt(self, socket):
        """passt, without any privilege, on a socket in a folder of the unprivileged user."""
        socket.unlink(missing_ok=True)
        return self.start("passt", *UNPRIVILEGED, "passt", "--foreground", "--socket", socket)

    def packets(self, interface):
        """What the interface has received (from the guest) and sent (to it)."""
        (link,) = json.loads(self.run("ip", "-json", "-statistics", "link", "show", interface))
        return {direction: link["stats64"][direction]["packets"] for direction in ("rx", "tx")}

    def lease(self, guest, timeout_s):
        """Waits until a guest has an address by DHCP and returns it."""
        end = time.monotonic() + timeout_s
        while True:
            # Its end, the MAC address, the address, names; the server's own line is shorter. [dnsmasq: src/lease.c, lease_update_file]
            for words in map(str.split, self.leases.read_text().splitlines() if self.leases.exists() else ()):
                if len(words) == 5 and words[2].startswith(f"{IPV4}."):
                    return words[2]
            guest.check_alive()
            check(time.monotonic() < end, f"guest {guest.name} asked for no address within {timeout_s} s; {guest.trouble()}")
            time.sleep(0.2)

    def echo_replies(self):
        """How many answers to pings have arrived here."""
        return int(self.run("nstat", "-asz", "IcmpInEchoReps").split()[-2])

    def checksum_errors(self):
        """The kernel's counters of packets that arrived with a wrong checksum here, those that are not 0."""
        text = self.run("nstat", "-az")
        return [line for line in text.splitlines() if "csum" in line.lower() and line.split()[1] != "0"]

    def receiver(self, port, path):
        """Takes one TCP connection's bytes into a file."""
        return self.start(f"receiver-{port}", "socat", "-u", f"TCP6-LISTEN:{port},ipv6-v6only=0", f"CREATE:{path}")

    def sender(self, port, path):
        """Gives a file's bytes to each TCP connection."""
        return self.start(f"sender-{port}", "socat", "-U", f"TCP6-LISTEN:{port},ipv6-v6only=0,reuseaddr,fork", f"OPEN:{path},rdonly")

    def digester(self, port):
        """Answers each TCP connection with the SHA-256 of what it sent."""
        return self.start(f"digester-{port}", "socat", "-t", "60", f"TCP6-LISTEN:{port},reuseaddr,fork", "EXEC:sha256sum")

    def sink(self, port):
        """Takes all that TCP connections send."""
        return self.start(f"sink-{port}", "socat", "-u", f"TCP6-LISTEN:{port},ipv6-v6only=0,reuseaddr,fork", "OPEN:/dev/null")

    def wait_for_link(self, interface, timeout_s=20):
        end = time.monotonic() + timeout_s
        while not self.has_link(interface):
            check(time.monotonic() < end, f"no interface {interface} within {timeout_s} s")
            time.sleep(0.1)

    def has_link(self, interface):
        command = [*self.prefix, "ip", "link", "show", interface]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0
