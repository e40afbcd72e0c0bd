"""The root's end of the cluster: one model over all nodes, evaluated step by step.

Knows nothing of text, requests and clients. One thread; every method returns soon or ends at a deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import zmq
from msgspec import Struct, field
from msgspec.structs import replace

from dllama_zmq.bus.addresses import ip_of
from dllama_zmq.bus.client_messages import StepStats
from dllama_zmq.bus.exchange import Exchange, Solo
from dllama_zmq.bus.links import Endpoints, RootLink
from dllama_zmq.bus.messages import Bye
from dllama_zmq.bus.messages import Plan as PlanMessage
from dllama_zmq.bus.meter import Meter, Phase
from dllama_zmq.bus.native.exchange import EXCHANGE_KERNELS
from dllama_zmq.bus.peers import PeerGone
from dllama_zmq.bus.roster import ROOT, Roster, State
from dllama_zmq.bus.sockets import SPIN_S
from dllama_zmq.bus.star import StarRoot
from dllama_zmq.bus.steps import Part
from dllama_zmq.errors import PlanError, ProtocolError, RemoteError, RequestError
from dllama_zmq.formats import ModelFile
from dllama_zmq.host import free_memory_bytes
from dllama_zmq.kept_files import KeptFiles
from dllama_zmq.kernels import Batch, KeptTiles, KernelChoice, KVType, choose_kernels, prepare_kernels
from dllama_zmq.models import Model
from dllama_zmq.node_config import Limits
from dllama_zmq.quants import F32
from dllama_zmq.root.asks import decode_answers, encode_asks, merged
from dllama_zmq.root.ledger import Ledger
from dllama_zmq.root.membership import Membership, Progress
from dllama_zmq.root.recent import RECENT_S
from dllama_zmq.root.slices import Slices
from dllama_zmq.root.stopwatch import Stopwatch
from dllama_zmq.root.weight_stream import WeightStream
from dllama_zmq.sharding import (
    Ask,
    KVBudget,
    NodeCandidates,
    Plan,
    RowCandidates,
    best_candidates,
    build_shard,
    check_ids,
    check_sync,
    context_length,
    counted,
    kernel_needs,
    node_memory,
)
from dllama_zmq.spec import Sync


class RootSettings(Struct, frozen=True):
    """How the root runs a model over itself and the workers `names`, 2^n nodes together.

    reserved: names that a worker gets only if it asks for them. addresses: by name, the known IP
    addresses of the other workers' hosts.
    kv_bytes: most memory of each node for the KV cache; None: as much as max_sequences need, or less if less is free.
    check_memory: a worker whose computer has too little memory free gets no place.
    profile: `Root.kernels` counts seconds and calls by name.
    recent_s: figures of recent steps cover at least this many seconds.
    hashes: folder in which the weights' hashes are kept for the next start; None: nowhere. tiles: the same for the
    root's repacked weights, in at most cache_bytes (None: half of what the disk would have free without them).
    """

    names: Sequence[str] = ()
    reserved: Sequence[str] = ()
    addresses: Mapping[str, frozenset[str]] = field(default_factory=dict)
    sync: Sync = "f32"
    kernels: KernelChoice = "auto"
    kv_type: KVType = "f16"
    threads: int = 1
    oversubscribed: bool = False
    max_seq_len: int | None = None
    max_sequences: int = 16
    kv_bytes: int | None = None
    check_memory: bool = True
    limits: Limits = field(default_factory=Limits)
    spin_s: float = SPIN_S
    profile: bool = False
    recent_s: float = RECENT_S
    hashes: Path | None = None
    tiles: Path | None = None
    cache_bytes: int | None = None


class Root:
    """A model over its nodes. Call `wait_ready` before `evaluate`, and again after every error of `evaluate`."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        model: ModelFile,
        settings: RootSettings,
        endpoints: Endpoints | None = None,
        on_read: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """on_read(done, total) is called as the root's own weights become ready, in bytes.

        Raises PlanError if the model cannot be split over these nodes, BusError if an endpoint cannot be bound.
        """
        self.spec = model.spec
        self.settings = settings
        self.seq_len = context_length(self.spec, settings.max_seq_len)
        self.plan = Plan.make(self.spec, 1 + len(settings.names), str(model.path))
        here = [0, *(node for node, name in enumerate(settings.names, start=1) if name in settings.reserved)]
        cache = (settings.kv_type, self.seq_len, settings.max_sequences, settings.kv_bytes)
        self.budget = KVBudget(self.plan, *cache, trusted=not settings.check_memory)
        self._own_pages = self.budget.pages(here, free_memory_bytes())
        self.memory = partial(node_memory, self.plan, n_positions=self.seq_len, kv_type=settings.kv_type)
        check_sync(self.spec, settings.sync)
        needs = kernel_needs(self.spec, 1 + len(settings.names), settings.kv_type, EXCHANGE_KERNELS)
        prepare_kernels(settings.kernels, needs)
        files = None if settings.tiles is None else KeptFiles(settings.tiles, settings.cache_bytes)
        self.tiles = KeptTiles(files)
        kernels = choose_kernels(settings.kernels, settings.threads, settings.oversubscribed, self.tiles)
        if settings.profile:
            from dllama_zmq.kernels.profiled import Profiled

            kernels = Profiled(kernels)
        self.kernels = kernels
        self.kernels_name = kernels.name
        first_epoch = time.time_ns() // 1_000_000  # none of a root that ran before
        self.roster = Roster(settings.names, first_epoch, settings.reserved, settings.addresses)
        self.link: RootLink | None = None
        self._exchange: Exchange = Solo()
        self.membership: Membership | None = None
        if settings.names:
            if endpoints is None:
                raise PlanError(f"{len(settings.names)} workers and no address for them to join at")
            spin_s = 0.0 if settings.oversubscribed else settings.spin_s
            self.link = RootLink(context, endpoints, spin_s, self.roster)
        self.model = model
        self._slices = Slices(model, self.plan, settings.hashes)
        try:
            if self.link is not None and endpoints is not None:
                self._exchange = StarRoot(self.link, self.roster, kernels, settings.sync, settings.limits.step_s)
                self.membership = Membership(
                    self.link,
                    endpoints,
                    self.roster,
                    self._plan_message(),
                    settings.limits,
                    lambda node: WeightStream(model, self.plan, node, self._slices),
                    self.budget,
                    (lambda node: self.memory(node).model) if settings.check_memory else None,
                )
            self._shard = self._build_shard(on_read)
        except BaseException:  # Ctrl-C too: the caller has no root to close
            self._slices.close()
            if self.link is not None:
                self.link.close()
            raise
        model.forget_pages()
        self._meter = Meter() if self.link is None else self.link.meter
        self.ledger = Ledger(self.plan, settings.sync, settings.names, settings.recent_s, self._meter)
        self._stopwatch = Stopwatch(self._exchange, self._meter, self._unnamed)
        self._asks: Mapping[int, Ask] = {}  # of the last step, by row; _logits are those of these rows
        self._x: F32 = np.empty((0, 0), np.float32)  # the hidden states of the last step: (T, D)
        self._logits: F32 = np.empty((0, 0), np.float32)

    def _build_shard(self, on_read: Callable[[int, int], None]) -> Model:
        model, plan, settings = self.model, self.plan, self.settings
        regions = {t.name: plan.region(t, 0) for t in plan.shard_tensors()}
        take = counted(lambda name: model.read_unchecked(name, *regions[name]), plan.weight_bytes(0), on_read)
        sync = settings.sync if settings.names else None
        return build_shard(plan, 0, take, self.kernels, settings.kv_type, self._own_pages, sync)

    @property
    def n_pages(self) -> int:
        """Pages of the KV cache that every node has room for, as far as they have joined."""
        return self._own_pages if self.membership is None else self.membership.room.n_pages

    @property
    def ready(self) -> bool:
        """Every node can take part in a step."""
        return self.roster.ready

    def wait_ready(self, until: float, on_progress: Callable[[], None] = lambda: None) -> None:
        """Bring every worker to readiness. Raises WorkerLost, naming who is missing, when `until` passes."""
        if self.membership is not None:
            self.membership.wait_ready(until, on_progress)

    def serve_bus(self, until: float) -> None:
        """Answer the bus until time.monotonic() passes `until`: joins, weights, beacons."""
        if self.membership is None:
            return
        for identity, message in self._exchange.out_of_turn().items():
            self.membership.handle(identity, message)
        self.membership.serve_bus(until)

    def all_reachable(self) -> bool:
        """Whether every node is ready, after a ping to each."""
        if self.membership is not None and self.ready:
            self.membership.probe_peers()
        return self.ready

    def any_worker_absent(self) -> bool:
        """Whether a worker has not joined."""
        return any(member.state is State.ABSENT for member in self.roster.members)

    def progress(self) -> list[Progress]:
        """The progress of every worker, in node order."""
        return self.membership.progress() if self.membership is not None else []

    def missing_sentence(self) -> str:
        """The workers that are not ready, and why."""
        return self.membership.missing_sentence() if self.membership is not None else ""

    def cache_holders(self) -> tuple[bytes, ...]:
        """The identities of the workers whose KV caches hold the steps so far. A change means that a cache is empty."""
        return tuple(member.identity for member in self.roster.members)

    def set_phase(self, phase: Phase) -> None:
        """The phase that traffic and seconds are counted under from here on."""
        self._meter.phase = phase

    def evaluate(
        self, batch: Batch, tokens: Sequence[int], asks: Mapping[int, Ask]
    ) -> tuple[list[RowCandidates], StepStats]:
        """Run one step: `tokens` are those of the rows of `batch`. Returns an answer for each row in `asks`
        (ascending).

        Raises WorkerLost or RemoteError; then call `wait_ready`, and evaluate all sequences again.
        """
        self._check(batch, tokens)
        self.tiles.busy()
        self._stopwatch.start()
        parts = self._run(batch, tokens, asks)
        rows = merged(self._answers(parts, asks, self._logits), asks, self.plan)
        figures, nodes = self._stopwatch.stop(parts)
        self.ledger.add_step(batch, asks, figures.wall_s, nodes)
        self.tiles.idle()
        return rows, figures

    def more(self, ks: Mapping[int, int]) -> tuple[list[RowCandidates], StepStats]:
        """Answer some rows of the last step again with another k, by row; 0: every logit."""
        self._stopwatch.start()
        asks = {row: replace(self._asks[row], k=k) for row, k in ks.items()}
        with self._void_if_broken_off():
            parts = self._exchange.ask_more(list(ks.items()))
        self.ledger.add_more(len(self._x), asks)
        at = list(self._asks)
        rows = merged(self._answers(parts, asks, self._logits[[at.index(row) for row in ks]]), asks, self.plan)
        return rows, self._stopwatch.stop(())[0]  # the workers' seconds would count the whole step again

    def hidden(self, rows: slice) -> F32:
        """The hidden states (R, D) of some rows of the last step, after the final norm."""
        return self._shard.hidden(self._x[rows])

    def logits(self, batch: Batch, tokens: Sequence[int]) -> F32:
        """The logits (T, V) of every row of one step."""
        self._check(batch, tokens)
        asks = {row: Ask(k=0) for row in range(len(tokens))}
        rows = zip(*self._answers(self._run(batch, tokens, asks), asks, self._logits), strict=True)
        return np.stack([np.concatenate([node.logits for node in row]) for row in rows])

    def close(self, reason: str, stay: bool = False) -> None:
        """Tell the workers to leave (or, with `stay`, to wait for another root) and close the sockets."""
        self._slices.close()
        self.tiles.close()
        if self.link is None:
            return
        for member in self.roster.members:
            if member.state is not State.ABSENT:
                try:
                    self.link.send(member.identity, member.name, Bye(stay, reason[:2000]))
                except PeerGone:
                    member.state = State.ABSENT
        self.link.close()

    def _run(self, batch: Batch, tokens: Sequence[int], asks: Mapping[int, Ask]) -> list[Part]:
        x = np.concatenate([self.model.read("embedding", slice(t, t + 1)).dequantize() for t in tokens])
        with self._void_if_broken_off():
            x = self._exchange.begin(batch, x, *encode_asks(asks))
            x = self._shard.forward(x, batch, self._exchange)
            self._asks, self._x = asks, x
            if asks:
                self._logits = self._shard.logits(x[list(asks)])
            return self._exchange.candidates()

    @contextmanager
    def _void_if_broken_off(self) -> Iterator[None]:
        """Raise the epoch and count the bytes as void if the step does not reach its end, Ctrl-C included."""
        before = self._meter.snapshot()
        try:
            yield
        except BaseException:
            self.roster.new_epoch()
            self._meter.move_since(before, "void")
            raise

    def _answers(self, parts: Sequence[Part], asks: Mapping[int, Ask], logits: F32) -> list[list[NodeCandidates]]:
        """Every node's answers to `asks`, the root's own first, made from its `logits` (R, V / N) of these rows."""
        if not asks:
            return []
        each = list(asks.values())
        answers = [best_candidates(logits, each, first_id=0)]
        for part in parts:
            try:
                vocab = self.plan.slices[part.node].vocab
                answers.append(decode_answers(each, part.message.arrays, part.frames, vocab))
            except ProtocolError as error:
                self.roster.new_epoch()
                raise RemoteError(part.name, f"its candidates are {error}") from None
        return answers

    def _unnamed(self) -> list[str]:
        """This computer's nodes if they have more threads than it has cores: which one comes last is then chance."""
        if not self.settings.oversubscribed:
            return []
        return [ROOT, *(member.name for member in self.roster.members if not ip_of(member.address))]

    def _check(self, batch: Batch, tokens: Sequence[int]) -> None:
        if batch.n_rows != len(tokens):
            raise RequestError(f"{len(tokens)} tokens for {batch.n_rows} rows")
        check_ids(tokens, self.spec.vocab_size)
        for span in batch.spans:
            end = span.start + span.count
            if end > self.seq_len:
                raise RequestError(
                    f"positions {span.start} to {end - 1}; this cluster has room for {self.seq_len} "
                    "(max_seq_len, in cluster.yaml or of load)"
                )
        if batch.max_page >= self.n_pages:
            raise RequestError(f"pages {batch.page_ids}; this cluster has {self.n_pages} pages")

    def _plan_message(self) -> PlanMessage:
        return PlanMessage(
            spec=msgspec.to_builtins(self.spec),
            nodes=self.plan.n_nodes,
            sync=self.settings.sync,
            kernels=self.settings.kernels,
            kv=self.settings.kv_type,
            pages=self._own_pages,
            step_s=self.settings.limits.step_s,
        )
