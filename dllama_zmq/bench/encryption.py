"""Measure the seconds that CURVE takes on this computer, for `speed.py`."""

from __future__ import annotations

import threading
import time
from statistics import median

import zmq

from dllama_zmq.bench.speed import Encryption
from dllama_zmq.trust.keys import KeyPair

_SMALL_BYTES, _LARGE_BYTES = 64, 1 << 20
_ROUNDS = 15
_WAIT_MS = 10_000


def measure_encryption() -> Encryption:
    """Compares round trips on loopback with and without CURVE; 0.2 s. Raises TrustError if libzmq has no CURVE."""
    keys = KeyPair.new()
    plain, curve = _round_trips(None), _round_trips(keys)
    small_s, large_s = (max(0.0, curve[size] - plain[size]) / 2 for size in (_SMALL_BYTES, _LARGE_BYTES))
    return Encryption(small_s, max(0.0, large_s - small_s) / _LARGE_BYTES)


def _round_trips(keys: KeyPair | None) -> dict[int, float]:
    """Seconds of the median round trip of messages of each size, over TCP."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.PAIR) as server, context.socket(zmq.PAIR) as peer:
        for socket in (server, peer):
            socket.linger, socket.rcvtimeo, socket.sndtimeo = 0, _WAIT_MS, _WAIT_MS
        if keys is not None:
            server.curve_server, server.curve_secretkey = True, keys.secret.encode()
            own = KeyPair.new()
            peer.curve_serverkey = keys.public.encode()
            peer.curve_publickey, peer.curve_secretkey = own.public.encode(), own.secret.encode()
        port = server.bind_to_random_port("tcp://127.0.0.1")
        peer.connect(f"tcp://127.0.0.1:{port}")
        echo = threading.Thread(target=_echo, args=(server,), daemon=True)
        echo.start()
        found = {}
        for n_bytes in (_SMALL_BYTES, _LARGE_BYTES):
            data = bytes(n_bytes)
            took_s = []
            for _ in range(_ROUNDS):
                start = time.perf_counter()
                peer.send(data)
                peer.recv()
                took_s.append(time.perf_counter() - start)
            found[n_bytes] = median(took_s)
        peer.send(b"")
        echo.join()
    return found


def _echo(server: zmq.Socket[bytes]) -> None:
    while data := server.recv():
        server.send(data)
