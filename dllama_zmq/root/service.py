"""Answer clients: queue their requests, run one at a time, stream its tokens, report and stop.

One thread serves clients and the bus by turns: a step, then a look at both. Knows text and requests; leaves how nodes
work together to `root.py`.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zmq

from dllama_zmq.bus import sockets
from dllama_zmq.bus.client_messages import (
    FROM_CLIENT,
    AskStatus,
    Cancel,
    Done,
    Error,
    Figures,
    Generate,
    Piece,
    Prefill,
    Queued,
    Started,
    Stop,
    Stopping,
)
from dllama_zmq.bus.links import Complaints
from dllama_zmq.bus.messages import Message, decode, encode
from dllama_zmq.errors import BusError, ClusterDefect, DllamaError, ProtocolError, RequestError
from dllama_zmq.root.generation import Event, Finished, GenerationRequest, Prefilled, Token, check_request, generate
from dllama_zmq.root.report import ClusterFacts, cluster_status
from dllama_zmq.root.root import Root, Timing
from dllama_zmq.root.sampler import Sampling
from dllama_zmq.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

MAX_QUEUED = 512
_TURN_S = 0.1
_AT_ONCE = 128  # messages of clients between two steps
_REMIND_S = 1.0


@dataclass(slots=True)
class _Request:
    """One client's request, waiting or running."""

    client: bytes
    id: int
    generation: GenerationRequest
    reminded: float
    events: Iterator[Event] | None = None
    n_tokens: int = 0
    started: float = 0.0


class Service:
    """The clients' side of the root. `run` returns when a client has asked for the end, or `stop` was called."""

    def __init__(
        self,
        root: Root,
        tokenizer: Tokenizer,
        clients: zmq.Socket[bytes],
        facts: ClusterFacts,
        every_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = root
        self._tokenizer = tokenizer
        self._clients = clients
        self._facts = facts
        self._every_turn = every_turn
        self._waiting: deque[_Request] = deque()
        self._active: _Request | None = None
        self._complaints = Complaints()
        self._unready_since = math.inf
        self._stopped = False
        self._stop_when_idle = False

    def stop(self) -> None:
        """Make `run` return after the step it is in; safe to call from a signal handler."""
        self._stopped = True

    def stop_when_idle(self) -> None:
        """Make `run` return when no request is open; safe to call from another thread."""
        self._stop_when_idle = True

    def run(self) -> None:
        """Serve until stopped."""
        poller = zmq.Poller()
        poller.register(self._clients, zmq.POLLIN)
        if self._root.link is not None:
            poller.register(self._root.link.replies, zmq.POLLIN)
        while not self._stopped:
            self._every_turn()
            self._answer_clients()
            self._root.pump(time.monotonic())
            self._remind()
            if self._active is None and self._waiting and self._root.all_reachable():
                self._start(self._waiting.popleft())
            if self._active is not None:
                self._advance(self._active)
            elif self._stop_when_idle and not self._waiting:
                self._stopped = True
            else:
                poller.poll(round(_TURN_S * 1000))
        for request in [*([self._active] if self._active is not None else []), *self._waiting]:
            self._send(request.client, Error(request.id, "ClusterError", "the cluster is going down"))

    # --- clients ---------------------------------------------------------------------------------------------------

    def _answer_clients(self) -> None:
        for _ in range(_AT_ONCE):
            frames = sockets.receive_now(self._clients)
            if frames is None:
                return
            client = bytes(frames[0])
            try:
                message, _ = decode(frames[1:], FROM_CLIENT)
            except ProtocolError as error:
                self._complaints.say("dropped a message from a client: %s", error)
                self._send(client, Error(0, "ProtocolError", str(error)[:1000]))
                continue
            if isinstance(message, Generate):
                self._enqueue(client, message)
            elif isinstance(message, Cancel):
                self._cancel(client, message.id)
            elif isinstance(message, AskStatus):
                status = cluster_status(
                    message.id, self._facts, self._root, int(self._active is not None), len(self._waiting)
                )
                self._send(client, status)
            elif isinstance(message, Stop):
                self._send(client, Stopping(message.id))
                self._stopped = True

    def _enqueue(self, client: bytes, message: Generate) -> None:
        try:
            if len(self._waiting) >= MAX_QUEUED:
                raise RequestError(f"{len(self._waiting)} requests wait already; try again later")
            seed = secrets.randbelow(1 << 31) if message.seed is None else message.seed
            sampling = Sampling(message.temperature, message.top_p, message.top_k, seed)
            tokens = self._tokenizer.encode(message.prompt)
            generation = GenerationRequest(tokens, message.max_tokens, sampling, message.ignore_eos)
            check_request(self._root, generation)
        except DllamaError as error:
            self._send(client, Error(message.id, type(error).__name__, str(error)))
            return
        now = time.monotonic()
        self._waiting.append(_Request(client, message.id, generation, reminded=now - _REMIND_S))

    def _remind(self) -> None:
        """Tell every waiting client once a second why it waits; give up on those that wait too long for workers."""
        now = time.monotonic()
        note = "" if self._root.ready else self._root.missing_sentence()
        limits = self._root.settings.limits
        patience_s = limits.join_s + (0 if self._root.anybody_absent() else limits.load_s)
        self._unready_since = min(self._unready_since, now) if note else math.inf
        for ahead, request in enumerate(list(self._waiting), start=int(self._active is not None)):
            if note and now > self._unready_since + patience_s:
                self._waiting.remove(request)
                self._send(request.client, Error(request.id, "WorkerLost", f"the cluster did not get ready: {note}"))
            elif now >= request.reminded + _REMIND_S and (ahead or note):
                request.reminded = now
                if not self._send(request.client, Queued(request.id, ahead, note[:2000])):
                    self._waiting.remove(request)

    def _cancel(self, client: bytes, request_id: int) -> None:
        if self._active is not None and (self._active.client, self._active.id) == (client, request_id):
            self._finish(self._active, "cancelled", "")
        for request in list(self._waiting):
            if (request.client, request.id) == (client, request_id):
                self._waiting.remove(request)
                self._send(client, Done(request_id, "cancelled", ""))

    # --- the running request -----------------------------------------------------------------------------------------

    def _start(self, request: _Request) -> None:
        self._active = request
        request.started = time.monotonic()
        request.events = generate(self._root, self._tokenizer, request.generation)
        started = Started(request.id, len(request.generation.tokens), request.generation.sampling.seed)
        if not self._send(request.client, started):
            self._drop(request)

    def _advance(self, request: _Request) -> None:
        """One event of the running request: at most one step."""
        try:
            event = next(request.events) if request.events is not None else None
        except BusError as error:
            logger.warning("request failed id=%d: %s", request.id, error)
            self._fail(request, error)
        except DllamaError as error:
            self._fail(request, error)
        except Exception as error:  # a defect of ours must not take the cluster down, nor leave the client waiting
            logger.exception("request failed id=%d", request.id)
            self._root.roster.new_epoch()
            self._fail(request, ClusterDefect(f"{type(error).__name__}: {error}; the root's log has more"))
        else:
            self._tell(request, event)

    def _tell(self, request: _Request, event: Event | None) -> None:
        alive = True
        if isinstance(event, Prefilled):
            prefill = Prefill(request.id, event.done, event.total, event.n_tokens, _figures(event.timing))
            alive = self._send(request.client, prefill)
        elif isinstance(event, Token):
            request.n_tokens += 1
            figures = None if event.timing is None else _figures(event.timing)
            alive = self._send(request.client, Piece(request.id, event.token, event.text, figures))
        elif isinstance(event, Finished):
            self._finish(request, event.reason, event.text)
        if not alive:
            logger.info("client left id=%d", request.id)
            self._drop(request)

    def _finish(self, request: _Request, reason: str, text: str) -> None:
        self._send(request.client, Done(request.id, reason, text))  # type: ignore[arg-type]
        seconds = time.monotonic() - request.started
        logger.info(
            "request done id=%d reason=%s prompt=%d out=%d tok_s=%.1f",
            request.id, reason, len(request.generation.tokens), request.n_tokens, request.n_tokens / max(seconds, 1e-9),
        )  # fmt: skip
        self._drop(request)

    def _fail(self, request: _Request, error: DllamaError) -> None:
        self._send(request.client, Error(request.id, type(error).__name__, str(error)[:4000]))
        self._drop(request)

    def _drop(self, request: _Request) -> None:
        request.events = None
        self._active = None
        self._root.set_phase("idle")

    def _send(self, client: bytes, message: Message) -> bool:
        """Send to one client; False where it has gone."""
        try:
            self._clients.send_multipart([client, *encode(message)])
        except zmq.ZMQError:
            return False
        return True


def _figures(timing: Timing) -> Figures:
    waited_for_s = {name: seconds for name, seconds in timing.waited_for_s.items() if seconds > 0}
    return Figures(timing.wall_s, timing.wait_s, timing.sent_bytes, timing.received_bytes, waited_for_s)
