"""The API server, a child of the root: its port, start, restarts and end.

It is started by exec, as workers are. The port is bound before anything is read, so a port in use is an error at once,
and it stays bound while the server restarts.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time

import msgspec

from dllama_zmq.api_config import API_PORTS, ApiConfig, GatewaySettings
from dllama_zmq.bus.addresses import join
from dllama_zmq.cluster import ClusterFile
from dllama_zmq.errors import BusError
from dllama_zmq.launch.children import Child, Restarts, await_ends
from dllama_zmq.launch.paths import ClusterPaths
from dllama_zmq.launch.ports import user_of

logger = logging.getLogger(__name__)

GATEWAY = "gateway"
"""The name of its log, and of the command that runs it."""

_BACKLOG = 256


def listen(file: ClusterFile) -> socket.socket | None:
    """The socket on which the API server of the cluster will listen; None if the cluster has none.

    The port is the one in the file; else the first free one of API_PORTS; else any. Raises BusError if the file's port
    is in use, ConfigError if the file of API keys cannot be read.
    """
    api = config_of(file)
    if api is None:
        return None
    api.read_keys(file.identity.parent, f"{file.path}: api.keys")
    for port in [*API_PORTS, 0] if api.port is None else [api.port]:
        try:
            return _bound(api.host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise BusError(f"api: cannot listen on {_url(api.host, port)}: {error.strerror}") from None
    port = api.port or 0
    holder = user_of(port, file.cluster.name)
    who = (
        f"the cluster {holder.name!r}; take it down ({holder.down_command()})" if holder else "another program; stop it"
    )
    raise BusError(f"api: {_url(api.host, port)} is in use by {who}, or write another `port:` under `api:`")


def config_of(file: ClusterFile) -> ApiConfig | None:
    """The settings of the cluster's API server; None if it has none."""
    api = file.cluster.api
    return api if isinstance(api, ApiConfig) else ApiConfig() if api else None


def address_of(listener: socket.socket) -> str:
    """The URL to open in a browser."""
    host, port = listener.getsockname()[:2]
    return url_of(host, port)


def url_of(host: str, port: int) -> str:
    """The URL of a port. If it listens on all addresses, the URL has this computer's name."""
    return _url(socket.gethostname() if host in ("0.0.0.0", "::") else host, port)


def _url(host: str, port: int) -> str:
    return join(host, port).replace("tcp://", "http://", 1)


def _bound(host: str, port: int) -> socket.socket:
    (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


class Gateway:
    """The running API server. Call `watch` often, and `stop` at the end."""

    def __init__(self, file: ClusterFile, paths: ClusterPaths, listener: socket.socket, version: str) -> None:
        """Start the server on the port `listener`, which `stop` closes."""
        api = config_of(file)
        assert api is not None
        self._paths, self._listener = paths, listener
        self._settings = GatewaySettings(
            front=paths.ipc("clients"),
            version=version,
            keys=api.read_keys(file.identity.parent, f"{file.path}: api.keys"),
            origins=api.origins,
            limits=api.limits,
            step_s=file.cluster.limits.step_s,
        )
        self._start()
        self._restarts = Restarts(time.monotonic())

    def watch(self) -> None:
        """Restart the server if it has ended."""
        now, restarts = time.monotonic(), self._restarts
        if restarts.next_start is None and (ending := self._child.ending()):
            restarts.note(ending, now)
        if restarts.next_start is not None and now >= restarts.next_start:
            logger.warning("starting the API server again: it ended with %s", restarts.ending)
            self._start()
            restarts.note_start(now)

    def stop(self, wait_s: float) -> None:
        """End the server; kill it if it has not left after `wait_s`."""
        self._child.terminate()
        await_ends({GATEWAY: self._child}, wait_s)
        self._listener.close()

    def _start(self) -> None:
        descriptor = self._listener.fileno()
        self._child = Child.start(GATEWAY, [GATEWAY, "--listener", str(descriptor)], self._paths, [descriptor])
        self._child.write(msgspec.json.encode(self._settings) + b"\n")  # if it has ended, `watch` will notice


def inherited(descriptor: int) -> socket.socket:
    """A listening socket that another process passed on. Children of this process do not inherit it."""
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)
