"""The requests of clients, from their messages to the ends of their answers: they wait, are encoded, and run.

Knows text and requests; reads no socket and knows no node or step.
"""

from __future__ import annotations

import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable

from dllama_zmq.bus.client_messages import Error, Generate, Prefill, Queued, Started
from dllama_zmq.bus.engine_messages import Embedded, Facts, Readiness, Stepped, ToEngine, Withdraw, Withdrawn
from dllama_zmq.bus.messages import Message
from dllama_zmq.bus.text_messages import Detokenize, Embed, Embedding, ModelRequest, Tokenize
from dllama_zmq.errors import DllamaError, NotReady, QueueFull, kind_and_text
from dllama_zmq.front.encoding import Encoding, Result, Work
from dllama_zmq.front.fair_queue import FairQueue
from dllama_zmq.front.request import Answer, Question, Reason, Request
from dllama_zmq.front.texts import Encoded, Texts
from dllama_zmq.sampling import GREEDY

logger = logging.getLogger(__name__)

_REMIND_S = 1.0
_POLL_S = 0.1
_NEWCOMERS = 8  # one of 8 places is for clients without a running request


class Requests:
    """All open requests: waiting, being encoded, or with running answers (others may wait for a place).

    send: sends to one client; returns False if it has gone, after `leave` was called. tell_engine: sends to the engine.
    reads: whether a client reads its messages; if not, it gets no more answers to questions, which can be long.
    """

    def __init__(
        self,
        texts: Texts,
        facts: Facts,
        send: Callable[[bytes, Message], bool],
        tell_engine: Callable[[ToEngine], None],
        reads: Callable[[bytes], bool],
    ) -> None:
        self._texts, self._facts, self._reads = texts, facts, reads
        self._send, self._tell_engine = send, tell_engine
        self._waiting: FairQueue[Request] = FairQueue()
        self._questions: FairQueue[Question] = FairQueue()
        self._encoding = Encoding(texts)
        self._running: dict[int, Answer] = {}  # the answers that the engine has, by its number for them
        self._leaving: set[int] = set()  # the numbers of withdrawn answers that it has not confirmed, see `_withdraw`
        self._numbers = itertools.count(1)
        self._nodes = Readiness(False, "", math.inf)  # until the engine reports their state
        self._ready_at = time.monotonic()  # when every node was last known to be ready, at first the start
        self._next_poll = 0.0

    @property
    def wake(self) -> int:
        """A descriptor that is readable when an encoded text gives `submit` something to do."""
        return self._encoding.wake

    @property
    def wait_s(self) -> float | None:
        """Seconds until `remind` may have something to do; None if no request waits."""
        waits = len(self._waiting) or len(self._questions) or (self._running and not self._nodes.ready)
        return _POLL_S if waits else None

    @property
    def running(self) -> list[Request]:
        """The requests that the engine has."""
        return list(dict.fromkeys(answer.request for answer in self._running.values()))

    @property
    def queued(self) -> list[Request]:
        """The requests that the engine does not have yet."""
        return [*self._encoding.requests, *(request for request in self._waiting if not request.begun)]

    def close(self) -> None:
        """Abandon the texts that are being encoded."""
        self._encoding.close()

    # --- from clients -----------------------------------------------------------------------------------------------

    def add(self, client: bytes, message: Generate | Embed) -> None:
        """Queue a request, or refuse it."""
        if self._find(client, message.id) is not None:
            self._send(client, Error(0, "RequestError", f"a request with the id {message.id} is open already"))
            return
        embeds = isinstance(message, Embed)
        if isinstance(message, Embed):
            message = Generate(message.id, message.prompt, None, GREEDY, ignore_eos=True, stop=[])
        seed = secrets.randbelow(1 << 31) if message.sampling.seed is None else message.sampling.seed
        now = time.monotonic()
        request = Request(client, message, seed, now, now - _REMIND_S, embeds)
        try:
            request.check()
        except DllamaError as error:
            self._fail(request, error)
            return
        for dropped in self._waiting.add(request):
            self._forget(dropped)
            self._send(dropped.client, _queue_full(dropped.id, len(self._waiting), "requests"))

    def ask(self, client: bytes, question: Tokenize | Detokenize | ModelRequest) -> None:
        """Queue a question, or refuse it."""
        for dropped in self._questions.add(Question(client, question)):
            self._send(dropped.client, _queue_full(dropped.id, len(self._questions), "questions"))

    def cancel(self, client: bytes, request_id: int) -> None:
        """End a request at once, if it is open."""
        if (request := self._find(client, request_id)) is not None:
            self._forget(request)
            for index in sorted(request.open):
                self._finish(request, index, "cancelled")

    def leave(self, client: bytes) -> list[int]:
        """Drop the requests of a client that has gone; returns their ids."""
        waiting = [work.id for work in [*self._waiting, *self._questions] if work.client == client]
        self._waiting.leave(client)
        self._questions.leave(client)
        others = [r for r in [*self.running, *self._encoding.requests] if r.client == client]
        for request in others:
            self._forget(request)
        return list(dict.fromkeys([*waiting, *(request.id for request in others)]))

    def _find(self, client: bytes, request_id: int) -> Request | None:
        """The client's open request with this id."""
        few = [*self.running, *self._encoding.requests]
        found = next((r for r in few if (r.client, r.id) == (client, request_id)), None)
        return found or self._waiting.find(client, request_id)

    def _forget(self, request: Request) -> None:
        """Forget a request for which no client waits any more."""
        self._waiting.remove(request)
        request.cancelled = True
        for answer in request.begun.values():
            self._withdraw(answer)

    def _withdraw(self, answer: Answer) -> None:
        """Withdraw an answer, if the engine has it.

        It keeps its place until the engine confirms: a step may take seconds, and a client that submits and cancels in
        a loop must not fill the queue to the engine.
        """
        if self._running.pop(answer.engine_id, None) is not None:
            self._leaving.add(answer.engine_id)
            self._tell_engine(Withdraw(answer.engine_id))

    @property
    def _n_places(self) -> int:
        """The number of the engine's places that are taken."""
        return len(self._running) + len(self._leaving)

    # --- from the engine --------------------------------------------------------------------------------------------

    def hear(self, message: Stepped | Embedded | Readiness | Error | Withdrawn) -> None:
        """Handle a message of the engine; send clients what concerns them."""
        if isinstance(message, Stepped):
            self._tell_step(message)
        elif isinstance(message, Readiness):
            if self._nodes.ready or message.ready:
                self._ready_at = time.monotonic()
            self._nodes = message
        elif isinstance(message, Withdrawn):
            self._leaving.discard(message.id)
        elif (answer := self._running.pop(message.id, None)) is None:
            return  # no client waits for it any more
        elif isinstance(message, Embedded):
            request = answer.request
            self._send(request.client, Embedding(request.id, message.values, request.n_prompt))
            logger.info("embedding done id=%d prompt=%d", request.id, request.n_prompt)
        else:
            self._forget(answer.request)
            self._send(answer.request.client, Error(answer.request.id, message.kind, message.text[:4000]))

    def _tell_step(self, step: Stepped) -> None:
        """Send each client its results of a step."""
        for prompt in step.prompts:
            answer = self._running.get(prompt.id)
            # the others find the prompt in the KV cache, and one progress report is enough
            if answer is not None and answer.index == 0:
                request = answer.request
                request.n_cached = prompt.n_cached
                done, total, n_tokens, n_cached = prompt.done, prompt.total, prompt.n_tokens, prompt.n_cached
                self._tell(request, Prefill(request.id, done, total, n_tokens, n_cached, step.figures))
        for sampled in step.sampled:
            answer = self._running.get(sampled.id)
            if answer is not None:
                self._tell(answer.request, answer.piece(sampled, step.figures, self._texts))
                if answer.decoder.stopped:
                    self._withdraw(answer)
                    self._finish(answer.request, answer.index, "stop")
        for ended in step.ended:
            if (answer := self._running.pop(ended.id, None)) is not None:
                self._finish(answer.request, answer.index, ended.reason)

    def _finish(self, request: Request, index: int, reason: Reason) -> None:
        answer = request.begun.get(index)
        n_tokens = 0 if answer is None else answer.n_tokens
        self._send(request.client, request.done(index, reason))
        speed = n_tokens / max(time.monotonic() - request.started, 1e-9)
        logger.info(
            "request done id=%d index=%d reason=%s prompt=%d out=%d tok_s=%.1f",
            request.id,
            index,
            reason,
            request.n_prompt,
            n_tokens,
            speed,
        )

    # --- from the queues to the engine ------------------------------------------------------------------------------

    def submit(self) -> None:
        """Take encoded texts, start encoding the next ones, and submit answers while the engine has room."""
        for work, result in self._encoding.results():
            self._take(work, result)
        while (question := self._questions.take(self._may_begin)) is not None:
            self._encoding.begin(question)
        while self._nodes.ready and (request := self._next()) is not None:
            if request.encoded is None:
                self._encoding.begin(request)
            else:
                self._begin(request, request.encoded)

    def _may_begin(self, question: Question) -> bool:
        return self._encoding.may_begin(question) and self._reads(question.client)

    def _take(self, work: Work, result: Result) -> None:
        """Handle an encoded text."""
        if isinstance(result, Message):
            self._send(work.client, result)
        elif isinstance(work, Question) or work.cancelled:
            return
        elif isinstance(result, BaseException):
            self._fail(work, result)
        else:
            work.encoded = result
            self._begin(work, result)

    def _next(self) -> Request | None:
        """The next request in turn, if the engine has a place.

        The last places are for clients without a running request, so that a client with many long ones cannot delay
        others.
        """
        n_free = self._facts.max_sequences - self._n_places - len(self._encoding.requests)
        if n_free < 1:
            return None
        for_newcomers = n_free <= self._facts.max_sequences // _NEWCOMERS
        served = {request.client for request in self.running}

        def may(request: Request) -> bool:
            is_next = request.encoded is not None or self._encoding.may_begin(request)
            return is_next and not (for_newcomers and request.client in served)

        return self._waiting.take(may)

    def _begin(self, request: Request, encoded: Encoded) -> None:
        """Submit the next answer of a request; those after it wait for their client's next turns."""
        number = next(self._numbers)
        answer = self._running[number] = request.begin(self._texts, number)
        self._tell_engine(answer.submit(encoded.tokens, self._texts))
        if request.n_begun < request.asked.n:
            self._waiting.put_back(request)
        if answer.index == 0 and not request.embeds:
            n_tokens, silence_s = len(encoded.tokens), self._facts.silence_s
            self._tell(request, Started(request.id, n_tokens, request.seed, silence_s, encoded.end))

    def remind(self) -> None:
        """Tell every waiting client once a second why it waits; fail requests that have waited too long for nodes."""
        now = time.monotonic()
        if now < self._next_poll:
            return
        self._next_poll = now + _POLL_S
        nodes = self._nodes
        held_up = [] if nodes.ready else [(0, request) for request in self.running]
        n_ahead = self._n_places + len(self._encoding.requests)
        waiting = [(ahead, request) for ahead, request in enumerate(self._waiting, n_ahead) if not request.begun]
        for ahead, request in [*held_up, *waiting]:
            if not nodes.ready and now > max(self._ready_at, request.came) + nodes.patience_s:
                self._forget(request)
                reason = f"the cluster did not become ready: {nodes.note}"
                self._send(request.client, Error(request.id, NotReady.__name__, reason))
            elif now >= request.reminded + _REMIND_S and (ahead or nodes.note):
                request.reminded = now
                self._tell(request, Queued(request.id, ahead, nodes.note[:2000], self._facts.silence_s))

    def _fail(self, request: Request, error: BaseException) -> None:
        """End a request with an error before the engine has it."""
        if not isinstance(error, DllamaError):
            logger.error("request failed id=%d", request.id, exc_info=error)
        self._send(request.client, Error(request.id, *kind_and_text(error)))

    def _tell(self, request: Request, message: Message) -> None:
        """Send to the client of `request`. If the client has gone, its requests are dropped."""
        if not self._send(request.client, message):
            logger.info("client left id=%d", request.id)


def _queue_full(request_id: int, n_waiting: int, what: str) -> Error:
    return Error(request_id, QueueFull.__name__, f"{n_waiting} {what} wait already; try again later")
