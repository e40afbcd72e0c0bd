"""Computers that are network namespaces of this one, each with a link to a bridge. Needs Linux, root and iproute2.

    with network("dzx", 2, mbit=100) as computers:
        subprocess.run([*computers[1].prefix, "ping", "-c", "1", computers[0].address])
        computers[1].cut()

All names begin with the tool's own prefix, so that several tools can run at once; their networks are apart.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

_CLONE_NEWNET = 0x40000000  # linux/sched.h; os.setns is there from Python 3.12 on


@dataclass(frozen=True, slots=True)
class Computer:
    """The namespace of node number `node`, and its link: `port` is the end at the bridge, `eth` the other."""

    names: str  # what all names begin with
    node: int

    @property
    def name(self) -> str:
        return f"{self.names}{self.node}"

    @property
    def port(self) -> str:
        return f"{self.names}{self.node}p"

    @property
    def address(self) -> str:
        return address(self.node)

    @property
    def prefix(self) -> list[str]:
        """The prefix of a command that runs in this namespace."""
        return ["ip", "netns", "exec", self.name]

    def enter(self) -> None:
        """Move the calling thread, and what it starts from now on, into this namespace."""
        with open(f"/run/netns/{self.name}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {self.name}")

    def cut(self) -> None:
        """Pull the cable at the bridge."""
        run("ip", "link", "set", self.port, "down")

    def mend(self) -> None:
        """Plug the cable in again."""
        run("ip", "link", "set", self.port, "up")

    def move(self, address: str) -> None:
        """Replace the address by another."""
        run("ip", "-n", self.name, "addr", "flush", "dev", "eth")
        run("ip", "-n", self.name, "addr", "add", f"{address}/24", "dev", "eth")

    def received_bytes(self) -> int:
        """What has come over the link so far, with all headers."""
        return int(run(*self.prefix, "cat", "/sys/class/net/eth/statistics/rx_bytes"))

    def sent_bytes(self) -> int:
        """What has gone out over the link so far, with all headers."""
        return int(run(*self.prefix, "cat", "/sys/class/net/eth/statistics/tx_bytes"))


def address(node: int) -> str:
    """A node's address, one of those for documentation (RFC 5737)."""
    return f"192.0.2.{node + 1}"


def lacking() -> str:
    """The sentence that says what network namespaces need and this process has not; empty where it has all."""
    tools = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if os.geteuid() == 0 and not tools:
        return ""
    return f"network namespaces need root{' and ' + ', '.join(tools) + ' (iproute2)' if tools else ''}"


def check() -> None:
    """Exit where network namespaces cannot be made."""
    if sentence := lacking():
        sys.exit(sentence)


@contextmanager
def network(names: str, n_nodes: int, mbit: int = 0) -> Iterator[list[Computer]]:
    """Computers with a bridge between them; `tc tbf` limits each link to `mbit` Mbit/s in each direction, 0: no limit.

    `names`: what all names begin with, at most 10 characters. Exits where this is not possible, or the names are taken.
    """
    check()
    bridge = f"{names}br"
    with ExitStack() as stack:
        run("ip", "link", "add", bridge, "type", "bridge")
        stack.callback(run, "ip", "link", "del", bridge)
        # A computer answers ARP for its own addresses on any interface, and its own may be one of these.
        run("ip", "link", "set", bridge, "up", "arp", "off")
        computers = [Computer(names, node) for node in range(n_nodes)]
        for computer in computers:
            name, port = computer.name, computer.port
            run("ip", "netns", "add", name)
            stack.callback(run, "ip", "netns", "del", name)
            run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth", "netns", name)
            stack.callback(run, "ip", "link", "del", port)  # a deleted namespace removes its end only later
            run("ip", "link", "set", port, "master", bridge, "up")
            run("ip", "-n", name, "addr", "add", f"{computer.address}/24", "dev", "eth")
            run("ip", "-n", name, "link", "set", "eth", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
            if mbit:
                shape = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "200ms"]
                run("tc", "qdisc", "add", "dev", port, *shape)
                run("tc", "-n", name, "qdisc", "add", "dev", "eth", *shape)
        yield computers


def run(*words: str) -> str:
    """What a command prints. Exits if it fails."""
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
