"""The process of the API server: started by the root, which holds its stdin, and gone when that closes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

import msgspec
import uvicorn

from dllama_zmq.api_config import GatewaySettings
from dllama_zmq.errors import UsageError
from dllama_zmq.gateway.app import application
from dllama_zmq.gateway.link import Links
from dllama_zmq.gateway.protocol import BoundedProtocol
from dllama_zmq.gateway.service import Service
from dllama_zmq.launch.parent_watch import at_end_of_stdin
from dllama_zmq.own_code import signal_at_parents_end

_END_S = 1  # for answers that are being sent when it is stopped


def run_started(listener: int) -> None:
    """Serve on the descriptor `listener` until a signal comes, or stdin ends. The settings are stdin's first line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the root
    signal_at_parents_end(signal.SIGKILL)
    settings = _settings()
    at_end_of_stdin(lambda: os._exit(0))
    with socket.socket(fileno=listener) as listening:
        asyncio.run(_serve(settings, listening))


async def _serve(settings: GatewaySettings, listener: socket.socket) -> None:
    links = Links(settings.front)
    service = Service(settings, links)
    protocol = type(
        "Protocol", (BoundedProtocol,), {"stalled_s": settings.limits.stalled_s, "most": settings.limits.connections}
    )
    config = uvicorn.Config(
        application(service),
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_END_S,
    )
    try:
        await uvicorn.Server(config).serve([listener])
    finally:
        links.close()


def _settings() -> GatewaySettings:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(sys.stdin.fileno(), 1)  # no more than the line: the rest tells of the root's end
        if not byte:
            raise UsageError("no settings on stdin: this is a command for the root of a cluster")
        line += byte
    return msgspec.json.decode(line, type=GatewaySettings)
