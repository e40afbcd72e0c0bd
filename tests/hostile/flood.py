"""Send one kind of flood to a port until killed: `python flood.py PORT KIND`. A hand-written ZMTP client, no libzmq."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

import msgpack

GREETING = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x00NULL" + bytes(16) + b"\0" + bytes(31)
SECURED = GREETING.replace(b"NULL" + bytes(16), b"CURVE" + bytes(15))
READY = b"\x05READY"
MORE, LONG = 1, 2


def frame(body: bytes, flags: int = 0) -> bytes:
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | LONG]) + struct.pack(">Q", len(body)) + body


def connected(port: int, kind: bytes, waits: bool = True) -> socket.socket:
    """A connection whose both ends have said who they are; only this end where it does not wait."""
    peer = socket.create_connection(("127.0.0.1", port), 20)
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    peer.sendall(GREETING + b"\x04" + bytes([len(ready)]) + ready)
    answer = b""
    while waits and READY not in answer:
        more = peer.recv(256)
        if not more:
            raise ConnectionError
        answer += more
    peer.settimeout(None)
    return peer


def floods(protocol: int) -> dict[str, Callable[[], bytes]]:
    """What is sent again and again, by name. It is made when it is called for: all of them take 0.3 s."""

    def header(*values: object) -> bytes:
        return bytes(msgpack.packb([protocol, *values]))

    empties = b"\xdd" + struct.pack(">I", 400_003) + header("status_request", 1)[1:] + b"\x90" * 400_000

    def joins() -> bytes:
        return b"".join(
            frame(header("join", f"worker{n % 3}", "somewhere", n, "0", "pi3", 1, None)) for n in range(1000)
        )

    def generate(n: int, prompt: object = "the cat", max_tokens: int | None = 3, **sampling: object) -> bytes:
        return frame(header("generate", n, prompt, max_tokens, sampling, True, []))

    hanging = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    chat = json.dumps({"messages": [{"role": "user"}], "template_text": hanging})
    empty = {"json": json.dumps({"messages": [{}] * 100_000})}

    return {
        "frames of 60 MiB without end": lambda: frame(bytes(60 << 20), MORE),
        "frames of 500 KiB without end": lambda: frame(bytes(500 << 10), MORE),
        "empty frames without end": lambda: frame(b"", MORE) * 100_000,
        "messages of a million empty frames": lambda: frame(b"", MORE) * 1_000_000 + frame(b""),
        "status_request": lambda: frame(header("status_request", 1)) * 1000,
        "joins": joins,
        "joins at once": joins,
        "joins over 32 connections": joins,
        "long headers": lambda: frame(empties),
        "long prompts": lambda: b"".join(generate(n, "once upon a time " * 7000) for n in range(1, 10)),
        "prompts of 1 MB": lambda: generate(1, "x" * 1_000_000),
        "10,000 requests": lambda: b"".join(generate(n) for n in range(1, 10_001)),
        "requests without end": lambda: b"".join(generate(n, max_tokens=None) for n in range(1, 10_001)),
        "one id": lambda: generate(1, max_tokens=None) * 1000,
        "begun and cancelled": lambda: b"".join(generate(n) + frame(header("cancel", n)) for n in range(1, 1001)),
        "biases of 100,000 tokens": lambda: b"".join(
            generate(n, logit_bias=dict.fromkeys(range(100_000), 0)) for n in range(1, 10)
        ),
        "token ids": lambda: b"".join(generate(n, [1 << 30] * 100_000) for n in range(1, 10)),
        "chats of 100,000 messages": lambda: b"".join(generate(n, empty) for n in range(1, 10)),
        "16 answers each": lambda: b"".join(
            frame(header("generate", n, "the cat", None, {}, True, [], None, 16)) for n in range(1, 1001)
        ),
        "long texts to tokenize": lambda: frame(header("tokenize", 1, "once upon a time " * 5000, None, False)) * 10,
        "templates that hang": lambda: frame(header("tokenize", 1, {"json": chat}, None, False)) * 1000,
        "subscriptions": lambda: b"".join(frame(b"\x01" + struct.pack(">Q", n) * 20) for n in range(1000)),
    }


def body_and_pause_s(kind: str, protocol: int) -> tuple[bytes, float]:
    """What `kind` sends at once, and how long it then waits."""
    if kind == "nothing is read":  # a subscriber that lives, as far as its heartbeats say
        return b"\x04\x05\x04PONG", 0.1
    if kind == "status is asked and never read":
        return frame(bytes(msgpack.packb([protocol, "status_request", 1]))), 0.004
    return floods(protocol)[kind](), 0.0


def flood(port: int, kind: str, body: bytes, pause_s: float) -> None:
    """Send `body` for ever, over a new connection where one is ended."""
    while True:
        try:
            socket_type = b"SUB" if kind in ("nothing is read", "subscriptions") else b"DEALER"
            with connected(port, socket_type, waits=not kind.endswith("at once")) as peer:
                if kind == "nothing is read":
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    time.sleep(0.2)
                    peer.sendall(frame(b"\x01"))
                while True:
                    peer.sendall(body)
                    time.sleep(pause_s)
        except OSError:
            time.sleep(0.001)


if __name__ == "__main__":
    os.nice(19)  # it stands for other computers
    of_flood = int(sys.argv[1]), sys.argv[2], *body_and_pause_s(sys.argv[2], int(sys.argv[3]))
    print("begins", flush=True)
    for _ in range(31 if sys.argv[2].endswith("32 connections") else 0):
        threading.Thread(target=flood, args=of_flood, daemon=True).start()
    flood(*of_flood)
