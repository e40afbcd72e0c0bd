"""The main loop of the root's process: a step, then messages of the front and the bus. Knows token ids, no text."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress

import zmq

from dllama_zmq.bus import sockets
from dllama_zmq.bus.client_messages import Error, StatusRequest, Stop
from dllama_zmq.bus.engine_messages import (
    ENCODER,
    TO_ENGINE,
    Embedded,
    Ended,
    Facts,
    GoingDown,
    Listening,
    PromptProgress,
    Readiness,
    Sampled,
    Stepped,
    Submit,
    SubmitEmbed,
    ToFront,
    Withdraw,
    Withdrawn,
)
from dllama_zmq.bus.text_messages import Links, LinksRequest
from dllama_zmq.errors import BusError, ClusterError, DllamaError, WorkerLost, kind_and_text
from dllama_zmq.root.engine import Engine, Outcome
from dllama_zmq.root.fitting import kv_room
from dllama_zmq.root.link_speeds import LinkSpeeds
from dllama_zmq.root.report import ClusterFacts, cluster_status, model_message
from dllama_zmq.root.scheduler import Prefilled, Token
from dllama_zmq.root.sequence import Sequence

logger = logging.getLogger(__name__)

_WAIT_S = 0.1
_POLL_S = 0.05  # between two looks at the bus and the processes: a look takes as long as a step of a small model
_FRONT_S = 10.0  # until the front listens to clients
_REMIND_S = 1.0
_STEP_STAGES = 3  # limits.step_s is per stage; a step with more such stages does not count as working


class Serving:
    """Evaluates the requests of the front until it sends Stop or `stop` is called."""

    def __init__(self, engine: Engine, front: zmq.Socket[bytes], facts: ClusterFacts) -> None:
        """front: the PAIR socket to the front."""
        self._root, self._engine, self._front = engine.root, engine, front
        self._facts = facts
        self._links = LinkSpeeds(engine.root)
        self._sequences: dict[int, Sequence] = {}
        self._ids: dict[Sequence, int] = {}
        self._was_ready: bool | None = None  # no readiness sent yet
        self._has_been_ready = False
        self._remind_at = 0.0
        self._stopped = False

    def stop(self) -> None:
        """Make `run` return after the step it is in; safe to call from a signal handler."""
        self._stopped = True

    def open(self, endpoints: list[str]) -> None:
        """Let the front listen to clients at these endpoints. Raises BusError if it cannot."""
        root = self._root
        self._front.poll(round(_FRONT_S * 1000), zmq.POLLOUT)
        self._tell(
            Facts(
                endpoints=endpoints,
                max_sequences=self._engine.max_sequences,
                silence_s=_STEP_STAGES * root.settings.limits.step_s,
                model=model_message(self._facts, root),
            )
        )
        if not self._front.poll(round(_FRONT_S * 1000)):
            raise ClusterError(f"the process that answers clients has said nothing for {_FRONT_S:.0f} s")
        message = TO_ENGINE.decode(self._front.recv())
        if isinstance(message, Listening) and message.error:
            raise BusError(message.error)
        self._report()

    def run(self, every_turn: Callable[[], None] = lambda: None) -> None:
        """Serve until stopped. every_turn: is called between steps, now and then."""
        poller = zmq.Poller()
        poller.register(self._front, zmq.POLLIN)
        if self._root.link is not None:
            poller.register(self._root.link.replies, zmq.POLLIN)
        why, next_poll = "the cluster is going down", 0.0
        try:
            while not self._stopped:
                self._hear_front()
                self._measure_a_link()
                steps = self._engine.busy and self._root.ready
                if not steps or time.monotonic() >= next_poll:
                    self._root.serve_bus(time.monotonic())
                    every_turn()  # before a client hears of a change: other commands read it in the root's file
                    self._tell_membership()
                    steps = self._engine.busy and self._root.all_reachable()
                    next_poll = time.monotonic() + _POLL_S
                if steps:
                    self._step()
                elif not self._links.unfinished:
                    poller.poll(round(_WAIT_S * 1000))
        except DllamaError as error:
            why = f"the cluster went down: {error}"
            raise
        finally:
            self._tell(GoingDown(why))

    def _step(self) -> None:
        try:
            outcome = self._engine.step()
        except WorkerLost as lost:  # requests continue when the cluster is ready again
            n = len(self._sequences)
            logger.warning("%s; %s for its return", lost, "1 request waits" if n == 1 else f"{n} requests wait")
            return
        for sequence, error in outcome.failed:
            self._fail(sequence, error)
        self._tell_step(outcome)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        """Report the error of a sequence to its client. An unexpected error must neither end the cluster nor hang the
        client."""
        request = self._ids[sequence]
        if isinstance(error, DllamaError):
            logger.warning("request failed id=%d: %s", request, error)
        else:
            logger.error("request failed id=%d", request, exc_info=error)
        self._tell(Error(request, *kind_and_text(error)))
        self._forget(sequence)

    def _hear_front(self) -> None:
        while sockets.readable(self._front):
            message = TO_ENGINE.decode(self._front.recv())
            if isinstance(message, Submit | SubmitEmbed):
                self._submit(message)
            elif isinstance(message, Withdraw):
                if (sequence := self._sequences.get(message.id)) is not None:
                    self._engine.cancel(sequence)
                    self._forget(sequence)
                self._tell(Withdrawn(message.id))
            elif isinstance(message, StatusRequest):
                self._report()
            elif isinstance(message, LinksRequest):
                self._links.begin()
            elif isinstance(message, Stop):
                self._stopped = True

    def _tell_membership(self) -> None:
        """Send the front which workers are missing: on every change, and once a second while any is."""
        root, ready, now = self._root, self._root.ready, time.monotonic()
        if ready == self._was_ready and (ready or now < self._remind_at):
            return
        if ready:
            self._engine.renew()
            root.tiles.idle()
            room = kv_room(root.n_pages, root.seq_len, self._engine.max_sequences, root.budget.node_bytes(root.n_pages))
            logger.info("%s", room)
        self._was_ready, self._remind_at = ready, now + _REMIND_S
        self._has_been_ready = self._has_been_ready or ready
        limits = root.settings.limits
        patience_s = limits.rejoin_s if self._has_been_ready else limits.join_s
        patience_s += 0 if root.any_worker_absent() else limits.load_s
        self._tell(Readiness(ready, "" if ready else root.missing_sentence(), patience_s))

    def _report(self) -> None:
        self._tell(cluster_status(self._facts, self._engine))

    def _measure_a_link(self) -> None:
        """Measure the next link if the front has asked for link speeds; answer after the last one."""
        if self._links.unfinished and (found := self._links.next()) is not None:
            self._tell(Links(0, time.time_ns() // 1000, found))

    def _tell(self, message: ToFront) -> None:
        with suppress(zmq.Again):  # the front has ended; its owner reports that
            self._front.send(ENCODER.encode(message), zmq.NOBLOCK)

    def _submit(self, message: Submit | SubmitEmbed) -> None:
        try:
            if isinstance(message, SubmitEmbed):
                sequence = self._engine.embed(message.tokens, message.client)
            else:
                sequence = self._engine.add(
                    message.tokens,
                    message.sampling,
                    message.max_tokens,
                    message.stop_ids,
                    message.n_ids,
                    message.grammar,
                    message.client,
                )
        except DllamaError as error:
            self._tell(Error(message.id, *kind_and_text(error)))
            return
        self._sequences[message.id], self._ids[sequence] = sequence, message.id

    def _forget(self, sequence: Sequence) -> None:
        del self._sequences[self._ids.pop(sequence)]

    def _tell_step(self, outcome: Outcome) -> None:
        """Send the front the results of a step, in one message."""
        prompts, sampled, ended, embedded = [], [], [], []
        for event in outcome.events:
            request = self._ids[event.sequence]
            if isinstance(event, Prefilled):
                prompts.append(
                    PromptProgress(request, event.done, event.total, event.count, event.sequence.n_cached or 0)
                )
            elif isinstance(event, Token):
                sampled.append(Sampled(request, event.token, outcome.choices[event.sequence].logprobs()))
            else:
                if event.sequence.pooling is None:
                    ended.append(Ended(request, event.reason))
                else:
                    embedded.append(Embedded(request, event.sequence.pooling.vector().tolist()))
                self._forget(event.sequence)
        if outcome.events:
            self._tell(Stepped(outcome.figures, prompts, sampled, ended))
        for message in embedded:
            self._tell(message)
