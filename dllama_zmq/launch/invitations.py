"""Invitations: the content of the tokens that a root on this computer makes."""

from __future__ import annotations

import socket

from dllama_zmq.bus.addresses import join, own_address, short
from dllama_zmq.cluster import Cluster, ClusterFile, is_loopback
from dllama_zmq.errors import ConfigError, UsageError
from dllama_zmq.launch.registry import address_elsewhere
from dllama_zmq.node_config import Ports
from dllama_zmq.trust import Invitation, Role, own_key
from dllama_zmq.trust.ring import listed_entries
from dllama_zmq.trust.tokens import issue

_EVERYWHERE = ("0.0.0.0", "::")
_FAR_AWAY = "192.0.2.1"  # nobody's address (RFC 5737): its route is the default route


def invite(file: ClusterFile, role: Role, name: str) -> Invitation:
    """A new token of the cluster. Raises UsageError or ConfigError if a token would be of no use; TrustError."""
    cluster = file.cluster
    _check_security(file)
    if role is Role.worker and name:
        _check_worker(file, name)
    if any((entry.role, entry.name) == (role, name) for entry in listed_entries(cluster)):
        raise UsageError(f"{name} has its key in {file.path}; change it there, or take it out")
    towards = [worker.host for worker in cluster.workers if worker.name == name]
    hosts, ports = root_hosts(cluster, *towards), cluster.tcp_ports or Ports()
    return Invitation(
        role=role,
        name=name,
        replies=tuple(join(host, ports.replies) for host in hosts),
        clients=tuple(join(host, ports.clients) for host in hosts),
        root=own_key().public,
        keys=issue(cluster.name, role, name),
    )


def root_for(cluster: Cluster, worker_host: str) -> str:
    """The address of the root for a worker on that host."""
    replies = (cluster.tcp_ports or Ports()).replies
    return short(join(root_hosts(cluster, worker_host)[0], replies), Ports().replies)


def root_hosts(cluster: Cluster, *towards: str) -> list[str]:
    """The root's addresses for other computers, best first: as the hosts `towards` reach it, then as the workers do."""
    if cluster.root.host not in _EVERYWHERE:
        return [cluster.root.host]
    others = [worker.host for worker in cluster.workers if not is_loopback(worker.host)]
    found = [own_address(host) for host in (*towards, *others, _FAR_AWAY)]
    return list(dict.fromkeys(filter(None, found))) or [socket.gethostname()]


def _check_security(file: ClusterFile) -> None:
    cluster = file.cluster
    if is_loopback(cluster.root.host):
        raise ConfigError(
            f"{file.path}: root.host: {cluster.root.host} is only for this computer, which needs no token; "
            "write an address that others can reach"
        )
    if not cluster.secured:
        raise ConfigError(f"{file.path}: its bus is open (security: none): a worker that can reach it needs no token")
    check_root_is_here(file, "token")


def check_root_is_here(file: ClusterFile, command: str) -> None:
    """Raise ConfigError if the cluster's root is another computer, on which `command` can do what it does."""
    if address_elsewhere(file.cluster) is not None:
        raise ConfigError(
            f"{file.path}: root.host: {file.cluster.root.host} is not an address of this computer; run "
            f"`{file.command(command)}` on the computer that has it"
        )


def _check_worker(file: ClusterFile, name: str) -> None:
    hosts = {worker.name: worker.host for worker in file.cluster.workers}
    if name not in hosts:
        elsewhere = [one for one, host in hosts.items() if not is_loopback(host)]
        known = f"its workers on other computers are {', '.join(elsewhere)}" if elsewhere else "it has none elsewhere"
        raise UsageError(f"cluster {file.cluster.name!r} has no worker {name!r}; {known}; --client is for clients")
    if is_loopback(hosts[name]):
        raise UsageError(f"{name} runs on this computer and needs no token; its `host:` is {hosts[name]}")
