"""The process of the API server. The root starts it and holds its stdin; when that closes, the process ends."""

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

_END_S = 1  # seconds for open answers when the server is stopped


def run_started(listener: int) -> None:
    """Serve on the descriptor `listener` until a signal arrives or stdin ends. The first line of stdin has the
    settings.
    """
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
        byte = os.read(sys.stdin.fileno(), 1)  # not beyond the line: the rest of stdin signals the root's end
        if not byte:
            raise UsageError("no settings on stdin: only the root of a cluster runs this command")
        line += byte
    return msgspec.json.decode(line, type=GatewaySettings)
