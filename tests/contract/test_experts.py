"""A layer's experts on every back end, held against its own products, whose tests are in test_products.py; and GELU."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from contract.back_ends import AVAILABLE, EVERYWHERE, QUANTIZED, SAME_BITS, U, activations, weights, with_threads

from dllama_zmq.kernels import Kernels, tree_sum
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.spec import Activation, FloatType

D, F, E, K = 96, 256, 13, 3
ALL = slice(None)
CASES = [
    (kind, *case)
    for kind, *case in itertools.product(FloatType, [1, 3, 19], [1, 4], ["silu", "gelu"])
    if kind in EVERYWHERE or case[1:] == [4, "silu"]
]
SHARED = [(*of, n) for of in SAME_BITS for n in (2, 4, 8) if of[1] in EVERYWHERE or n == 8]
Expert = tuple[BlockMatrix, BlockMatrix, BlockMatrix]


def experts_of(kind: FloatType, width: int = F) -> list[Expert]:
    return [
        (weights(width, D, kind, 3 * e), weights(width, D, kind, 3 * e + 1), weights(D, width, kind, 3 * e + 2))
        for e in range(E)
    ]


def columns(experts: list[Expert], part: slice) -> list[Expert]:
    """A node's share of each expert."""
    return [(gate.cut(part, ALL), up.cut(part, ALL), down.cut(ALL, part)) for gate, up, down in experts]


def choice(n_tokens: int) -> tuple[F32, npt.NDArray[np.int64], F32]:
    """x, experts and weights; expert 2 is nobody's, and expert 12 all but the first token's."""
    rng = np.random.default_rng(5)
    chosen = np.array([[0, 1, 3]] + [sorted([*rng.permutation([0, 1, 3])[: K - 1], 12]) for _ in range(n_tokens - 1)])
    return activations(n_tokens, D) / 64, chosen, rng.uniform(0.1, 1, (n_tokens, K)).astype(np.float32)


def by_products(
    kernels: Kernels,
    experts: list[Expert],
    segments: int,
    activation: Activation,
    x: F32,
    chosen: npt.NDArray[np.int64],
    mix: F32,
) -> F32:
    """Token by token: within a segment expert after expert, then the segments' tree."""
    each = F // segments
    parts = [slice(s * each, (s + 1) * each) for s in range(segments)]
    products = {
        e: (kernels.gated(gate, up, activation), [kernels.linear(down.cut(ALL, part)) for part in parts])
        for e, (gate, up, down) in enumerate(experts)
        if e in chosen
    }
    rows = []
    for t in range(len(x)):
        sums = [np.zeros((1, D), np.float32) for _ in range(segments)]
        for e, weight in zip(chosen[t], mix[t], strict=True):
            gated, downs = products[e]
            hidden = gated(x[t : t + 1]) * weight
            for s, part in enumerate(parts):
                sums[s] += downs[s](np.ascontiguousarray(hidden[:, part]))
        rows.append(tree_sum(sums))
    return np.concatenate(rows)


@pytest.mark.parametrize(("kind", "n_tokens", "segments", "activation"), CASES)
def test_experts_are_their_products_weighted_and_added_in_order(kernels, kind, n_tokens, segments, activation):
    experts, (x, chosen, mix) = experts_of(kind), choice(n_tokens)
    with np.errstate(over="ignore"):
        found = kernels.experts(iter(experts), segments, activation)(x, chosen, mix)
        wanted = by_products(kernels, experts, segments, activation, x, chosen, mix)
    assert found.dtype == np.float32
    if (kernels.name, kind) in SAME_BITS:
        assert np.array_equal(found, wanted)
    else:
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("n_tokens", [1, 4, 19])
@pytest.mark.parametrize(("back_end", "kind", "n_nodes"), SHARED)
def test_nodes_that_share_experts_add_up_to_the_bits_of_one(back_end, kind, n_tokens, n_nodes):
    experts, of_tokens = experts_of(kind), choice(n_tokens)
    with with_threads(back_end, 1) as kernels, np.errstate(over="ignore"):
        whole = kernels.experts(experts, segments=8)(*of_tokens).copy()
        width = F // n_nodes
        parts = [
            kernels.experts(columns(experts, slice(n * width, (n + 1) * width)), 8 // n_nodes)(*of_tokens).copy()
            for n in range(n_nodes)
        ]
    assert np.array_equal(tree_sum(parts), whole)


@pytest.mark.parametrize("kind", list(FloatType))
def test_a_token_has_the_same_bits_whatever_is_in_its_batch(compiled, kind):
    if ("simd", kind) not in SAME_BITS:
        pytest.skip(f"{kind.name} is not compiled")
    experts, (x, chosen, mix) = compiled.experts(experts_of(kind), 2), choice(19)
    whole = experts(x, chosen, mix).copy()
    for count in (1, 3, 4, 5, 8):
        pieces = [experts(*(of[i : i + count] for of in (x, chosen, mix))).copy() for i in range(0, 19, count)]
        assert np.array_equal(np.concatenate(pieces), whole), count


@pytest.mark.parametrize("back_end", AVAILABLE)
@pytest.mark.parametrize("n_tokens", [1, 9])
def test_threads_do_not_change_the_bits_of_experts(back_end, n_tokens):
    found = []
    for threads in (1, 2, 3):
        with with_threads(back_end, threads) as kernels, np.errstate(over="ignore"):
            found.append(kernels.experts(experts_of(FloatType.Q40), 2)(*choice(n_tokens)).copy())
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("n_tokens", [1, 19])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_experts_may_begin_within_a_block_each_at_another_column(kernels, kind, n_tokens, alike):
    """As gate and up, so down: within a block of 256, at the same column in every expert or in none."""

    def cut(rows: int, columns: int, number: int) -> BlockMatrix:
        first = 96 if alike else 32 * (number // 3 % 8)
        return weights(rows, 512, kind, number).cut(ALL, slice(first, first + columns))

    experts = [(cut(F, D, 3 * e), cut(F, D, 3 * e + 1), cut(D, F, 3 * e + 2)) for e in range(E)]
    of_tokens = choice(n_tokens)
    with np.errstate(over="ignore"):
        found = kernels.experts(experts, segments=4)(*of_tokens)
        assert np.array_equal(found, by_products(kernels, experts, 4, "silu", *of_tokens))


def test_experts_may_be_of_several_types(kernels):
    mixed = [*experts_of(FloatType.F32)[:1], *experts_of(FloatType.F16)[1:]]
    x, chosen, mix = choice(3)
    found = kernels.experts(mixed)(x, chosen, mix)
    wanted = by_products(kernels, mixed, 1, "silu", x, chosen, mix)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", [FloatType.F32, FloatType.F16])
def test_gelu_is_that_of_its_tanh_formula(kernels, kind):
    gate, up = weights(33, D, kind, 1), weights(33, D, kind, 2)
    x = activations(9, D) / 64
    gates, ups = (kernels.linear(matrix)(x).astype(np.float64) for matrix in (gate, up))
    wanted = gates / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gates + 0.044715 * gates**3))) * ups
    with np.errstate(over="ignore"):
        found = kernels.gated(gate, up, "gelu")(x)
    # The exponent 2u = 1.6 (g + 0.04 g^3) is off by 4 U of itself, and the tail by that much times 2u; the rest by
    # 11 U. Of a small 1 + tanh the float64 above knows no more than its own last bit.
    steep = np.minimum(np.abs(1.6 * (gates + 0.044715 * gates**3)), 88)
    error = U * (11 + 4 * steep) * np.abs(wanted) + 2.0**-52 * np.abs(gates * ups)
    assert (np.abs(found - wanted) <= error).all()
