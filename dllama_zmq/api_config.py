"""`api:` of cluster.yaml: where the API server listens, who may use it, and how much a request may ask for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from dllama_zmq.errors import ConfigError

API_PORTS = range(9990, 10000)
"""The default port: the first free one of these; the first is that of distributed-llama's server."""

KEY_PATTERN = r"\A[\x21-\x7e]{8,256}\Z"
_MAX_KEYS_BYTES = 1 << 20

Host = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9._:%-]{1,253}\Z")]
Port = Annotated[int, Meta(ge=1, le=65535)]
_Origin = Annotated[str, Meta(pattern=r"\A(\*|https?://[A-Za-z0-9.:\[\]-]{1,260})\Z")]
_Key = Annotated[str, Meta(pattern=KEY_PATTERN)]
_KeyFile = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,4096}\Z")]


class ApiLimits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bounds of one request, and of all connections."""

    body_mb: Annotated[int, Meta(ge=1, le=256)] = 8
    """The body of a request, in MB."""
    max_tokens: Annotated[int, Meta(ge=1, le=1 << 24)] | None = None
    """Tokens of one answer; None: as many as the context has room for."""
    n: Annotated[int, Meta(ge=1, le=16)] = 16
    """Answers to one prompt."""
    stop: Annotated[int, Meta(ge=0, le=16)] = 16
    """Stop strings."""
    connections: Annotated[int, Meta(ge=1, le=65536)] = 512
    stalled_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    """Seconds for a client that neither sends the rest of its request nor reads its answer."""


class ApiConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the API server listens, and who may use it.

    keys: the accepted keys, or a file with one key a line; none: no key is needed. origins: web pages of other servers
    whose scripts may use it; pages of this computer always may.
    """

    host: Host = "127.0.0.1"
    port: Port | None = None
    keys: list[_Key] | _KeyFile = []
    origins: list[_Origin] = []
    limits: ApiLimits = ApiLimits()

    def read_keys(self, folder: Path, where: str) -> list[str]:
        """The keys; a file of keys is relative to `folder`. Raises ConfigError, which begins with `where`."""
        if not isinstance(self.keys, str):
            return self.keys
        path = folder / Path(self.keys).expanduser()
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_KEYS_BYTES).decode()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{where}: {path} cannot be read ({error}); write a key on each line of it") from error
        keys = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
        for number, line in enumerate(keys, 1):
            if not re.search(KEY_PATTERN, line):
                raise ConfigError(f"{where}: {path}: key {number} is not {KEY}")
        if not keys:
            raise ConfigError(f"{where}: {path} has no key; write one on each line of it, or leave `keys:` out")
        return keys


class GatewaySettings(Struct, frozen=True, kw_only=True):
    """The settings that the root writes to the server's stdin as a line of JSON, because a command line would show the
    keys.

    front: where the root's clients connect. step_s: seconds that a step may take.
    """

    front: str
    version: str
    keys: list[str]
    origins: list[str]
    limits: ApiLimits
    step_s: float


KEY = "8 to 256 letters, digits and punctuation, without spaces"
API_HINTS = {
    "api": "off, or keys and values such as `port: 9990`",
    "api.host": "a host name or an address, without scheme or port",
    "api.port": "a port number, 1 to 65535",
    "api.keys": "a list of keys, or the name of a file with one on each line",
    "api.keys[]": KEY,
    "api.origins": "a list of addresses of web pages, such as `http://192.168.1.20:3000`",
    "api.origins[]": 'the address of a web page without a path, such as http://192.168.1.20:3000, or "*"',
    "api.limits.body_mb": "megabytes, 1 to 256",
    "api.limits.max_tokens": "a number of tokens, 1 to 16777216",
    "api.limits.n": "a number of answers, 1 to 16",
    "api.limits.stop": "a number of stop strings, 0 to 16",
    "api.limits.connections": "a number of connections, 1 to 65536",
    "api.limits.stalled_s": "seconds, more than 0 and at most 3600",
}
"""The expected value at each key path, for error messages."""
