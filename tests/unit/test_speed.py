"""The predicted speed, from rates and links that are given: cases worked by hand."""

from __future__ import annotations

import pytest

from dllama_zmq.bench.speed import (
    Encryption,
    Layout,
    Link,
    Rates,
    decoding,
    n_exchanges,
    prompt,
    rates_of,
    token_wire_bytes,
)
from dllama_zmq.shapes import shape
from dllama_zmq.sharding import Plan

TINYLLAMA = shape("tinyllama")
RATES = Rates(read_bytes_per_s=30e9, macs_per_s=150e9, exchange_s=20e-6)
# Per layer q, o (2048, 2048), k, v (256, 2048), three of the FFN (5632, 2048); two norms in f32. The head is
# (32000, 2048), the last norm (2048,). A Q40 block of 32 values has 18 bytes.
LAYER_MACS = 2 * 2048 * 2048 + 2 * 256 * 2048 + 3 * 5632 * 2048
HEAD_MACS = 32000 * 2048
WEIGHT_BYTES = (22 * LAYER_MACS + HEAD_MACS) // 32 * 18 + (2 * 22 + 1) * 2048 * 4
PROMPT_MACS = 128 * 22 * LAYER_MACS + HEAD_MACS


def spread(n_nodes: int, link: Link, message_s: float = 0.0, sealed: bool = False) -> Layout:
    """Each node on a computer of its own."""
    return Layout([[node] for node in range(n_nodes)], [RATES] * n_nodes, link, message_s, sealed)


def test_a_token_on_one_node_reads_every_weight_and_has_an_exchange_for_each_stage() -> None:
    terms = decoding(Plan.make(TINYLLAMA, 1), "f32", Layout([[0]], [RATES]))
    assert terms.compute_s == WEIGHT_BYTES / 30e9 == pytest.approx(19.41e-3, rel=1e-3)
    assert terms.exchange_s == pytest.approx(45 * 20e-6)
    assert (terms.round_trip_s, terms.bytes_s, terms.link_share) == (0, 0, 0)
    assert terms.tokens_per_s == pytest.approx(1 / (WEIGHT_BYTES / 30e9 + 0.9e-3))


def test_nodes_of_one_computer_read_their_weights_together() -> None:
    plan = Plan.make(TINYLLAMA, 2)
    terms = decoding(plan, "f32", Layout([[0, 1]], [RATES], message_s=1.0))  # its rates have the messages already
    norms = 45 * 2048 * 4  # which both have
    assert terms.compute_s == pytest.approx((WEIGHT_BYTES + norms) / 30e9)
    assert terms.seconds == pytest.approx(terms.compute_s + 45 * 20e-6)


def test_computers_read_at_the_same_time_and_the_root_s_link_carries_every_worker_s_bytes() -> None:
    link = Link(round_trip_s=300e-6, bytes_per_s=1e8)
    for n_nodes in (2, 4):
        plan = Plan.make(TINYLLAMA, n_nodes)
        terms = decoding(plan, "f32", spread(n_nodes, link, 50e-6))
        assert terms.compute_s == max(plan.weight_bytes(node) for node in range(n_nodes)) / 30e9
        assert terms.exchange_s == pytest.approx(45 * (20e-6 + 50e-6))
        assert terms.round_trip_s == pytest.approx(45 * 300e-6)
        # Of each worker x, 44 sums and 44 partial sums of 2048 values; headers are less than 1% more.
        payload = (n_nodes - 1) * (1 + 2 * 44) * 2048 * 4
        assert payload < terms.bytes_s * 1e8 < 1.01 * payload + 100


def test_the_messages_of_an_exchange_are_in_the_rates_of_a_computer_with_several_nodes() -> None:
    pairs = Layout([[0, 1], [2, 3]], [RATES] * 2, Link(0.0, 1e12), message_s=50e-6)
    assert pairs.exchange_s() == 20e-6
    assert Layout([[0, 1], [2]], [RATES] * 2, Link(0.0, 1e12), message_s=50e-6).exchange_s() == pytest.approx(70e-6)


def test_the_slowest_computer_sets_the_time() -> None:
    slow = Rates(read_bytes_per_s=10e9, macs_per_s=30e9, exchange_s=90e-6)
    plan, link = Plan.make(TINYLLAMA, 2), Link(0.0, 1e12)
    layout = Layout([[0], [1]], [RATES, slow], link)
    assert decoding(plan, "f32", layout).compute_s == plan.weight_bytes(1) / 10e9
    assert decoding(plan, "f32", layout).exchange_s == pytest.approx(45 * 90e-6)
    assert prompt(plan, "f32", layout, 128).compute_s == pytest.approx(PROMPT_MACS / 2 / 30e9, rel=0.02)


def test_q80_sends_34_bytes_for_32_values_and_f16_two_for_each() -> None:
    plan = Plan.make(TINYLLAMA, 2)
    f32, f16, q80 = (sum(token_wire_bytes(plan, sync, 1, False)) for sync in ("f32", "f16", "q80"))
    assert (f16 / f32, q80 / f32) == (pytest.approx(0.5, abs=0.01), pytest.approx(34 / 32 / 4, abs=0.01))


def test_curve_adds_33_bytes_to_each_frame_of_a_token_and_of_a_prompt() -> None:
    plan, link = Plan.make(TINYLLAMA, 2), Link(round_trip_s=0.0, bytes_per_s=1e6)
    # A header and its arrays: of the step x and a page's id, of each sum and partial sum one, of the candidates three.
    n_bytes = 33 * (3 + 2 * 44 + 2 * 44 + 4)
    assert sum(token_wire_bytes(plan, "f32", 1, True)) - sum(token_wire_bytes(plan, "f32", 1, False)) == n_bytes
    for seconds in (
        [decoding(plan, "f32", spread(2, link, sealed=sealed)).seconds for sealed in (False, True)],
        [prompt(plan, "f32", spread(2, link, sealed=sealed), 16).seconds for sealed in (False, True)],
    ):
        assert seconds[1] - seconds[0] == pytest.approx(n_bytes / 1e6)


def test_a_prompt_on_one_node_takes_its_multiply_adds() -> None:
    terms = prompt(Plan.make(TINYLLAMA, 1), "f32", Layout([[0]], [RATES]), 128)
    assert terms.seconds == terms.compute_s == pytest.approx(PROMPT_MACS / 150e9)
    assert terms.tokens_per_s == pytest.approx(128 / (PROMPT_MACS / 150e9))


def test_the_sums_of_a_prompt_are_hidden_as_long_as_the_other_micro_batch_is_computed() -> None:
    plan = Plan.make(TINYLLAMA, 2)
    computing_s = prompt(plan, "f32", spread(2, Link(0.0, 1e15)), 128).compute_s
    hides_s = computing_s / 44 / 2  # one micro-batch's half layer
    sums_bytes = 2 * 64 * 2048 * 4  # of 64 rows, to the root and back
    fast, slow = sums_bytes / (0.9 * hides_s), sums_bytes / (3 * hides_s)
    begin_s = 128 * 2048 * 4  # x of every row, which nothing hides
    assert prompt(plan, "f32", spread(2, Link(0.0, fast)), 128).seconds == pytest.approx(
        computing_s + begin_s / fast, rel=0.002
    )
    assert prompt(plan, "f32", spread(2, Link(0.0, slow)), 128).seconds == pytest.approx(
        44 * (hides_s + 3 * hides_s) + begin_s / slow, rel=0.01
    )


def test_a_short_prompt_is_one_micro_batch_and_hides_nothing() -> None:
    plan, link = Plan.make(TINYLLAMA, 2), Link(1e-3, 1e15)
    terms = prompt(plan, "f32", spread(2, link), 16)
    assert terms.round_trip_s == pytest.approx(44 * 1e-3)


def test_a_long_prompt_runs_in_steps_of_128() -> None:
    plan, layout = Plan.make(TINYLLAMA, 1), Layout([[0]], [RATES])
    head_s = HEAD_MACS / 150e9  # once, for the last step gives the token
    one, four = (prompt(plan, "f32", layout, n).seconds for n in (128, 512))
    assert four == pytest.approx(4 * (one - head_s) + head_s)


def test_rates_are_what_reading_and_multiplying_leave_of_the_measured_times() -> None:
    spec = shape("tinyllama", overrides={"layers": 2})
    assert n_exchanges(spec) == 5
    # 30 MB at 30 GB/s are 1 ms of the token's 1.5 ms; the other 0.5 ms are five exchanges.
    found = rates_of(spec, (30e6, 1 / 1.5e-3), (50e6, 3000), 30e9)
    assert found.read_bytes_per_s == 30e9
    assert found.exchange_s == pytest.approx(100e-6)
    assert found.macs_per_s == 50e6 * 3000


def test_a_token_that_is_faster_than_its_products_alone_raises_their_rate() -> None:
    found = rates_of(shape("tinyllama"), (30e6, 2000), (1.0, 1.0), 30e9)
    assert (found.read_bytes_per_s, found.exchange_s) == (60e9, 0.0)


def test_encryption_slows_the_bytes_and_the_two_messages_of_a_round_trip() -> None:
    # 8 ns a byte on the wire and 2 ns for CURVE: 10 ns, 100 MB/s.
    link = Link(200e-6, 125e6).encrypted(Encryption(message_s=5e-6, byte_s=2e-9))
    assert link.round_trip_s == pytest.approx(210e-6)
    assert link.bytes_per_s == pytest.approx(100e6)
