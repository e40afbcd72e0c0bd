"""What every back end encodes for the bus, and how it adds up the parts that crossed it."""

from __future__ import annotations

import numpy as np
import pytest
from contract.back_ends import AVAILABLE, SYNCS, activations, same, weights, with_threads

from dllama_zmq.kernels import Batch, CacheSpec, Norm, tree_sum
from dllama_zmq.quants import dequantize, quantize
from dllama_zmq.spec import SYNC_FLOAT, FloatType


@pytest.mark.parametrize("n_parts", [1, 2, 3, 4, 8])
def test_a_tree_sum_adds_neighbours_first(n_parts):
    parts = [np.float32([10.0 ** (i % 5), 3.0**i]) for i in range(n_parts)]
    by_hand = {
        1: lambda p: p[0],
        2: lambda p: p[0] + p[1],
        3: lambda p: (p[0] + p[1]) + p[2],
        4: lambda p: (p[0] + p[1]) + (p[2] + p[3]),
        8: lambda p: ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7])),
    }
    assert np.array_equal(tree_sum(parts), by_hand[n_parts](parts))


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("n_tokens", [1, 3, 40])
@pytest.mark.parametrize("width", [32, 288, 4096])
def test_activations_are_encoded_bit_for_bit_as_the_bus_carries_them(kernels, width, n_tokens, sync):
    x = activations(n_tokens, width)
    x[0, :32] = 0
    x[-1, -32:] = np.arange(-16, 16) / 2  # ties
    for scale in (1.0, 1e-6, 1e-12, 1e-36) if sync != "f32" else (1.0,):
        scaled = x * np.float32(scale)
        encoded = kernels.encode(scaled, sync)
        assert encoded.dtype == np.uint8
        assert same(encoded, quantize(scaled, SYNC_FLOAT[sync])), scale


@pytest.mark.parametrize("sync", ["f32", "f16"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 33), (40, 100)])
def test_widths_that_are_no_whole_blocks_cross_the_bus_as_well(kernels, shape, sync):
    kind = SYNC_FLOAT[sync]
    parts = [quantize(np.random.default_rng(i).standard_normal(shape, dtype=np.float32), kind) for i in range(3)]
    total = tree_sum([dequantize(part, kind) for part in parts])
    assert same(kernels.encode(total, sync), quantize(total, kind))
    assert same(kernels.add_up(parts, sync, encoded=False)[1], total)
    wire, arrived = kernels.add_up(parts, sync, encoded=True)
    assert same(wire, quantize(total, kind))
    assert same(arrived, dequantize(quantize(total, kind), kind))


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("n_parts", range(1, 10))
@pytest.mark.parametrize("n_tokens", [1, 3, 40])
def test_parts_are_added_up_bit_for_bit_as_a_tree_of_what_crossed_the_bus(kernels, n_tokens, n_parts, sync):
    kind = SYNC_FLOAT[sync]
    for width in (32, 288):
        parts = [quantize(activations(n_tokens, width, seed=i), kind) for i in range(n_parts)]
        total = tree_sum([dequantize(part, kind) for part in parts])
        wire, plain = kernels.add_up(parts, sync, encoded=False)
        assert wire is None
        assert plain.dtype == np.float32
        assert same(plain, total)
        wire, arrived = kernels.add_up(parts, sync, encoded=True)
        assert same(wire, quantize(total, kind))
        assert same(arrived, dequantize(quantize(total, kind), kind))


@pytest.mark.parametrize("sync", SYNCS)
def test_parts_may_be_read_only_and_lie_anywhere_and_are_left_as_they_are(kernels, sync):
    parts = [quantize(activations(3, 96, seed=i), SYNC_FLOAT[sync]) for i in range(3)]
    message = b"x" + b"".join(part.tobytes() for part in parts)
    size = parts[0].nbytes
    received = [
        np.frombuffer(message, np.uint8, size, 1 + i * size).reshape(part.shape) for i, part in enumerate(parts)
    ]
    expected = tree_sum([dequantize(part, SYNC_FLOAT[sync]) for part in parts])
    assert same(kernels.add_up(received, sync, encoded=False)[1], expected)
    assert same(kernels.add_up(parts, sync, encoded=True)[0], quantize(expected, SYNC_FLOAT[sync]))
    assert message[1:] == b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sync", [None, "q80"])
@pytest.mark.parametrize("float_type", [FloatType.Q40, FloatType.F16])
@pytest.mark.parametrize("choice", AVAILABLE)
def test_what_comes_then_has_the_bits_of_a_call_of_its_own(choice, float_type, sync, threads):
    with with_threads(choice, threads) as kernels:
        norm = Norm(np.linspace(0.5, 2, 256, dtype=np.float32), 1e-5)
        gate, up = weights(512, 256, float_type, seed=1), weights(512, 256, float_type, seed=2)
        firsts = [kernels.gated(gate, up, "silu", norm), kernels.linear(gate, norm=norm)]
        last = kernels.linear(weights(256, 512, float_type, seed=3), segments=2, wire=sync)
        plain = kernels.linear(weights(256, 512, FloatType.F32, seed=4))
        o = kernels.linear(weights(64, 128, float_type, seed=5), wire=sync)
        caches = [kernels.kv_cache(CacheSpec(1, 1, 2, 32, [0, 0, 1, 1], "f16")) for _ in range(2)]
        start = 0
        for n_tokens in (1, 1, 7, 33, 1):  # as few rows of a KV head as one thread takes, and more; and again
            x = activations(n_tokens, 256, seed=n_tokens)
            for first in firsts:
                for then in (last, plain):
                    assert same(first(x, then), then(first(x)))
            batch, q, kv = Batch.alone(start, n_tokens), activations(n_tokens, 128), activations(n_tokens, 64)
            together = caches[0].attend(0, batch, q.copy(), kv.copy(), kv.copy(), None, o)
            assert same(together, o(caches[1].attend(0, batch, q.copy(), kv.copy(), kv.copy())))
            start += n_tokens


@pytest.mark.parametrize("choice", AVAILABLE)
@pytest.mark.parametrize("sync", SYNCS)
def test_threads_do_not_change_the_bits_of_a_sum_nor_of_what_is_encoded(choice, sync):
    x = [activations(40, 1056, seed=i) for i in range(3)]
    parts = [quantize(part, SYNC_FLOAT[sync]) for part in x]
    results = []
    for threads in (1, 2, 3):
        with with_threads(choice, threads) as kernels:
            results.append([kernels.encode(x[0], sync), *kernels.add_up(parts, sync, encoded=True)])
    for one, two, three in zip(*results, strict=True):
        assert same(two, one)
        assert same(three, one)
