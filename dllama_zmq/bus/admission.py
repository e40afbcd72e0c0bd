"""Decide which peers may connect, and when: libzmq asks before it reads from a new peer (ZAP, RFC 27 of ZeroMQ).

A peer of a socket with CURVE has proved that it has the secret key of its public key. The ring decides whether that key
may connect; every message then carries the key (User-Id).

A peer that is disconnected and connects again can send 800 kB in the 5 ms until a thread of this process sees the new
connection. Those were 16,000 joins, for which the root took longer than the peer. So a peer whose address has flooded
waits in its handshake. That costs nothing: libzmq reads nothing then, and disconnects a peer that sends all the same.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import zmq
from msgspec import Struct
from zmq.utils import z85

from dllama_zmq.bus.addresses import ip_of
from dllama_zmq.bus.rate_limited_log import Refusals
from dllama_zmq.bus.security import Server
from dllama_zmq.errors import DllamaError

logger = logging.getLogger(__name__)

SLOWED_S = 5.0
"""How long an address is slowed down after one of its connections flooded."""
_NEWCOMER_S = 0.2
_HANDSHAKE_S = 5.0  # by then libzmq has closed a waiting connection (ZMQ_HANDSHAKE_IVL)
_MAX_WAITING = 1024
_MAX_ADDRESSES = 4096
_POLL_MS = 20
_ENDPOINT = "inproc://zeromq.zap.01"  # this one and the form of the messages are the RFC's
_NO = (b"400", b"this key is not known here", b"", b"")
"""ZAP has no answer for "not yet", and after a "no" libzmq does not try again."""


class Request(Struct, frozen=True):
    """A connection that waits: the address for the answer, the number of the request, and the time of its arrival.

    address: the peer's. key: its public key; empty if the connection has no CURVE.
    """

    session: bytes
    number: bytes
    since: float
    address: str = ""
    key: str = ""


class _Slowed(Struct):
    """An address that has flooded: until when it is slowed down, and when its next connection is admitted."""

    until: float
    next: float


class Admission:
    """The newcomers at one bound socket: admitted at once, but one per 0.2 s from an address that has flooded.

    An innocent peer at the address of a flood cannot be distinguished from it, so it waits too. A waiting one is chosen
    at random, so an innocent peer gets in after a while. On the loopback interface all peers have one address; but
    workers that the root has started use ipc, which is never slowed down. A /64 of IPv6 counts as one address, because
    one computer can have all of it. A flood from many addresses is slowed down at each of them.
    """

    def __init__(self, security: Server | None = None) -> None:
        """security: the keys that may connect with CURVE."""
        self._security = security
        self._admitted: set[str] = set()
        self.refusals = Refusals(logger)
        self._slowed: dict[str, _Slowed] = {}
        self._waiting: dict[str, list[Request]] = {}
        self._lock = threading.Lock()

    def slow_down(self, address: str, now: float) -> None:
        """A connection from this IP address has flooded. For any thread."""
        computer = _computer(address)
        with self._lock:
            slowed = self._slowed.get(computer)
            if slowed is not None and slowed.until > now:
                slowed.until = now + SLOWED_S
                return
            if len(self._slowed) >= _MAX_ADDRESSES:
                del self._slowed[next(iter(self._slowed))]
            self._slowed[computer] = _Slowed(now + SLOWED_S, now + _NEWCOMER_S)

    def ask(self, request: Request) -> None:
        """Queue the request of a new connection."""
        waiting = self._waiting.setdefault(_computer(request.address), [])
        if len(waiting) < _MAX_WAITING:
            waiting.append(request)

    def answer(self, request: Request) -> tuple[bytes, bytes, bytes, bytes]:
        """The status code, text, user id and metadata that answer a request."""
        key, security = request.key, self._security
        if not key or (security is not None and self._knows(security, key)):
            return b"200", b"OK", key.encode(), b""
        self.refusals.add(ip_of(request.address) or request.address, f"its key is not known here: {key}")
        return _NO

    def _knows(self, security: Server, key: str) -> bool:
        if not security.admits(key) and not security.may_enrol(key):
            _reload(security)  # it may have been admitted a moment ago
        if not security.admits(key):
            return security.may_enrol(key)
        with self._lock:
            self._admitted.add(key)
        return True

    def removed(self) -> set[str]:
        """The admitted keys that are no longer on the ring, each once."""
        security = self._security
        if security is None:
            return set()
        _reload(security)
        with self._lock:
            gone = {key for key in self._admitted if not security.admits(key)}
            self._admitted -= gone
        return gone

    def admitted(self, now: float) -> list[Request]:
        """Remove and return the requests to answer now."""
        admitted: list[Request] = []
        for computer, waiting in list(self._waiting.items()):
            with self._lock:
                slowed = self._slowed.get(computer)
                if slowed is not None and slowed.until <= now:
                    del self._slowed[computer]
            if slowed is None or slowed.until <= now:
                admitted += self._waiting.pop(computer)
                continue
            waiting[:] = [request for request in waiting if request.since > now - _HANDSHAKE_S]
            if waiting and now >= slowed.next:
                admitted.append(waiting.pop(secrets.randbelow(len(waiting))))
                slowed.next = now + _NEWCOMER_S
            if not waiting:
                del self._waiting[computer]
        return admitted

    @property
    def has_waiting(self) -> bool:
        return bool(self._waiting)


def _reload(security: Server) -> None:
    """Let the ring read its files again. An error in them must not end the thread, so it is logged."""
    try:
        security.ring.reload()
    except (DllamaError, OSError) as error:
        logger.error("the keys stay as they were: %s", error)


def _computer(address: str) -> str:
    """A text that is equal for all addresses of one computer."""
    ip = ip_of(address)
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ":" in ip else ip


class _Handler:
    """The thread that answers libzmq: one for all sockets of a context, as long as it has any."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Raises RuntimeError if the system has no thread left."""
        self.admissions: dict[bytes, Admission] = {}
        # A shadow of the context, so that `destroy` in another thread leaves its sockets to this one, which hears it.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.shadow(context.underlying)
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, name="admission", daemon=True)
        self._thread.start()
        self._listens.wait()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        """End the thread. Afterwards the context may have another handler."""
        if not self._thread.is_alive():
            return
        with suppress(zmq.ZMQError), self._context.socket(zmq.DEALER) as bell:  # or the context ends, and so does it
            bell.set(zmq.LINGER, 1000)
            bell.connect(_ENDPOINT)
            bell.send(b"")
        self._thread.join(_HANDSHAKE_S)

    def _run(self) -> None:
        self._requests = self._context.socket(zmq.ROUTER)  # here no signal can come before what closes it
        try:
            self._requests.set(zmq.LINGER, 0)
            self._requests.bind(_ENDPOINT)
            self._listens.set()
            while True:
                waiting = any(admission.has_waiting for admission in list(self.admissions.values()))
                if self._requests.poll(_POLL_MS if waiting else None):
                    session, *frames = self._requests.recv_multipart()
                    if len(frames) < 5:  # the bell: libzmq's own requests have seven frames
                        self._requests.unbind(_ENDPOINT)
                        return
                    _, _, number, domain, address = frames[:5]
                    key = z85.encode(frames[7]).decode() if frames[6:7] == [b"CURVE"] else ""
                    admission = self.admissions.get(domain)
                    if admission is not None:
                        admission.ask(Request(session, number, time.monotonic(), address.decode(), key))
                for admission in list(self.admissions.values()):
                    for request in admission.admitted(time.monotonic()):
                        answer = admission.answer(request)
                        self._requests.send_multipart([request.session, b"", b"1.0", request.number, *answer])
        except zmq.ZMQError:  # the context is being ended
            return
        finally:
            self._listens.set()
            self._requests.close()


_handlers: dict[int, _Handler] = {}  # by the address of the context
_lock = threading.Lock()


def admission_to(socket: zmq.Socket[bytes], security: Server | None = None) -> tuple[Admission, Callable[[], None]]:
    """The Admission for `socket`, which is not bound yet, and a function that ends it before the socket is closed.

    Raises RuntimeError if the system has no thread left.
    """
    key, domain, admission = socket.context.underlying, secrets.token_hex(8).encode(), Admission(security)
    with _lock:
        handler = _handlers.get(key)
        if handler is None or not handler.is_alive:  # that of a context that has ended
            handler = _handlers[key] = _Handler(socket.context)
        handler.admissions[domain] = admission

    def end() -> None:
        with _lock:
            handler.admissions.pop(domain, None)
            if not handler.admissions:
                handler.stop()
                if _handlers.get(key) is handler:
                    del _handlers[key]

    socket.set(zmq.ZAP_DOMAIN, domain)
    socket.set(zmq.ZAP_ENFORCE_DOMAIN, 1)  # else libzmq admits any key while no handler runs
    return admission, end
