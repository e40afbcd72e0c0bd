"""Answer clients: queue their requests, run one at a time, stream its tokens, report and stop.

One thread serves the running request, clients and the bus: one step, then what has come from both. Knows text and
requests; leaves how nodes work together to `root.py`.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import zmq

from dllama_zmq.bus.client_messages import (
    FROM_CLIENT,
    AskStatus,
    Cancel,
    Done,
    Error,
    Generate,
    Piece,
    Prefill,
    Queued,
    Started,
    Status,
    Stop,
    Stopping,
)
from dllama_zmq.bus.complaints import Complaints
from dllama_zmq.bus.messages import Message, decode, encode
from dllama_zmq.bus.peers import PeerGone, Peers
from dllama_zmq.errors import BusError, ClusterDefect, DllamaError, ProtocolError
from dllama_zmq.root.generation import Event, Finished, GenerationRequest, Prefilled, Token, check_request, generate
from dllama_zmq.root.report import ClusterFacts, cluster_status
from dllama_zmq.root.root import Root
from dllama_zmq.root.sampling import Sampling
from dllama_zmq.root.waiting import Waiting
from dllama_zmq.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

_TURN_S = 0.1
_CLIENTS_S = 0.002  # for what clients say, at most in one go
_CLIENTS_SHARE = 0.25  # and of the step before: one long message takes 1 ms, as a step of a small model does
_STEP_STAGES = 3  # limits.step_s is for one stage; a step of which more stages are as late is none that works
_REMIND_S = 1.0
_LOOK_AT_WAITING_S = 0.1
_LAST_WORDS_S = 0.5  # for clients to hear how it ends, part of limits.stop_s
_LAST_WORDS_AGAIN_S = 0.02
_STATUS_S = 0.05  # how old an answer to `askstatus` may be: making it takes longer than a step of a small model


@dataclass(slots=True, eq=False)
class _Request:
    """One client's request, waiting or running."""

    client: bytes
    id: int
    prompt: str
    max_tokens: int | None
    sampling: Sampling
    ignore_eos: bool
    came: float
    reminded: float
    generation: GenerationRequest | None = None  # once it runs
    events: Iterator[Event] | None = None
    n_tokens: int = 0
    started: float = 0.0


class Service:
    """The clients' side of the root. `run` returns when a client has asked for the end, or `stop` was called."""

    def __init__(
        self,
        root: Root,
        tokenizer: Tokenizer,
        clients: Peers,
        facts: ClusterFacts,
        every_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._root = root
        self._tokenizer = tokenizer
        self._clients = clients
        self._facts = facts
        self._every_turn = every_turn
        self._silence_s = _STEP_STAGES * root.settings.limits.step_s
        self._waiting: Waiting[_Request] = Waiting()
        self._active: _Request | None = None
        self._complaints = Complaints(logger)
        self._step_s = math.inf  # how long the last step took; unknown: no bound for clients
        self._ready_at = time.monotonic()  # when it was last seen, or began
        self._next_look = 0.0
        self._status: Status | None = None
        self._status_until = 0.0
        self._stopped = False
        self._last_words: list[tuple[bytes, Message]] = []

    def stop(self) -> None:
        """Make `run` return after the step it is in; safe to call from a signal handler."""
        self._stopped = True

    def run(self) -> None:
        """Serve until stopped."""
        poller = zmq.Poller()
        poller.register(self._clients.socket, zmq.POLLIN)
        if self._root.link is not None:
            poller.register(self._root.link.replies, zmq.POLLIN)
        why = "the cluster is going down"
        try:
            while not self._stopped:
                self._every_turn()
                self._answer_clients()
                self._root.pump(time.monotonic())
                self._remind()
                if self._active is None and len(self._waiting) and self._root.all_reachable():
                    self._start(self._waiting.take())
                if self._active is not None:
                    self._advance(self._active)
                else:
                    poller.poll(round(_TURN_S * 1000))
        except DllamaError as error:
            why = f"the cluster went down: {error}"
            raise
        finally:
            for request in [*([self._active] if self._active is not None else []), *self._waiting]:
                self._last_words.append((request.client, Error(request.id, "ClusterError", why[:4000])))
            self._say_last_words()

    def _say_last_words(self) -> None:
        """Tell clients how it ends until they have left: what they have not read goes with the connection.

        (libzmq 4.3.5 drops it where a connecting socket has IMMEDIATE: `hiccuped` ends the pipe. Our client's has not.)
        """
        until = time.monotonic() + _LAST_WORDS_S
        while self._last_words and time.monotonic() < until:
            self._last_words = [word for word in self._last_words if self._send(*word)]
            time.sleep(_LAST_WORDS_AGAIN_S)

    # --- clients ---------------------------------------------------------------------------------------------------

    def _answer_clients(self) -> None:
        """Hear clients, one message of each in turn, for a part of a step's time: the steps of the others go on."""
        until = time.monotonic() + min(_CLIENTS_S, _CLIENTS_SHARE * self._step_s)
        while not self._stopped:
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
            self._cancel(client, message.id)
        elif isinstance(message, AskStatus):
            self._send(client, self._status_for(message.id))
        elif isinstance(message, Stop):
            self._last_words.append((client, Stopping(message.id)))
            self._stopped = True

    def _status_for(self, request_id: int) -> Status:
        now = time.monotonic()
        if self._status is None or now >= self._status_until:
            n_active, n_waiting = int(self._active is not None), len(self._waiting)
            self._status = cluster_status(request_id, self._facts, self._root, n_active, n_waiting)
            self._status_until = now + _STATUS_S
        return msgspec.structs.replace(self._status, id=request_id)

    def _enqueue(self, client: bytes, message: Generate) -> None:
        active = self._active
        if (active is not None and (active.client, active.id) == (client, message.id)) or self._waiting.find(
            client, message.id
        ):
            self._send(client, Error(0, "RequestError", f"a request with the id {message.id} is open already"))
            return
        seed = secrets.randbelow(1 << 31) if message.seed is None else message.seed
        sampling = Sampling(message.temperature, message.top_p, message.top_k, seed)
        try:
            sampling.check()
        except DllamaError as error:
            self._send(client, Error(message.id, type(error).__name__, str(error)))
            return
        now = time.monotonic()
        request = _Request(
            client, message.id, message.prompt, message.max_tokens, sampling, message.ignore_eos, now, now - _REMIND_S
        )
        self._status = None
        for dropped in self._waiting.add(request):
            reason = f"{len(self._waiting)} requests wait already; try again later"
            self._send(dropped.client, Error(dropped.id, "RequestError", reason))

    def _remind(self) -> None:
        """Tell every waiting client once a second why it waits; give up on those that wait too long for workers.

        A request waits for the whole patience, also one that comes when the cluster has been incomplete for long.
        """
        now = time.monotonic()
        if self._root.ready:
            self._ready_at = now
        if now < self._next_look or not len(self._waiting):
            return
        self._next_look = now + _LOOK_AT_WAITING_S
        note = "" if self._root.ready else self._root.missing_sentence()
        limits = self._root.settings.limits
        patience_s = limits.join_s + (0 if self._root.anybody_absent() else limits.load_s)
        for ahead, request in enumerate(self._waiting, start=int(self._active is not None)):
            if note and now > max(self._ready_at, request.came) + patience_s:
                self._waiting.remove(request)
                self._send(request.client, Error(request.id, "WorkerLost", f"the cluster did not get ready: {note}"))
            elif now >= request.reminded + _REMIND_S and (ahead or note):
                request.reminded = now
                self._send(request.client, Queued(request.id, ahead, note[:2000], self._silence_s))

    def _cancel(self, client: bytes, request_id: int) -> None:
        if self._active is not None and (self._active.client, self._active.id) == (client, request_id):
            self._finish(self._active, "cancelled", "")
        request = self._waiting.find(client, request_id)
        if request is not None:
            self._waiting.remove(request)
            self._status = None
            self._send(client, Done(request_id, "cancelled", ""))

    # --- the running request -----------------------------------------------------------------------------------------

    def _start(self, request: _Request | None) -> None:
        """Begin a request; what cannot be run ends at once."""
        if request is None:
            return
        self._active = request
        self._status = None
        request.started = time.monotonic()
        try:
            tokens = self._tokenizer.encode(request.prompt)
            generation = GenerationRequest(tokens, request.max_tokens, request.sampling, request.ignore_eos)
            check_request(self._root, generation)
        except Exception as error:
            self._fail(request, self._as_ours(request, error))
            return
        request.generation = generation
        request.events = generate(self._root, self._tokenizer, generation)
        started = Started(request.id, len(tokens), request.sampling.seed, self._silence_s)
        if not self._send(request.client, started):
            self._drop(request)

    def _advance(self, request: _Request) -> None:
        """One event of the running request: at most one step."""
        begun = time.monotonic()
        try:
            event = next(request.events) if request.events is not None else None
            self._step_s = time.monotonic() - begun
        except Exception as error:
            self._fail(request, self._as_ours(request, error))
        else:
            self._tell(request, event)

    def _as_ours(self, request: _Request, error: Exception) -> DllamaError:
        """What a client is told of an error. A defect of ours must not take the cluster down, nor leave it waiting."""
        if isinstance(error, BusError):
            logger.warning("request failed id=%d: %s", request.id, error)
        if isinstance(error, DllamaError):
            return error
        logger.error("request failed id=%d", request.id, exc_info=error)
        self._root.roster.new_epoch()
        return ClusterDefect(f"{type(error).__name__}: {error}; the root's log has more")

    def _tell(self, request: _Request, event: Event | None) -> None:
        alive = True
        if isinstance(event, Prefilled):
            prefill = Prefill(request.id, event.done, event.total, event.n_tokens, event.figures)
            alive = self._send(request.client, prefill)
        elif isinstance(event, Token):
            request.n_tokens += 1
            alive = self._send(request.client, Piece(request.id, event.token, event.text, event.figures))
        elif isinstance(event, Finished):
            self._finish(request, event.reason, event.text)
        if not alive:
            logger.info("client left id=%d", request.id)
            self._drop(request)

    def _finish(self, request: _Request, reason: str, text: str) -> None:
        self._send(request.client, Done(request.id, reason, text))  # type: ignore[arg-type]
        seconds = time.monotonic() - request.started
        n_prompt = len(request.generation.tokens) if request.generation is not None else 0
        logger.info(
            "request done id=%d reason=%s prompt=%d out=%d tok_s=%.1f",
            request.id, reason, n_prompt, request.n_tokens, request.n_tokens / max(seconds, 1e-9),
        )  # fmt: skip
        self._drop(request)

    def _fail(self, request: _Request, error: DllamaError) -> None:
        self._send(request.client, Error(request.id, type(error).__name__, str(error)[:4000]))
        self._drop(request)

    def _drop(self, request: _Request) -> None:
        request.events = None
        self._active = None
        self._status = None
        self._root.set_phase("idle")

    def _send(self, client: bytes, message: Message) -> bool:
        """Send to one client; False where it has gone, and what it has asked for with it."""
        try:
            self._clients.send(client, encode(message))
        except PeerGone:
            self._waiting.leave(client)
            return False
        return True
