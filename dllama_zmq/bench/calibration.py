"""Measure the rates of `speed.py`: nodes of this computer run a small model of random weights together;
and messages travel over loopback with and without CURVE."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import closing
from statistics import median

import msgspec
import zmq
from msgspec.structs import replace

from dllama_zmq.bench.cases import BenchSettings, Case, Nodes
from dllama_zmq.bench.child import measure_in_child
from dllama_zmq.bench.machine import Products, measure_products
from dllama_zmq.bench.random_file import kept_shape, shape_title
from dllama_zmq.bench.rows import Row
from dllama_zmq.bench.speed import Encryption, Rates, rates_of
from dllama_zmq.bus.native.exchange import EXCHANGE_KERNELS
from dllama_zmq.errors import PlanError
from dllama_zmq.formats import data_bytes
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.kernels import KernelChoice, prepare_kernels, reported_to
from dllama_zmq.reporting import Reporter, plural
from dllama_zmq.shapes import shape
from dllama_zmq.sharding import PREFILL_TOKENS, kernel_needs, possible_node_counts
from dllama_zmq.spec import FloatType, ModelSpec, Sync
from dllama_zmq.trust.keys import KeyPair

_SHAPE, _VOCAB = "tinyllama", 2048
_MIN_BYTES = 150_000_000
"""Bytes of the model's layers: a cache of 32 MB must not keep them from token to token."""
_STORED_AS = {
    FloatType.BF16: FloatType.F16,
    FloatType.Q6_K: FloatType.Q80,
    **dict.fromkeys((FloatType.Q41, FloatType.Q50, FloatType.Q51, FloatType.Q4_K, FloatType.Q5_K), FloatType.Q40),
}
"""The type of the small model for a model's type that a `.m` file cannot have."""
_CASES = (Case("pp", PREFILL_TOKENS), Case("tg", 32))
_REPETITIONS = 4

_SMALL_BYTES, _LARGE_BYTES = 64, 1 << 20
_ROUND_TRIPS = 15
_WAIT_MS = 10_000


def measure_rates(
    weight_type: FloatType,
    sync: Sync,
    kernels: KernelChoice,
    all_nodes: Sequence[Nodes],
    reporter: Reporter,
    interrupts: Interrupts,
) -> dict[Nodes, Rates]:
    """The rates of each of `all_nodes`, whose nodes all run on this computer. Takes some seconds for each.

    weight_type: of most weights. sync: the type on the bus. Raises PlanError for more nodes than the small model can be
    split over; ClusterError if a node fails. No process is left behind.
    """
    with interrupts.raised():
        spec, title = small_model(weight_type)
        counts = possible_node_counts(spec)
        for nodes in all_nodes:
            if nodes.n_nodes not in counts:
                raise PlanError(
                    f"the speed of {plural(nodes.n_nodes, 'node')} on one computer cannot be predicted, only that of "
                    f"at most {counts[-1]}: give --no-speed, or put nodes on computers of their own"
                )
        path = kept_shape(spec, title, reporter)
        reporter.activity("getting the kernels ready")
        kinds = {spec.weight_type, weight_type}
        most_nodes = max(nodes.n_nodes for nodes in all_nodes)
        for kind in kinds:
            needs = kernel_needs(replace(spec, weight_type=kind), most_nodes, "f16", EXCHANGE_KERNELS)
            prepare_kernels(kernels, needs, reported_to(reporter), reporter.line)
        products: dict[tuple[int, FloatType], Products] = {}
        for threads in sorted({nodes.all_threads for nodes in all_nodes}):
            reporter.activity(f"measuring memory and products with {plural(threads, 'thread')}")
            for kind in kinds:
                products[threads, kind] = measure_products(threads, kernels, kind)
    settings = BenchSettings(str(path), _CASES, [], _REPETITIONS, sync, kernels, "")
    rates = {}
    for nodes in all_nodes:
        with closing(measure_in_child(replace(settings, nodes=[nodes]), reporter, interrupts)) as rows:
            prompt, decoding = rows
        # The bandwidth may change within a minute, so that of the product is taken at the time of the rows.
        small, own = (products[nodes.all_threads, kind] for kind in (spec.weight_type, weight_type))
        read = small.efficiency * 1e9 * decoding["read_gb_per_s"]
        found = rates_of(
            spec,
            (decoding["weight_bytes_per_token"], _speed(decoding)),
            (prompt["macs_per_token"], _speed(prompt)),
            read,
        )
        own_read = found.read_bytes_per_s * own.efficiency / small.efficiency
        rates[nodes] = msgspec.structs.replace(found, read_bytes_per_s=own_read)
    return rates


def small_model(weight_type: FloatType) -> tuple[ModelSpec, str]:
    """A model whose layers are as wide as TinyLlama's and together larger than caches; and its name."""
    stored = _STORED_AS.get(weight_type, weight_type)
    one, two = (data_bytes(shape(_SHAPE, stored, {"layers": n, "vocab": _VOCAB})) for n in (1, 2))
    n_layers = -(-_MIN_BYTES // (two - one))
    overrides = {"layers": n_layers, "vocab": _VOCAB}
    return shape(_SHAPE, stored, overrides), shape_title(_SHAPE, stored, overrides)


def _speed(row: Row) -> float:
    samples: list[float] = row["samples_tokens_per_s"]
    return median(samples)


def measure_encryption() -> Encryption:
    """Compares round trips on loopback with and without CURVE; 0.2 s. Raises TrustError if libzmq has no CURVE."""
    keys = KeyPair.new()
    plain, curve = _round_trips(None), _round_trips(keys)
    small_s, large_s = (max(0.0, curve[size] - plain[size]) / 2 for size in (_SMALL_BYTES, _LARGE_BYTES))
    return Encryption(small_s, max(0.0, large_s - small_s) / _LARGE_BYTES)


def _round_trips(keys: KeyPair | None) -> dict[int, float]:
    """Seconds of the median round trip of messages of each size, over TCP."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.PAIR) as server, context.socket(zmq.PAIR) as peer:
        for socket in (server, peer):
            socket.linger, socket.rcvtimeo, socket.sndtimeo = 0, _WAIT_MS, _WAIT_MS
        if keys is not None:
            server.curve_server, server.curve_secretkey = True, keys.secret.encode()
            own = KeyPair.new()
            peer.curve_serverkey = keys.public.encode()
            peer.curve_publickey, peer.curve_secretkey = own.public.encode(), own.secret.encode()
        port = server.bind_to_random_port("tcp://127.0.0.1")
        peer.connect(f"tcp://127.0.0.1:{port}")
        echo = threading.Thread(target=_echo, args=(server,), daemon=True)
        echo.start()
        found = {}
        for n_bytes in (_SMALL_BYTES, _LARGE_BYTES):
            data = bytes(n_bytes)
            took_s = []
            for _ in range(_ROUND_TRIPS):
                start = time.perf_counter()
                peer.send(data)
                peer.recv()
                took_s.append(time.perf_counter() - start)
            found[n_bytes] = median(took_s)
        peer.send(b"")
        echo.join()
    return found


def _echo(server: zmq.Socket[bytes]) -> None:
    while data := server.recv():
        server.send(data)
