"""Which experts a token goes to, and with what weights: alike on every node, whatever the order of its additions."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import tiny_spec

from dllama_zmq.models.alike import norm_alike
from dllama_zmq.models.experts import Router
from dllama_zmq.quants import F32
from dllama_zmq.spec import ModelSpec, Rope

T, D, E, K = 40, 256, 8, 3


def spec(**overrides: object) -> ModelSpec:
    numbers = {"dim": D, "n_heads": 4, "n_experts": E, "n_active_experts": K, "rope": Rope(layout="half")}
    return tiny_spec(arch="qwen3moe", **(numbers | overrides))


def normal(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1, 1e6])
@pytest.mark.parametrize("norm_topk", [True, False])
def test_the_best_experts_are_chosen_with_the_weights_of_their_softmax(norm_topk, scale):
    x, rows, gain = normal(1, T, D) * np.float32(scale), normal(2, E, D) / 16, 1 + normal(3, D) / 10
    chosen, weights = Router(spec(norm_topk=norm_topk), rows, gain)(x)
    exact = x.astype(np.float64)
    normed = exact / np.sqrt(np.mean(exact**2, axis=1, keepdims=True) + 1e-5) * gain
    softmax = np.exp(normed @ rows.T.astype(np.float64))
    softmax /= softmax.sum(axis=1, keepdims=True)
    best = np.sort(np.argsort(-softmax, axis=1, kind="stable")[:, :K], axis=1)
    if scale > 1e-20:  # there all are equal but for the last bits of float64
        assert np.array_equal(chosen, best)
    wanted = np.take_along_axis(softmax, chosen, axis=1)
    wanted /= wanted.sum(axis=1, keepdims=True) if norm_topk else 1
    np.testing.assert_allclose(weights, wanted, rtol=0, atol=5e-6)
    assert weights.dtype == np.float32


def test_experts_that_differ_by_the_order_of_their_additions_alone_are_equal_and_the_lower_is_chosen():
    """Any float32 sum, and most in float64, would prefer one of them."""
    row, rng = normal(4, D) * np.logspace(-3, 3, D, dtype=np.float32), np.random.default_rng(5)
    rows = np.stack([rng.permutation(row) for _ in range(E)])
    assert len({float(np.float32(1) * np.sum(of, dtype=np.float32)) for of in rows}) > 1
    chosen, weights = Router(spec(), rows, np.ones(D, np.float32))(np.full((2, D), 0.3, np.float32))
    assert chosen.tolist() == [[0, 1, 2]] * 2
    assert len(set(weights.ravel().tolist())) == 1


def test_the_order_of_the_columns_changes_no_choice_and_no_logit():
    x, rows, gain = normal(6, T, D) * 10, normal(7, E, D), 1 + normal(8, D) / 10
    order = np.random.default_rng(9).permutation(D)
    here = Router(spec(n_active_experts=E), rows, gain)(x)
    there = Router(spec(n_active_experts=E), rows[:, order], gain[order])(x[:, order])
    np.testing.assert_allclose(here[1], there[1], rtol=1e-6, atol=0)
    for router_rows, columns in ((rows, slice(None)), (rows[:, order], order)):
        chosen = Router(spec(), router_rows, gain[columns])(x[:, columns])[0]
        assert np.array_equal(chosen, Router(spec(), rows, gain)(x)[0])


def test_a_token_is_routed_alike_whatever_is_in_its_batch():
    x, router = normal(10, T, D), Router(spec(), normal(11, E, D), np.ones(D, np.float32))
    chosen, weights = router(x)
    for t in range(T):
        alone = router(x[t : t + 1])
        assert np.array_equal(alone[0][0], chosen[t])
        assert np.array_equal(alone[1][0], weights[t])


def test_a_token_of_zeros_goes_to_the_first_experts():
    chosen, weights = Router(spec(), normal(12, E, D), np.ones(D, np.float32))(np.zeros((1, D), np.float32))
    assert chosen.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1, 1e6])
def test_a_norm_that_goes_into_x_is_the_same_in_any_order(scale):
    x, gain = normal(1, T, D) * np.float32(scale), 1 + normal(3, D) / 10
    normed, order = norm_alike(x, gain, 1e-5), np.random.default_rng(4).permutation(D)
    assert np.array_equal(norm_alike(x[:, order], gain[order], 1e-5), normed[:, order])
    exact = x.astype(np.float64)
    wanted = exact / np.sqrt(np.mean(exact**2, axis=1, keepdims=True) + 1e-5) * gain
    np.testing.assert_allclose(normed, wanted, rtol=1e-6)
    assert normed.dtype == np.float32
    assert not norm_alike(np.zeros((1, D), np.float32), gain, 1e-5).any()
