"""The clients' side of a root: one thread that serves clients, the engine and encoded texts in short turns."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import zmq

from dllama_zmq.bus import sockets
from dllama_zmq.bus.client_messages import FROM_CLIENT, Cancel, Error, Generate, Status, StatusRequest, Stop, Stopping
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.engine_messages import (
    ENCODER,
    TO_FRONT,
    Facts,
    GoingDown,
    Listening,
    ToEngine,
)
from dllama_zmq.bus.messages import Enroll, Message
from dllama_zmq.bus.peers import PeerBehind, PeerGone, Peers
from dllama_zmq.bus.rate_limited_log import RateLimitedLog
from dllama_zmq.bus.security import enrolled
from dllama_zmq.bus.text_messages import Detokenize, Embed, Links, LinksRequest, ModelRequest, Tokenize
from dllama_zmq.errors import DllamaError, ProtocolError
from dllama_zmq.front.reports import Reports
from dllama_zmq.front.requests import Requests
from dllama_zmq.front.texts import Texts
from dllama_zmq.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_CLIENTS_S = 0.002  # for messages of clients, before the engine has its turn
_KILLED = "the root went away without a message, as if it was killed; `dllama-zmq logs root` may say why"
_BEHIND = "this client has not read its answers for too long, and some of them are lost; ask again"
_MAX_UNREAD = 64 << 10  # unread bytes of a client that reads; the kernel holds 200 KiB and more for one that does not
_LINGER_MS = 200  # for the last messages to clients


class Front:
    """Serves clients of one engine. `run` returns when the engine has gone.

    engine: the PAIR socket to the engine. alive: a descriptor that becomes readable when the engine's process ends.
    """

    def __init__(
        self,
        engine: zmq.Socket[bytes],
        alive: int,
        tokenizer: Tokenizer,
        listen: Callable[[Sequence[str]], Peers],
    ) -> None:
        self._engine, self._alive = engine, alive
        self._tokenizer = tokenizer
        self._listen = listen
        self._reports = Reports()
        self._bad_peers = RateLimitedLog(logger)
        self._why_down = ""
        self._behind: dict[bytes, list[int]] = {}
        self._link_askers: dict[bytes, int] = {}  # clients that wait for Links, with their request ids

    def run(self) -> None:
        """Serve until the engine says that it goes down, and then until its process has ended (`alive`)."""
        poller = zmq.Poller()
        poller.register(self._engine, zmq.POLLIN)
        poller.register(self._alive, zmq.POLLIN)
        poller.poll()
        facts = TO_FRONT.decode(self._engine.recv()) if self._engine.poll(0) else None
        if not isinstance(facts, Facts):  # the engine has ended before it could begin
            return
        try:
            self._clients = self._listen(facts.endpoints)
        except DllamaError as error:
            self._tell_engine(Listening(str(error)))
            return
        self._tell_engine(Listening(""))
        texts = Texts(self._tokenizer, facts.model)
        self._requests = requests = Requests(texts, facts, self._send, self._tell_engine, self._reads)
        poller.register(self._clients.socket, zmq.POLLIN)
        poller.register(requests.wake, zmq.POLLIN)
        try:
            while not self._why_down:
                events = dict(poller.poll(round(self._wait_s() * 1000)))
                if self._alive in events:
                    self._why_down = _KILLED
                self._hear_engine()
                self._answer_clients()
                requests.submit()
                for client, status in self._reports.answers(requests.running, requests.queued):
                    refused = dict(Counter(status.refused) + Counter(self._clients.refused()))
                    self._send(client, msgspec.structs.replace(status, refused=refused))
                requests.remind()
                self._tell_behind()
            for request in [*requests.running, *requests.queued]:
                self._send(request.client, Error(request.id, "ClusterError", self._why_down[:4000]))
            poller = zmq.Poller()  # when this connection closes, clients know that all nodes have left
            poller.register(self._alive, zmq.POLLIN)
            poller.poll()
        finally:
            requests.close()
            self._clients.close(_LINGER_MS)

    def _wait_s(self) -> float:
        due = [wait_s for wait_s in (self._reports.wait_s, self._requests.wait_s) if wait_s is not None]
        return min(due, default=_POLL_S)

    def _hear_engine(self) -> None:
        while sockets.readable(self._engine):
            message = TO_FRONT.decode(self._engine.recv())
            if isinstance(message, Status):
                self._reports.take(message)
            elif isinstance(message, Links):
                for client, request_id in self._link_askers.items():
                    self._send(client, Links(request_id, message.clock_us, message.links))
                self._link_askers.clear()
            elif isinstance(message, GoingDown):
                self._why_down = message.why
            elif not isinstance(message, Facts):
                self._requests.hear(message)

    def _tell_engine(self, message: ToEngine) -> None:
        self._engine.send(ENCODER.encode(message))

    def _answer_clients(self) -> None:
        """Handle messages of clients in turn, one of each, for at most _CLIENTS_S."""
        until = time.monotonic() + _CLIENTS_S
        while True:
            frames = self._clients.receive_now()
            if frames is None:
                return
            client = bytes(frames[0])
            try:
                message, _ = decode(frames[1:], FROM_CLIENT)
            except ProtocolError as error:
                self._bad_peers.warning("dropped a message of a client: %s", error)
                self._send(client, Error(0, "ProtocolError", str(error)[:1000]))
            else:
                self._answer(client, message)
            if time.monotonic() > until:
                return

    def _answer(self, client: bytes, message: Message) -> None:
        security, key = self._clients.security, self._clients.key(client)
        if isinstance(message, Enroll):
            self._send(client, enrolled(security, key, message))
        elif key and security is not None and not security.admits(key):
            self._send(client, Error(0, "ClusterError", "this key is a token's: it may only enrol another key"))
        elif isinstance(message, Generate | Embed):
            self._requests.add(client, message)
        elif isinstance(message, Cancel):
            self._requests.cancel(client, message.id)
        elif isinstance(message, StatusRequest):
            if self._reports.ask(client, message.id):
                self._tell_engine(message)
        elif isinstance(message, LinksRequest):
            if not self._link_askers:
                self._tell_engine(message)
            self._link_askers[client] = message.id  # a client that asks twice gets one answer
        elif isinstance(message, Tokenize | Detokenize | ModelRequest):
            self._requests.ask(client, message)
        elif isinstance(message, Stop):
            self._send(client, Stopping(message.id))
            self._tell_engine(message)

    def _reads(self, client: bytes) -> bool:
        return self._clients.unread_bytes(client) <= _MAX_UNREAD

    def _send(self, client: bytes, message: Message) -> bool:
        """Send to one client. False if it has gone; its requests are then dropped."""
        try:
            self._clients.send(client, encode(message))
        except PeerGone as gone:
            ended = self._requests.leave(client)
            if isinstance(gone, PeerBehind):
                self._behind.setdefault(client, []).extend(ended)
            return False
        return True

    def _tell_behind(self) -> None:
        """Send the ends of their requests to clients whose queues were full, once there is room."""
        for client, ended in list(self._behind.items()):
            try:
                while ended:
                    self._clients.send(client, encode(Error(ended[-1], "ClusterError", _BEHIND)))
                    ended.pop()
            except PeerBehind:
                continue
            except PeerGone:
                pass
            del self._behind[client]
