"""Clients: their requests queue here, are tokenized, submitted to the engine, and answered with text.

One thread waits for clients, the engine and the encoder; none of its turns takes long. Knows text and requests; what
nodes and steps are is the engine's.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Literal

import zmq

from dllama_zmq.bus import sockets
from dllama_zmq.bus.client_messages import (
    FROM_CLIENT,
    AskStatus,
    Cancel,
    Error,
    Generate,
    Prefill,
    Queued,
    Started,
    Stop,
    Stopping,
)
from dllama_zmq.bus.complaints import Complaints
from dllama_zmq.bus.engine_messages import (
    ENCODER,
    TO_FRONT,
    AskReport,
    Facts,
    Failed,
    GoingDown,
    Listening,
    Quit,
    Readiness,
    Report,
    Stepped,
    ToEngine,
    Withdraw,
    Withdrawn,
)
from dllama_zmq.bus.messages import Message, decode, encode
from dllama_zmq.bus.peers import PeerGone, Peers
from dllama_zmq.bus.text_messages import AskModel, Detokenize, Tokenize
from dllama_zmq.errors import DllamaError, NotReady, ProtocolError, QueueFull, told
from dllama_zmq.front.encoding import Encoding
from dllama_zmq.front.reports import Reports
from dllama_zmq.front.request import Request
from dllama_zmq.front.running import Running
from dllama_zmq.front.texts import Texts
from dllama_zmq.front.waiting import Waiting
from dllama_zmq.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_REMIND_S = 1.0
_LOOK_AT_REQUESTS_S = 0.1
_NEWCOMERS = 8  # one place of so many is for clients that run nothing
_CLIENTS_S = 0.002  # for what clients say, before the engine has its turn again
_KILLED = "the root went away without a word, as one that was killed; `dllama-zmq logs root` may say why"
_LINGER_MS = 200  # for what clients are told last


class Front:
    """The clients' side of a root. `run` returns when the engine has gone.

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
        self._waiting: Waiting[Request] = Waiting()
        self._running = Running()
        self._members = Readiness(False, "", math.inf)  # until the engine says how it is
        self._ready_at = time.monotonic()  # when every node was last seen ready, or this began
        self._next_look = 0.0
        self._reports = Reports()
        self._complaints = Complaints(logger)
        self._why_down = ""

    def run(self) -> None:
        """Serve until the engine goes down, then until its process has ended or `alive` says so."""
        poller = zmq.Poller()
        poller.register(self._engine, zmq.POLLIN)
        poller.register(self._alive, zmq.POLLIN)
        facts = self._first_facts(poller)
        if facts is None:
            return
        self._facts = facts
        self._texts = Texts(self._tokenizer, facts)
        self._encoding = Encoding(self._texts)
        poller.register(self._encoding.wake, zmq.POLLIN)
        try:
            self._clients = self._listen(facts.endpoints)
        except DllamaError as error:
            self._tell_engine(Listening(str(error)))
            return
        self._tell_engine(Listening(""))
        poller.register(self._clients.socket, zmq.POLLIN)
        try:
            while not self._why_down:
                events = dict(poller.poll(round(self._wait_s() * 1000)))
                if self._alive in events:
                    self._why_down = _KILLED
                self._hear_engine()
                self._answer_clients()
                self._take_encoded()
                self._submit()
                for client, status in self._reports.answers(list(self._running), self._queued()):
                    self._send(client, status)
                self._remind()
            for request in self._open():
                self._send(request.client, Error(request.id, "ClusterError", self._why_down[:4000]))
            poller = zmq.Poller()  # clients know by the end of this connection that all nodes have left
            poller.register(self._alive, zmq.POLLIN)
            poller.poll()
        finally:
            self._encoding.close()
            self._clients.close(_LINGER_MS)

    def _first_facts(self, poller: zmq.Poller) -> Facts | None:
        """What the engine says first; None where it ends before."""
        while True:
            events = dict(poller.poll())
            if self._engine in events:
                message = TO_FRONT.decode(self._engine.recv())
                return message if isinstance(message, Facts) else None
            if self._alive in events:
                return None

    def _wait_s(self) -> float:
        if (wait_s := self._reports.wait_s) is not None:
            return wait_s
        return _LOOK_AT_REQUESTS_S if len(self._waiting) or (self._running and not self._members.ready) else _POLL_S

    # --- the engine ------------------------------------------------------------------------------------------------

    def _hear_engine(self) -> None:
        while sockets.readable(self._engine):
            message = TO_FRONT.decode(self._engine.recv())
            if isinstance(message, Stepped):
                self._tell_step(message)
            elif isinstance(message, Readiness):
                self._members = message
                if message.ready:
                    self._ready_at = time.monotonic()
            elif isinstance(message, Report):
                self._reports.take(message.status)
            elif isinstance(message, Failed):
                if (request := self._running.end(message.id)) is not None:
                    self._send(request.client, Error(request.id, message.kind, message.text[:4000]))
            elif isinstance(message, Withdrawn):
                self._running.left(message.id)
            elif isinstance(message, GoingDown):
                self._why_down = message.why

    def _tell_step(self, step: Stepped) -> None:
        """Tell each client what a step has brought it."""
        for prompt in step.prompts:
            if (request := self._running.get(prompt.id)) is not None:
                request.n_cached = prompt.n_cached
                done, total, n_tokens, n_cached = prompt.done, prompt.total, prompt.n_tokens, prompt.n_cached
                self._tell(request, Prefill(request.id, done, total, n_tokens, n_cached, step.figures))
        for sampled in step.sampled:
            request = self._running.get(sampled.id)
            if request is not None:
                self._tell(request, request.piece(sampled, step.figures, self._tokenizer))
                if request.stopped:
                    self._forget(request)
                    self._finish(request, "stop")
        for ended in step.ended:
            if (request := self._running.end(ended.id)) is not None:
                self._finish(request, ended.reason)

    def _finish(self, request: Request, reason: Literal["stop", "length", "cancelled"]) -> None:
        self._send(request.client, request.done(reason))
        speed = request.n_tokens / max(time.monotonic() - request.started, 1e-9)
        logger.info(
            "request done id=%d reason=%s prompt=%d out=%d tok_s=%.1f", request.id, reason, request.n_prompt,
            request.n_tokens, speed,
        )  # fmt: skip

    def _tell_engine(self, message: ToEngine) -> None:
        self._engine.send(ENCODER.encode(message))

    # --- clients ---------------------------------------------------------------------------------------------------

    def _answer_clients(self) -> None:
        """Hear clients, one message of each in turn, for _CLIENTS_S at most."""
        until = time.monotonic() + _CLIENTS_S
        while True:
            frames = self._clients.receive_now()
            if frames is None:
                return
            client = bytes(frames[0])
            try:
                message, _ = decode(frames[1:], FROM_CLIENT)
            except ProtocolError as error:
                self._complaints.say("dropped a message from a client: %s", error)
                self._send(client, Error(0, "ProtocolError", str(error)[:1000]))
            else:
                self._answer(client, message)
            if time.monotonic() > until:
                return

    def _answer(self, client: bytes, message: Message) -> None:
        if isinstance(message, Generate):
            self._enqueue(client, message)
        elif isinstance(message, Cancel):
            if (request := self._find(client, message.id)) is not None:
                self._forget(request)
                self._finish(request, "cancelled")
        elif isinstance(message, AskStatus):
            if self._reports.ask(client, message.id):
                self._tell_engine(AskReport())
        elif isinstance(message, Tokenize | Detokenize | AskModel):
            self._send(client, self._texts.answer(message))
        elif isinstance(message, Stop):
            self._send(client, Stopping(message.id))
            self._tell_engine(Quit())

    def _enqueue(self, client: bytes, message: Generate) -> None:
        if self._find(client, message.id) is not None:
            self._send(client, Error(0, "RequestError", f"a request with the id {message.id} is open already"))
            return
        seed = secrets.randbelow(1 << 31) if message.sampling.seed is None else message.sampling.seed
        now = time.monotonic()
        request = Request(client, message, seed, now, now - _REMIND_S)
        try:
            request.check()
        except DllamaError as error:
            self._fail(request, error)
            return
        for dropped in self._waiting.add(request):
            reason = f"{len(self._waiting)} requests wait already; try again later"
            self._send(dropped.client, Error(dropped.id, QueueFull.__name__, reason))

    def _find(self, client: bytes, request_id: int) -> Request | None:
        """The client's open request with this id."""
        few = [*self._running, *self._encoded()]
        found = next((r for r in few if (r.client, r.id) == (client, request_id)), None)
        return found or self._waiting.find(client, request_id)

    def _open(self) -> list[Request]:
        """All requests that have not ended, those that run first."""
        return [*self._running, *self._queued()]

    def _queued(self) -> list[Request]:
        """Those that the engine does not know yet."""
        return [*self._encoded(), *self._waiting]

    def _encoded(self) -> list[Request]:
        """The one whose prompt is being encoded, where there is one."""
        request = self._encoding.request
        return [] if request is None or request.cancelled else [request]

    def _forget(self, request: Request) -> None:
        """Nobody waits for this request any more."""
        self._waiting.remove(request)
        if self._encoding.request is request:
            request.cancelled = True
        if self._running.withdraw(request):
            self._tell_engine(Withdraw(request.engine_id))

    # --- requests --------------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Encode the prompt of the next request, where the engine has room for it.

        The last of them are for clients that run nothing: who has many long requests must not keep others waiting.
        """
        n_free = self._facts.max_sequences - self._running.n_places
        if n_free < 1 or not self._members.ready or self._encoding.request is not None:
            return
        but_not = self._running.clients() if n_free <= self._facts.max_sequences // _NEWCOMERS else set()
        if (request := self._waiting.take(but_not)) is not None:
            self._encoding.begin(request)

    def _take_encoded(self) -> None:
        """Submit the request whose prompt has been encoded."""
        result = self._encoding.result()
        if result is None:
            return
        request, encoded = result
        if request.cancelled:
            return
        if isinstance(encoded, BaseException):
            self._fail(request, encoded)
            return
        tokens = encoded.tokens
        self._running.add(request)
        self._tell_engine(request.submit(tokens, self._tokenizer, self._facts.vocab_size))
        self._tell(request, Started(request.id, len(tokens), request.seed, self._facts.silence_s, encoded.end))

    def _remind(self) -> None:
        """Tell every waiting client once a second why it waits; give up on those that wait too long for nodes."""
        now = time.monotonic()
        members = self._members
        if members.ready:
            self._ready_at = now
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_AT_REQUESTS_S
        held_up = [] if members.ready else [(0, request) for request in self._running]
        n_ahead = self._running.n_places + (self._encoding.request is not None)
        for ahead, request in [*held_up, *enumerate(self._waiting, n_ahead)]:
            if not members.ready and now > max(self._ready_at, request.came) + members.patience_s:
                self._forget(request)
                reason = f"the cluster did not get ready: {members.note}"
                self._send(request.client, Error(request.id, NotReady.__name__, reason))
            elif now >= request.reminded + _REMIND_S and (ahead or members.note):
                request.reminded = now
                self._tell(request, Queued(request.id, ahead, members.note[:2000], self._facts.silence_s))

    def _fail(self, request: Request, error: BaseException) -> None:
        """A request ends in an error before it has reached the engine."""
        if not isinstance(error, DllamaError):
            logger.error("request failed id=%d", request.id, exc_info=error)
        self._send(request.client, Error(request.id, *told(error)))

    def _tell(self, request: Request, message: Message) -> None:
        """Send to the client of `request`; a client that has gone has no requests."""
        if not self._send(request.client, message):
            logger.info("client left id=%d", request.id)

    def _send(self, client: bytes, message: Message) -> bool:
        """Send to one client; False where it has gone, and what it has asked for with it."""
        try:
            self._clients.send(client, encode(message))
        except PeerGone:
            self._waiting.leave(client)
            for request in [r for r in self._running if r.client == client]:
                self._forget(request)
            return False
        return True
