"""Addresses as people write them and as libzmq wants them: schemes, default ports, names with several addresses.

libzmq tries the first address of a name alone, and forever (zeromq/libzmq issue 4313).
"""

from __future__ import annotations

import contextlib
import ipaddress
import secrets
import socket
from typing import Any

from dllama_zmq.cluster import is_loopback
from dllama_zmq.errors import BusError, UsageError

_PROBE_S = 1.0
_TCP = "tcp://"


def endpoint_of(text: str, default_port: int) -> str:
    """The endpoint for an address as people write it: pi1, pi1:5570, fd77::1, [fd77::1]:5570, tcp://…, ipc://….

    Raises UsageError if it is none.
    """
    scheme, _, rest = text.rpartition("://")
    if scheme not in ("", "tcp"):
        if scheme in ("ipc", "inproc") and rest:
            return text
        raise UsageError(f"{text}: no address; expected HOST, HOST:PORT or tcp://HOST:PORT, such as 192.168.1.10")
    host, port = _host_and_port(rest)
    if not host or any(character in host for character in "/ []"):
        raise UsageError(f"{text}: no host; expected HOST or HOST:PORT, such as 192.168.1.10:{default_port}")
    if port and not (port.isdecimal() and 1 <= int(port) <= 65535):
        raise UsageError(f"{text}: {port!r} is no port; expected 1 to 65535, or none for {default_port}")
    return join(host, int(port) if port else default_port)


def short(endpoint: str, default_port: int) -> str:
    """An endpoint of TCP as people write it: HOST, or HOST:PORT if the port is not the default."""
    host, port = _host_and_port(endpoint)
    return host if port == str(default_port) else endpoint.removeprefix(_TCP)


def join(host: str, port: int) -> str:
    """The endpoint of a TCP port."""
    return f"{_TCP}[{host}]:{port}" if ":" in host else f"{_TCP}{host}:{port}"


def resolve(endpoint: str) -> list[str]:
    """The endpoint with each address of its host's name; itself where it is no name.

    Raises BusError if this computer does not know the name.
    """
    if not endpoint.startswith(_TCP):
        return [endpoint]
    host, port = _host_and_port(endpoint)
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise BusError(f"{endpoint!r} is no address to connect to: expected something like tcp://192.168.1.10:5570")
    if is_ip(host):
        return [endpoint]
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no name"
        cure = "write its IP address"
        if host.lower().rstrip(".").endswith(".local"):
            cure += ", or install what looks up .local names (Debian: sudo apt install libnss-mdns avahi-daemon)"
        raise BusError(f"{host}: this computer knows no host of that name ({reason}); {cure}") from None
    return list(dict.fromkeys(join(_with_scope(address), int(port)) for *_, address in found))


def listening(endpoint: str) -> list[str]:
    """The endpoint with each address of its host's name that this computer has; itself where it is no name.

    libzmq binds no names. Raises BusError if this computer does not know the name or has none of its addresses, or
    only some that no other computer can reach.
    """
    endpoints = resolve(endpoint)
    if endpoints == [endpoint]:
        return endpoints
    host = host_of(endpoint)
    own = [one for one in endpoints if _is_here(host_of(one))]
    named = ", ".join(host_of(one) for one in endpoints)
    if not own:
        raise BusError(f"{host} is {named}, and this computer has no such address; root.host must be one of its own")
    if host.lower() != "localhost" and all(is_loopback(ip_of(one)) for one in own):
        raise BusError(
            f"root.host: {host} is {named} on this computer (see /etc/hosts), where no other computer can reach it; "
            "write its address in the network instead (`hostname -I` lists them)"
        )
    return own


def ip_addresses(host: str) -> frozenset[str]:
    """The IP addresses of a host's name, or the one that it is; empty if this computer does not know the name."""
    try:
        return frozenset(ip for endpoint in resolve(join(host, 1)) if (ip := ip_of(endpoint)))
    except BusError:
        return frozenset()


def host_of(endpoint: str) -> str:
    """The host in a TCP endpoint."""
    return _host_and_port(endpoint)[0]


def ip_of(address: str) -> str:
    """The IP address in an endpoint, or that a peer speaks from; empty if there is none, as over ipc."""
    host = host_of(address) if address.startswith(_TCP) else address
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    return str(getattr(ip, "ipv4_mapped", None) or ip)


def own_address(towards: str) -> str:
    """The IP address of this computer that the host `towards` reaches it at; empty if no way there is known."""
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(towards, 9, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # UDP: this asks for a route and sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return ""


def reachable(endpoint: str) -> str:
    """One of the addresses of `endpoint`: one at which a program listens, or any if none does.

    Raises BusError if this computer does not know the name. Takes 1 s for each address that does not answer.
    """
    endpoints = resolve(endpoint)
    if len(endpoints) == 1:
        return endpoints[0]
    for candidate in endpoints:
        host, port = _host_and_port(candidate)
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), _PROBE_S):
            return candidate
    return secrets.choice(endpoints)  # it may be up the next time


def why_no_answer(endpoint: str, port_name: str) -> str:
    """What is found at `endpoint`, where a root should answer, and what to do about it. port_name: which port of the
    root that should be. Takes 1 s at most for each address of the host's name.
    """
    if not endpoint.startswith(_TCP):
        return "is its cluster running?"
    try:
        endpoints = resolve(endpoint)
    except BusError as error:
        return str(error)
    failures: list[OSError] = []
    for candidate in endpoints:
        host, port = _host_and_port(candidate)
        try:
            with socket.create_connection((host, int(port)), _PROBE_S):
                return (
                    f"a program listens at {host} port {port} and has not answered: a root answers when it has read "
                    f"its model; if it never does, is this {port_name}, and is one version on both computers?"
                )
        except OSError as error:
            failures.append(error)
    host, port = _host_and_port(endpoint)
    if any(isinstance(error, ConnectionRefusedError) for error in failures):
        return (
            f"the computer {host} is there, but no program listens at its port {port} (connection refused): is the "
            f"cluster up there, with a root.host that others reach, and is this {port_name}?"
        )
    if any(isinstance(error, TimeoutError) for error in failures):
        return (
            f"the computer {host} does not answer (timeout): is it on, is this its address, and does its firewall let "
            f"port {port} through?"
        )
    return (
        f"no way leads to {host} ({failures[0].strerror or failures[0]}): is this its address, and are both computers "
        "in one network?"
    )


def without_host(endpoint: str) -> str:
    """A TCP endpoint with * for its host: that by which the peer reaches it. Others as they are."""
    return f"{_TCP}*:{_host_and_port(endpoint)[1]}" if endpoint.startswith(_TCP) else endpoint


def with_host_of(endpoint: str, other: str) -> str:
    """`endpoint` with the host of `other` where its own is *."""
    if not endpoint.startswith(f"{_TCP}*:"):
        return endpoint
    return f"{other.rpartition(':')[0]}:{endpoint.rpartition(':')[2]}"


def _host_and_port(endpoint: str) -> tuple[str, str]:
    """The host without brackets, and the port, empty if there is none.

    The last group of an IPv6 address without brackets is taken as the port where the rest is an address too.
    """
    text = endpoint.removeprefix(_TCP)
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, rest.removeprefix(":")
    host, colon, port = text.rpartition(":")
    if not colon:
        return text, ""
    if ":" in host and not (port.isdecimal() and is_ip(host)):
        return text, ""
    return host, port


def _with_scope(address: tuple[Any, ...]) -> str:
    """The host of a socket's address, with the interface, without which a link-local address of IPv6 has no meaning."""
    scope = address[3] if len(address) == 4 else 0
    return f"{address[0]}%{socket.if_indextoname(scope)}" if scope and "%" not in address[0] else str(address[0])


def _is_here(ip: str) -> bool:
    """Whether this computer has that IP address."""
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(ip, 0, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def is_ip(host: str) -> bool:
    """Whether `host` is an IP address, not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
