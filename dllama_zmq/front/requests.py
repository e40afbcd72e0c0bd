"""The requests of clients, from their messages to the ends of their answers: they wait, are encoded, run, and end.

Knows text and requests; reads no socket, and what nodes and steps are is the engine's.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable
from typing import Literal

from dllama_zmq.bus.client_messages import Error, Generate, Prefill, Queued, Started
from dllama_zmq.bus.engine_messages import Facts, Failed, Readiness, Stepped, ToEngine, Withdraw, Withdrawn
from dllama_zmq.bus.messages import Message
from dllama_zmq.errors import DllamaError, NotReady, QueueFull, told
from dllama_zmq.front.encoding import Encoding
from dllama_zmq.front.request import Request
from dllama_zmq.front.running import Running
from dllama_zmq.front.texts import Texts
from dllama_zmq.front.waiting import Waiting

logger = logging.getLogger(__name__)

_REMIND_S = 1.0
_LOOK_S = 0.1
_NEWCOMERS = 8  # one place of so many is for clients that run nothing


class Requests:
    """All that have not ended, each in one place: it waits, is encoded, or runs.

    send: to one client; False where it has gone, which `leave` has been told of by then. tell_engine: to the engine.
    """

    def __init__(
        self,
        texts: Texts,
        facts: Facts,
        send: Callable[[bytes, Message], bool],
        tell_engine: Callable[[ToEngine], None],
    ) -> None:
        self._texts, self._facts = texts, facts
        self._send, self._tell_engine = send, tell_engine
        self._waiting: Waiting[Request] = Waiting()
        self._encoding = Encoding(texts)
        self._running = Running()
        self._nodes = Readiness(False, "", math.inf)  # until the engine says how they are
        self._ready_at = time.monotonic()  # when every node was last known to be ready, or this began
        self._next_look = 0.0

    @property
    def wake(self) -> int:
        """A descriptor that is readable once `submit` has something to do because of a prompt."""
        return self._encoding.wake

    @property
    def wait_s(self) -> float | None:
        """Seconds until `remind` may have something to do; None where nobody waits."""
        return _LOOK_S if len(self._waiting) or (self._running and not self._nodes.ready) else None

    @property
    def running(self) -> list[Request]:
        """Those that the engine has."""
        return list(self._running)

    @property
    def queued(self) -> list[Request]:
        """Those that the engine does not know yet."""
        return [*self._encoded(), *self._waiting]

    def close(self) -> None:
        """Give up on prompts that are being encoded."""
        self._encoding.close()

    # --- what clients want ------------------------------------------------------------------------------------------

    def add(self, client: bytes, message: Generate) -> None:
        """Queue a request, or refuse it."""
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

    def cancel(self, client: bytes, request_id: int) -> None:
        """End a request at once, if it is open."""
        if (request := self._find(client, request_id)) is not None:
            self._forget(request)
            self._finish(request, "cancelled")

    def leave(self, client: bytes) -> None:
        """A client has gone, and what it has asked for with it."""
        self._waiting.leave(client)
        for request in [r for r in self._running if r.client == client]:
            self._forget(request)

    def _find(self, client: bytes, request_id: int) -> Request | None:
        """The client's open request with this id."""
        few = [*self._running, *self._encoded()]
        found = next((r for r in few if (r.client, r.id) == (client, request_id)), None)
        return found or self._waiting.find(client, request_id)

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

    # --- what the engine says ---------------------------------------------------------------------------------------

    def hear(self, message: Stepped | Readiness | Failed | Withdrawn) -> None:
        """Tell clients what it means for them."""
        if isinstance(message, Stepped):
            self._tell_step(message)
        elif isinstance(message, Readiness):
            if self._nodes.ready or message.ready:
                self._ready_at = time.monotonic()
            self._nodes = message
        elif isinstance(message, Withdrawn):
            self._running.left(message.id)
        elif (request := self._running.end(message.id)) is not None:
            self._send(request.client, Error(request.id, message.kind, message.text[:4000]))

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
                self._tell(request, request.piece(sampled, step.figures, self._texts))
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

    # --- from the queue to the engine -------------------------------------------------------------------------------

    def submit(self) -> None:
        """Submit what has been encoded, and encode the prompt of the next request, where the engine has room for it.

        The last places are for clients that run nothing: who has many long requests must not keep others waiting.
        """
        self._take_encoded()
        n_free = self._facts.max_sequences - self._running.n_places
        if n_free < 1 or not self._nodes.ready or self._encoding.request is not None:
            return
        but_not = self._running.clients() if n_free <= self._facts.max_sequences // _NEWCOMERS else set()
        if (request := self._waiting.take(but_not)) is not None:
            self._encoding.begin(request)

    def _take_encoded(self) -> None:
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
        self._tell_engine(request.submit(tokens, self._texts.tokenizer, self._facts.vocab_size))
        self._tell(request, Started(request.id, len(tokens), request.seed, self._facts.silence_s, encoded.end))

    def remind(self) -> None:
        """Tell every waiting client once a second why it waits; give up on those that wait too long for nodes."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_S
        nodes = self._nodes
        held_up = [] if nodes.ready else [(0, request) for request in self._running]
        n_ahead = self._running.n_places + (self._encoding.request is not None)
        for ahead, request in [*held_up, *enumerate(self._waiting, n_ahead)]:
            if not nodes.ready and now > max(self._ready_at, request.came) + nodes.patience_s:
                self._forget(request)
                reason = f"the cluster did not get ready: {nodes.note}"
                self._send(request.client, Error(request.id, NotReady.__name__, reason))
            elif now >= request.reminded + _REMIND_S and (ahead or nodes.note):
                request.reminded = now
                self._tell(request, Queued(request.id, ahead, nodes.note[:2000], self._facts.silence_s))

    def _fail(self, request: Request, error: BaseException) -> None:
        """A request ends in an error before it has reached the engine."""
        if not isinstance(error, DllamaError):
            logger.error("request failed id=%d", request.id, exc_info=error)
        self._send(request.client, Error(request.id, *told(error)))

    def _tell(self, request: Request, message: Message) -> None:
        """Send to the client of `request`; a client that has gone has no requests."""
        if not self._send(request.client, message):
            logger.info("client left id=%d", request.id)
