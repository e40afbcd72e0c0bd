"""The hosts of a cluster: what their names resolve to here, and whether they answer."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor

from dllama_zmq.bus.addresses import host_of, ip_of, is_ip, join, own_address, resolve
from dllama_zmq.cluster import Cluster, is_loopback
from dllama_zmq.doctor.findings import Finding, ok, problem, warning
from dllama_zmq.errors import BusError
from dllama_zmq.launch.registry import bind_error

_ANSWER_S = 1.0
_DOORS = (22, 9)
"""Ports to try; a refusal is an answer too. No worker listens at any port."""
_ANY = ("0.0.0.0", "::")


def hosts(cluster: Cluster) -> Iterator[Finding]:
    """The root's host, and those of workers on other computers, each name once."""
    host = cluster.root.host
    is_here = bind_error(host, 0) != errno.EADDRNOTAVAIL
    if not is_loopback(host) and host not in _ANY:
        yield from _root(host, is_here)
    workers = list(dict.fromkeys(worker.host for worker in cluster.workers if not is_loopback(worker.host)))
    if workers:
        with ThreadPoolExecutor(len(workers)) as pool:  # a host that does not answer takes seconds
            for found in pool.map(lambda worker: list(_worker(worker, host, is_here)), workers):
                yield from found


def _root(host: str, is_here: bool) -> Iterator[Finding]:
    addresses = yield from _known(host, "root.host")
    inside = [address for address in addresses if is_loopback(address)]
    if inside and not is_ip(host):
        cure = "write its address in the network instead (`hostname -I` lists them)"
        yield problem("root.host", f"{host} is {inside[0]} here, which no other computer can reach (/etc/hosts)", cure)
    elif addresses:
        shown = host if is_ip(host) else f"{host} ({', '.join(addresses)})"
        yield ok("root.host", f"{shown} is {'this' if is_here else 'another'} computer")


def _worker(host: str, root_host: str, root_is_here: bool) -> Iterator[Finding]:
    addresses = yield from _known(host, f"workers: {host}")
    if addresses and root_is_here:
        yield from _way(host, addresses, root_host)


def _known(host: str, about: str) -> Generator[Finding, None, list[str]]:
    """The IP addresses of a host; yields a finding if its name is not known."""
    try:
        return [host_of(endpoint) for endpoint in resolve(join(host, 1))]
    except BusError as error:
        what, _, cure = str(error).partition("; ")
        yield problem(about, what, cure)
        return []


def _way(worker: str, addresses: list[str], root_host: str) -> Iterator[Finding]:
    """Whether a worker's computer answers, and the address of this computer from which it is reached."""
    about = f"workers: {worker}"
    shown = worker if is_ip(worker) else f"{worker} ({', '.join(addresses)})"
    took_s = next((took_s for address in addresses if (took_s := _answers(address)) is not None), None)
    if took_s is None:
        cure = "is it on, in this network, and is this its address? A firewall may also let nothing through"
        yield warning(about, f"{shown} does not answer at ports {' and '.join(map(str, _DOORS))}", cure)
    else:
        yield ok(about, f"{shown} answers, in {took_s * 1000:.1f} ms")
    own = {own_address(address) for address in addresses} - {""}
    if own and root_host not in _ANY and is_ip(root_host) and ip_of(root_host) not in own:
        text = f"this computer reaches {worker} from {', '.join(sorted(own))}, and root.host is {root_host}"
        yield warning(about, text, "if the worker cannot reach root.host, write that address there")


def _answers(address: str) -> float | None:
    """The seconds that a computer takes to accept or refuse a connection; None if it does neither."""
    for port in _DOORS:
        start = time.perf_counter()
        try:
            with socket.create_connection((address, port), _ANSWER_S):
                return time.perf_counter() - start
        except ConnectionRefusedError:
            return time.perf_counter() - start
        except OSError:
            continue
    return None
