"""A running cluster: its nodes, and their versions, links and clocks, from its root."""

from __future__ import annotations

import time
from collections.abc import Iterator

from dllama_zmq import __version__
from dllama_zmq.bus.client_messages import Status
from dllama_zmq.bus.text_messages import LinkStatus
from dllama_zmq.client import Client
from dllama_zmq.doctor.findings import Finding, ok, problem, warning
from dllama_zmq.errors import ProtocolError
from dllama_zmq.reporting import plural

STATUS_S = 10.0
LINKS_S = 90.0
_LONG_ROUND_TRIP_S = 2e-3
_SLOW_BYTES_PER_S = 25e6
"""The most that a port of 100 Mbit/s carries, as does a 1 Gbit/s port with a bad cable."""
_LOPSIDED = 3.0
_CLOCK_S = 30.0
_WIRED = "use a wired network of 1 Gbit/s: each layer of each token waits for two messages"


def running_cluster(client: Client, is_elsewhere: bool) -> Iterator[Finding]:
    """Ask the root, and close the client. is_elsewhere: the root is on another computer, so clocks are compared."""
    with client:
        try:
            status = client.status(STATUS_S)
        except ProtocolError as error:
            yield problem("cluster", str(error), "install one version on all computers")
            return
        yield from _state(status)
        if len(status.nodes) < 2:
            return
        links = client.links(LINKS_S)
        own_s = time.time()
        for link in links.links:
            yield from _link(link)
        if is_elsewhere:
            yield from _clock("the root's", links.clock_us / 1e6 - own_s, "this computer's")


def _state(status: Status) -> Iterator[Finding]:
    nodes = plural(len(status.nodes), "node")
    if status.state == "ready":
        yield ok("cluster", f"{status.name} is ready, {nodes}")
    else:
        yield problem("cluster", f"{status.name} is not ready: {status.note}", "")
    if status.refused:
        who = ", ".join(f"{address} ({count} times)" for address, count in status.refused.items())
        yield warning("refused", f"connections from {who}", "if they are yours, give them a token: `dllama-zmq token`")
    versions = {node.name: node.version for node in status.nodes if node.version}
    others = {name: version for name, version in versions.items() if version != __version__}
    if others:
        listed = ", ".join(f"{name} {version}" for name, version in others.items())
        yield warning("versions", f"{listed}; this is {__version__}", "install one version on all computers")
    else:
        yield ok("versions", f"{plural(len(versions), 'node')} present, each with {__version__}")


def _link(link: LinkStatus) -> Iterator[Finding]:
    about = f"link to {link.name}"
    if link.round_trip_s is None:
        yield problem(about, f"not measured: {link.note}", f"see `dllama-zmq status` and the log of {link.name}")
        return
    text = f"round trip {link.round_trip_s * 1000:.2f} ms"
    rates = [rate for rate in (link.to_bytes_per_s, link.from_bytes_per_s) if rate is not None]
    if len(rates) == 2:
        text += f", {_mbit(rates[0])} Mbit/s to it, {_mbit(rates[1])} from it"
    if link.note:
        yield problem(about, f"{text}; {link.note}", "its program or its network is too busy")
    elif link.round_trip_s > _LONG_ROUND_TRIP_S or min(rates) < _SLOW_BYTES_PER_S:
        yield warning(about, text, _WIRED)
    elif max(rates) > _LOPSIDED * min(rates):
        yield warning(about, text, "one direction is slow: look at its cable and at the port of the switch")
    else:
        yield ok(about, text)
    if link.clock_s is not None:
        yield from _clock(f"{link.name}'s", link.clock_s, "the root's")


def _clock(whose: str, ahead_s: float, than: str) -> Iterator[Finding]:
    """A finding only if clocks differ by much: tokens expire by the clock, and people compare logs."""
    if abs(ahead_s) > _CLOCK_S:
        text = f"{whose} is {abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} {than}"
        yield warning("clock", text, "let both keep the time: sudo timedatectl set-ntp true")


def _mbit(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8e-6:,.0f}"
