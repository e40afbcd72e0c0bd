"""The worker's life: join, load, answer steps; when the root goes away, begin again.

joining ── Welcome, Plan ──► loading ── all weights ──► serving ──► Bye: leave
   ▲                            │                          │
   └──── the root is lost ──────┴──────────────────────────┘
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import msgspec
import zmq
from msgspec import Struct

from dllama_zmq.bus import sockets
from dllama_zmq.bus.addresses import why_no_answer, with_host_of
from dllama_zmq.bus.links import WorkerLink, host_id
from dllama_zmq.bus.messages import (
    MAX_PROBE_BYTES,
    ArrayHead,
    Beacon,
    BeaconAck,
    Bye,
    Fault,
    Frame,
    Join,
    Loaded,
    Message,
    MoreCandidates,
    Ping,
    Probe,
    Probed,
    Refuse,
    Step,
    Welcome,
)
from dllama_zmq.bus.messages import Plan as PlanMessage
from dllama_zmq.bus.native.exchange import EXCHANGE_KERNELS
from dllama_zmq.bus.security import Peer
from dllama_zmq.bus.star_worker import StarWorker
from dllama_zmq.bus.worker_steps import StepVoid
from dllama_zmq.errors import BusError, ClusterError, DllamaError, FormatError, PlanError, ProtocolError, RootLost
from dllama_zmq.host import free_memory_bytes, give_memory_back, host_name, refused_by_system
from dllama_zmq.kept_files import KeptFiles
from dllama_zmq.kernels import KeptTiles, Kernels, choose_kernels, prepare_kernels
from dllama_zmq.models import Model
from dllama_zmq.sharding import Plan, build_shard, counted, kernel_needs
from dllama_zmq.spec import ModelSpec
from dllama_zmq.worker.loading import Loading, check_room
from dllama_zmq.worker.own_model import OwnModel
from dllama_zmq.worker.preparation import Preparation
from dllama_zmq.worker.shard import Shard

logger = logging.getLogger(__name__)

_JOIN_EVERY_S = 1.0
_CONNECT_S = 0.05
_REFUSED_S = 2.0  # until it tries again; its key may be admitted meanwhile
_PORT = "its port for replies (5570 unless root.ports says another)"
_SAY_FIRST_S, _SAY_EVERY_S = 2.0, 10.0
_NEW_LINK_S = 5.0  # without an answer: the connection may be one that the root ignores
_IDLE_SILENCE_S = 20.0  # an idle root sends a ping every 0.5 s
_PATIENCE_S = 10.0  # with a place that is taken: its holder's death is known after 2 s at most


class WorkerSettings(Struct, frozen=True):
    """The settings that a worker is started with. An empty `name`: the root gives it one.

    oversubscribed: this host's nodes have more threads together than it has cores. security: the keys for a root on
    another computer; None: its bus is open.
    model: a copy of the root's model here. cache: the folder of slices and tiles of earlier starts, of at most
    cache_bytes (None: half of what the disk would have free without them).
    """

    root: str
    name: str = ""
    threads: int = 1
    oversubscribed: bool = False
    spin_s: float = sockets.SPIN_S
    version: str = ""
    watch: bool = True
    security: Peer | None = None
    model: Path | None = None
    cache: Path | None = None
    cache_bytes: int | None = None


class _Leave(Exception):
    """The root has asked this worker to end."""


class Worker:
    """One worker. `run` returns when the root asks for it; `stop`, from another thread, makes it return soon."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        settings: WorkerSettings,
        on_state: Callable[[str], None] = lambda state: None,
    ) -> None:
        self._context = context
        self._settings = settings
        self._on_state = on_state
        self._stopped = False
        self._has_connected = False
        self._has_loaded = False
        self._next_word = 0.0
        self._patience: float | None = None
        self._refusal = ""  # why the root did not let it connect, as far as that is known

    def stop(self) -> None:
        """Return from `run` within two seconds, or when the step it is in ends or is void."""
        self._stopped = True

    def run(self) -> None:
        """Serve one root after another until one asks this worker to leave.

        Raises ClusterError if a root has no place for this worker, or if the given address is none.
        """
        address = self._settings.root
        while not self._stopped:
            try:
                address = self._serve_at(address)
            except _Leave as reason:
                logger.info("leaving: %s", reason)
                return
            except zmq.ContextTerminated:
                return
            except BusError as error:
                logger.warning("joining again: %s", error)
                if not isinstance(error, RootLost):
                    time.sleep(_JOIN_EVERY_S)  # the next connection would get the same nonsense
                address = self._settings.root

    def _serve_at(self, address: str) -> str:
        """Serve the root at `address`; returns the address to connect to next."""
        try:
            identity = f"{self._settings.name or 'worker'}-{secrets.token_hex(6)}".encode()  # of this connection alone
            settings = self._settings
            spin_s = 0.0 if settings.oversubscribed else settings.spin_s
            link = WorkerLink(self._context, address, identity, spin_s, settings.watch, settings.security)
        except BusError as error:
            if not self._has_connected:  # its host's name was known once and may be again
                raise ClusterError(str(error)) from None
            raise
        self._has_connected = True
        if self._has_loaded:  # else a collector that looks through all objects would be in vain
            give_memory_back()  # that of the last root's model: the next root compares what is free with what it needs
            self._has_loaded = False
        with closing(link):
            return self._serve_root(link, address)

    def _serve_root(self, link: WorkerLink, address: str) -> str:
        """Join, load and serve over one link; returns the address to connect to next if the root names a better one."""
        welcome = self._join(link, address)
        if welcome is None:
            return address
        self._next_word, self._patience, self._refusal = 0.0, None, ""
        replies = with_host_of(welcome.replies, address)
        if replies != address:
            return replies
        link.subscribe(with_host_of(welcome.steps, address))
        self._has_loaded = True
        try:
            shard = self._load(link, welcome, address)
        except (RootLost, _Leave, zmq.ContextTerminated):
            raise
        except ProtocolError as error:
            link.send(Fault(0, 0, str(error)[:2000]))
            raise
        except Exception as error:  # the root gets any error before this worker ends
            text = _in_words(error)
            logger.error("cannot load: %s", text, exc_info=not isinstance(error, DllamaError | OSError | MemoryError))
            link.send(Fault(0, 0, text[:2000]))
            raise ClusterError(f"cannot load its part of the model: {text}") from None
        self._on_state("ready")
        with closing(shard.tiles):
            heard = time.monotonic()
            while not self._stopped:
                arrived = link.receive(time.monotonic() + 1.0)
                if arrived is not None:
                    self._handle(link, shard, *arrived)
                    heard = time.monotonic()
                elif self._settings.watch and time.monotonic() > heard + _IDLE_SILENCE_S:
                    raise RootLost(f"no word from the root for {_IDLE_SILENCE_S:.0f} s")
        return address

    def _join(self, link: WorkerLink, address: str) -> Welcome | None:
        """Ask for a place until there is one; None if another connection should be tried."""
        until = time.monotonic() + _NEW_LINK_S
        while not self._stopped and time.monotonic() < until:
            if time.monotonic() >= self._next_word:
                known = self._refusal or (link.monitor.refusal if link.monitor is not None else "")
                why = f": {known or why_no_answer(address, _PORT)}" if self._next_word or known else ""
                logger.info("asking the root at %s for work%s", address, why)
                self._on_state(f"waiting for a root at {address}")
                self._next_word = time.monotonic() + (_SAY_EVERY_S if self._next_word else _SAY_FIRST_S)
            who = (self._settings.name, host_id(), os.getpid(), self._settings.version, host_name())
            sent = link.send(Join(*who, self._settings.threads, free_memory_bytes()))
            arrived = None
            with suppress(RootLost):  # the root has not started yet
                arrived = link.receive(time.monotonic() + (_JOIN_EVERY_S if sent else _CONNECT_S))
            if link.monitor is not None and link.monitor.refused:
                if link.monitor.refusal != self._refusal:
                    self._refusal = link.monitor.refusal
                    logger.warning("not let in: %s", self._refusal)
                time.sleep(_REFUSED_S)
                return None
            if arrived is not None and isinstance(arrived[0], Welcome):
                return arrived[0]
            if arrived is not None and isinstance(arrived[0], Refuse):
                self._patience = self._patience or time.monotonic() + _PATIENCE_S
                if not arrived[0].retry or time.monotonic() > self._patience:
                    raise ClusterError(f"the root at {address} has no place for this worker: {arrived[0].reason}")
                time.sleep(_JOIN_EVERY_S)
        if self._stopped:
            raise _Leave("stopped")
        self._refusal = ""
        return None

    def _load(self, link: WorkerLink, welcome: Welcome, address: str) -> Shard:
        order = self._await_plan(link)
        try:
            spec = msgspec.convert(order.spec, ModelSpec)
            spec.check()
            plan = Plan.make(spec, order.nodes)
        except (msgspec.ValidationError, FormatError, PlanError) as error:
            raise ProtocolError(f"a plan for a model that cannot be: {str(error)[:300]}") from None
        if not 1 <= welcome.node < order.nodes or order.pages < 1:
            raise ProtocolError(f"a plan for node {welcome.node} of {order.nodes}, {order.pages} pages")
        check_room(plan, welcome.node, order)
        logger.info("joined the root at %s as %s node=%d of=%d", address, welcome.name, welcome.node, order.nodes)
        settings = self._settings
        files = None if settings.cache is None else KeptFiles(settings.cache, settings.cache_bytes)
        own = None if settings.model is None else OwnModel.open(settings.model, plan, welcome.node)
        tiles = KeptTiles(files)
        with closing(Loading(plan, welcome.node, own, files)) as loading:
            model, kernels = self._build(link, loading, plan, welcome.node, order, tiles)
        comm = StarWorker(link, kernels, order.sync, spec.dim, order.nodes, order.step_s)
        n_bytes = plan.weight_bytes(welcome.node)
        link.send(Loaded(n_bytes))
        logger.info("loaded bytes=%d received=%d kernels=%s", n_bytes, loading.received_bytes, kernels.name)
        return Shard(model, plan, welcome.node, comm, order.pages, tiles)

    def _build(
        self, link: WorkerLink, loading: Loading, plan: Plan, node: int, order: PlanMessage, tiles: KeptTiles
    ) -> tuple[Model, Kernels]:
        """Build the node's shard while its slices arrive."""
        silence_s = _IDLE_SILENCE_S if self._settings.watch else math.inf
        preparation = Preparation(link, loading, self._while_loading, silence_s)
        with preparation.heard():
            needs = kernel_needs(plan.spec, order.nodes, order.kv, EXCHANGE_KERNELS)
            prepare_kernels(order.kernels, needs, preparation.compiling)
            settings = self._settings
            kernels = choose_kernels(order.kernels, settings.threads, settings.oversubscribed, tiles)
            take = counted(loading.slice, plan.weight_bytes(node), preparation.repacking)
            try:
                return build_shard(plan, node, take, kernels, order.kv, order.pages, order.sync), kernels
            except (ArithmeticError, ValueError) as error:
                raise ProtocolError(f"a plan for a model that cannot be: {error}") from None

    def _await_plan(self, link: WorkerLink) -> PlanMessage:
        """Raises RootLost, _Leave."""
        until = time.monotonic() + _IDLE_SILENCE_S
        while True:
            arrived = link.receive(time.monotonic() + 1.0)
            if arrived is not None and isinstance(arrived[0], PlanMessage):
                return arrived[0]
            self._while_loading(None if arrived is None else arrived[0])
            if time.monotonic() > until:
                raise RootLost(f"no plan from the root for {_IDLE_SILENCE_S:.0f} s")

    def _while_loading(self, message: Message | None) -> None:
        """Handle a message that arrives while loading and is neither plan nor weights. Raises RootLost, _Leave."""
        if self._stopped:
            raise _Leave("stopped")
        if isinstance(message, Bye):
            self._leave(message)

    def _handle(self, link: WorkerLink, shard: Shard, message: Message, frames: list[Frame]) -> None:
        """Handle one message while serving."""
        if isinstance(message, Beacon):
            if message.epoch != shard.comm.steps.epoch:
                logger.info("ready to answer the root's steps")  # before the root can say so
                link.send(BeaconAck(message.epoch))
                shard.tiles.idle()
            shard.comm.steps.epoch = message.epoch
        elif isinstance(message, Step | MoreCandidates):
            if shard.comm.steps.accepts(message):
                self._guarded(link, shard, message, frames)
        elif isinstance(message, Ping):
            shard.comm.answer_ping(message)
        elif isinstance(message, Probe):
            if message.answer_bytes <= MAX_PROBE_BYTES:
                heads = [ArrayHead("u8", 1, message.answer_bytes)] if message.answer_bytes else []
                probed = Probed(message.number, time.time_ns() // 1000, heads)
                link.send(probed, [bytes(head.nbytes) for head in heads])
        elif isinstance(message, Bye):
            self._leave(message)
        elif isinstance(message, Welcome):
            raise RootLost("the root greets this worker anew")

    def _guarded(self, link: WorkerLink, shard: Shard, message: Step | MoreCandidates, frames: list[Frame]) -> None:
        """Run a step; an exception in it is sent to the root as a Fault."""
        try:
            if isinstance(message, Step):
                shard.step(message, frames)
            else:
                shard.answer_again(message)
        except StepVoid as void:
            self._handle(link, shard, void.message, [])
        except RootLost:
            raise
        except Exception as error:
            logger.exception("step failed step=%d", message.step)
            link.send(Fault(message.epoch, message.step, _in_words(error)[:2000]))

    def _leave(self, bye: Bye) -> None:
        if bye.rejoin:
            raise RootLost(bye.reason)
        raise _Leave(bye.reason)


def _in_words(error: Exception) -> str:
    """The text of an error; that of an unexpected one begins with its type."""
    if isinstance(error, DllamaError):
        return str(error)
    return refused_by_system(error) or f"{type(error).__name__}: {error}"
