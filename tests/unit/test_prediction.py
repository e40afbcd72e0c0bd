"""Predicted traffic: distributed-llama's published figures, and bounds on what the wire adds to them.

One kB is 1024 bytes, rounded down, as distributed-llama prints its S (sent) and R (received).
"""

from __future__ import annotations

import numpy as np
import pytest

from dllama_zmq.root.prediction import KINDS, Asked, as_wide_as, predict_more, predict_step
from dllama_zmq.shapes import SHAPES, shape
from dllama_zmq.sharding import Ask, Plan, possible_node_counts
from dllama_zmq.spec import Sync

SYNCS: tuple[Sync, ...] = ("f32", "f16", "q80")
LAST_STEP = 1 << 31  # the largest that a header may carry


def asked(k: int, vocab_rows: int) -> tuple[Asked]:
    """One row that asks for k candidates of a worker with so many rows of the vocabulary."""
    return (Asked.of(Ask(k), slice(0, vocab_rows)),)


def layers_kb(name: str, n_nodes: int, sync: Sync) -> tuple[int, int]:
    """S and R of the layers, all workers together."""
    kinds = predict_step(shape(name), sync, 1, ())
    sums, partials = ((n_nodes - 1) * kinds[kind].payload_bytes // 1024 for kind in ("sum", "partial"))
    return sums, partials


# README of distributed-llama v0.7.4: 2048, 6144 and 14336 kB (F32), 544, 1632 and 3808 kB (Q80), S and R together.
@pytest.mark.parametrize(
    ("n_nodes", "sync", "kb"),
    [
        *[(2, "f32", 1024), (4, "f32", 3072), (8, "f32", 7168)],
        *[(2, "f16", 512), (4, "f16", 1536), (8, "f16", 3584)],  # half of those
        *[(2, "q80", 272), (4, "q80", 816), (8, "q80", 1904)],
    ],
)
@pytest.mark.parametrize("name", ["llama3-8b", "llama2-7b"])  # as many layers of the same width
def test_the_layers_take_the_published_kb_each_way(name: str, n_nodes: int, sync: Sync, kb: int) -> None:
    assert layers_kb(name, n_nodes, sync) == (kb, kb)


# distributed-llama issue #59
@pytest.mark.parametrize(("n_nodes", "kb"), [(4, 280), (8, 654)])
def test_the_layers_of_tinyllama_take_the_kb_of_a_published_log(n_nodes: int, kb: int) -> None:
    assert layers_kb("tinyllama", n_nodes, "q80") == (kb, kb)


# 2L * B(D) with B(m) = 4m, 2m, 34m/32: by hand
@pytest.mark.parametrize(
    ("name", "kb"),
    [
        ("llama2-13b", {"f32": 1600, "f16": 800, "q80": 425}),
        ("llama2-70b", {"f32": 5120, "f16": 2560, "q80": 1360}),
        ("llama3-70b", {"f32": 5120, "f16": 2560, "q80": 1360}),
    ],
)
@pytest.mark.parametrize("sync", SYNCS)
def test_the_layers_of_larger_models_follow_the_formula(name: str, sync: Sync, kb: dict[str, int]) -> None:
    assert layers_kb(name, 2, sync) == (kb[sync], kb[sync])
    assert layers_kb(name, 8, sync) == (7 * kb[sync], 7 * kb[sync])


@pytest.mark.parametrize(("sync", "x_bytes"), [("f32", 16384), ("f16", 8192), ("q80", 4352)])
def test_a_steps_x_and_its_candidates_have_lines_of_their_own(sync: Sync, x_bytes: int) -> None:
    kinds = predict_step(shape("llama3-8b"), sync, 3, (*asked(64, 32064), *asked(1, 32064)))
    payload = {kind: predicted.payload_bytes for kind, predicted in kinds.items()}
    assert payload["step"] == 3 * x_bytes + 4  # and the id of a page
    assert payload["sum"] == payload["partial"] == 3 * 64 * x_bytes
    assert payload["candidates"] == (64 * 8 + 16) + (1 * 8 + 16)


def test_the_bytes_that_a_worker_is_sent_do_not_depend_on_the_number_of_nodes() -> None:
    spec = shape("llama3-8b")
    for n_nodes in possible_node_counts(spec)[1:]:
        vocab = Plan.make(spec, n_nodes).slices[1].vocab
        kinds = predict_step(spec, "f32", 1, (Asked.of(Ask(1), vocab),))
        assert sum(kinds[kind].payload_bytes for kind in ("step", "sum")) == 16384 + 4 + 64 * 16384


# k ids (4 bytes), k logits (4), two log-sum-exps (8); k = 0: a logit (4) for every row of the vocabulary
@pytest.mark.parametrize(("k", "n_bytes"), [(1, 24), (64, 528), (1000, 8016), (5000, 32080), (0, 4 * 4008 + 16)])
def test_candidates_take_8_bytes_each_up_to_the_nodes_part_of_the_vocabulary(k: int, n_bytes: int) -> None:
    assert predict_step(shape("llama3-8b"), "q80", 5, asked(k, 4008))["candidates"].payload_bytes == n_bytes


def test_candidates_are_never_more_than_a_nodes_vocabulary_and_zero_asks_for_its_logits() -> None:
    sizes = [predict_step(shape("llama3-8b"), "f32", 1, asked(k, 100))["candidates"] for k in (512, 100, 0)]
    assert [size.payload_bytes for size in sizes] == [816, 816, 416]


def test_listed_ids_and_masks_are_predicted_where_they_lie() -> None:
    # This worker holds ids 2004 to 4007: 2 of the listed 3, and of even ids 1,002 less a listed one.
    spec, vocab = shape("tinyllama"), slice(2004, 4008)
    listed, mask = np.int32([1, 2005, 4006]), np.full(501, 0b01010101, np.uint8)
    kinds = predict_step(spec, "f32", 1, (Asked.of(Ask(2000, 0.5, True, listed, mask), vocab),))
    plain = predict_step(spec, "f32", 1, asked(2000, 2004))
    assert kinds["step"].payload_bytes == plain["step"].payload_bytes + 3 * 4 + 501
    assert kinds["candidates"].payload_bytes == 8 * (1002 - 1) + 2 * 4 + 16


def test_a_step_that_wants_no_row_is_answered_without_payload() -> None:
    kinds = predict_step(shape("tinyllama"), "f32", 32, ())
    assert kinds["candidates"].payload_bytes == 0
    assert kinds["candidates"].messages == 1
    assert kinds["candidates"].wire_bytes > 0


@pytest.mark.parametrize("sync", SYNCS)
def test_a_step_of_a_prompt_moves_every_token_in_as_many_messages_as_one_token(sync: Sync) -> None:
    spec = shape("tinyllama")
    one, many = (predict_step(spec, sync, n_tokens, asked(1, 8000)) for n_tokens in (1, 32))
    for kind in ("step", "sum", "partial"):
        pages = 4 if kind == "step" else 0  # the id of the page of all 32
        assert many[kind].payload_bytes - pages == 32 * (one[kind].payload_bytes - pages)
        assert many[kind].messages == one[kind].messages
        assert many[kind].wire_bytes < 32 * one[kind].wire_bytes


@pytest.mark.parametrize("sync", SYNCS)
def test_two_micro_batches_take_twice_the_messages_and_no_payload_more(sync: Sync) -> None:
    spec = shape("tinyllama")
    one, many = (predict_step(spec, sync, n_tokens, asked(1, 8000)) for n_tokens in (1, 100))
    for kind in ("sum", "partial"):
        assert many[kind].payload_bytes == 100 * one[kind].payload_bytes
        assert many[kind].messages == 2 * one[kind].messages
        assert one[kind].wire_bytes - one[kind].payload_bytes < many[kind].wire_bytes - many[kind].payload_bytes
    assert many["step"].messages == many["candidates"].messages == 1


@pytest.mark.parametrize("sync", SYNCS)
@pytest.mark.parametrize("k", [1, 64])
@pytest.mark.parametrize("step", [1, LAST_STEP])
def test_the_wire_adds_at_most_3_percent_to_llama_3_8b(sync: Sync, k: int, step: int) -> None:
    kinds = predict_step(shape("llama3-8b"), sync, 1, asked(k, 128256 // 8), step).values()
    payload = sum(kind.payload_bytes for kind in kinds)
    assert payload < sum(kind.wire_bytes for kind in kinds) <= 1.03 * payload


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("sync", SYNCS)
def test_headers_grow_by_less_than_1_percent_over_a_clusters_life(name: str, sync: Sync) -> None:
    first, last = (
        sum(kind.wire_bytes for kind in predict_step(shape(name), sync, 1, asked(1, 8000), step).values())
        for step in (1, LAST_STEP)
    )
    assert first < last < 1.01 * first


def test_asking_again_takes_one_message_without_payload_and_one_answer() -> None:
    spec = shape("llama3-8b")
    kinds = predict_more(spec, 1, asked(512, 16032), 1000)
    assert kinds["more_candidates"].payload_bytes == 0
    assert kinds["more_candidates"].wire_bytes > 0
    assert (
        kinds["candidates"].payload_bytes == predict_step(spec, "f32", 1, asked(512, 16032))["candidates"].payload_bytes
    )


def test_every_kind_that_is_predicted_has_a_direction() -> None:
    spec = shape("tinyllama")
    kinds = {*predict_step(spec, "f32", 1, asked(1, 8000)), *predict_more(spec, 1, asked(0, 8000), 1)}
    assert kinds == KINDS.keys()


# msgpack: positive fixint, uint 8, uint 16, uint 32, uint 64
@pytest.mark.parametrize(
    ("number", "largest"),
    [(0, 127), (127, 127), (128, 255), (255, 255), (256, 65535), (65536, 0xFFFFFFFF), (1 << 40, 1 << 62)],
)
def test_numbers_of_one_width_in_a_header_have_one_stand_in(number: int, largest: int) -> None:
    assert as_wide_as(number) == largest
