"""What `bench` measures and what it takes: steps as those of an answer, bytes and multiply-adds as the plan's."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from tiny import tiny_spec

from dllama_zmq.bench.cases import ALONE_STEPS, Case, cases, work
from dllama_zmq.shapes import shape
from dllama_zmq.sharding import PREFILL_TOKENS, Plan
from dllama_zmq.spec import FloatType, Rope

TINYLLAMA = shape("tinyllama")


def test_cases_are_named_as_llama_bench_names_them() -> None:
    found = cases([128, 512], [32], [0, 2000])
    names = ["pp128", "pp512", "tg32", "pp128 @ d2000", "pp512 @ d2000", "tg32 @ d2000"]
    assert [case.name for case in found] == names


def test_a_length_of_0_is_no_case() -> None:
    assert [case.name for case in cases([0], [0, 8], [0])] == ["tg8"]


def test_cases_of_several_sequences_are_named_with_their_number() -> None:
    found = cases([128], [32], [0, 64], [1, 4])
    assert [case.name for case in found[:4]] == ["pp128", "tg32", "pp128 @ 4", "tg32 @ 4"]
    assert [case.name for case in found[4:]] == ["pp128 @ d64", "tg32 @ d64", "pp128 @ d64 @ 4", "tg32 @ d64 @ 4"]


def test_several_sequences_need_positions_each_and_a_prompt_beside_them_its_own() -> None:
    assert Case("tg", 32, 64).n_all_positions == 64 + 32
    assert Case("tg", 32, 64, 4).n_all_positions == 4 * (64 + 32 + 1)
    assert Case("pp", 100, 64, 4).n_all_positions == 4 * (64 + 100 + ALONE_STEPS) + 100


def rows(case: Case) -> list[tuple[int, int]]:
    """Of each step of one sequence, the number of rows, and how many give a token."""
    return [(batch.n_rows, int(gives_token)) for batch, gives_token in case.steps()]


def rows_of(case: Case) -> list[tuple[int, int, bool]]:
    """Of each step, the first position and the number of rows, of one sequence, and whether it gives a token."""
    steps = [(batch.spans, gives_token) for batch, gives_token in case.steps()]
    return [(span.start, span.count, gives_token) for (span,), gives_token in steps]


def test_a_prompt_is_evaluated_in_the_chunks_of_an_answer_and_gives_one_token() -> None:
    n_tokens = 2 * PREFILL_TOKENS + 3
    assert rows_of(Case("pp", n_tokens, depth=5)) == [
        (5, PREFILL_TOKENS, False),
        (5 + PREFILL_TOKENS, PREFILL_TOKENS, False),
        (5 + 2 * PREFILL_TOKENS, 3, True),
    ]


def test_generation_is_a_token_a_step_from_its_depth_on() -> None:
    assert rows_of(Case("tg", 3, depth=7)) == [(position, 1, True) for position in (7, 8, 9)]


@pytest.mark.parametrize("n_nodes", [1, 2, 4, 8])
def test_a_generated_token_reads_every_weight_of_every_shard(n_nodes: int) -> None:
    plan = Plan.make(TINYLLAMA, n_nodes)
    shards = sum(plan.weight_bytes(node) for node in range(n_nodes))
    assert work(plan, rows(Case("tg", 32)))[0] == 32 * shards


def test_tokens_of_several_sequences_read_the_weights_of_a_step_once() -> None:
    plan = Plan.make(TINYLLAMA, 1)
    (one_bytes, one_macs), (four_bytes, four_macs) = work(plan, [(1, 1)]), work(plan, [(4, 4)])
    assert (four_bytes, four_macs) == (one_bytes, 4 * one_macs)


# Per layer q, o (2048, 2048), k, v (256, 2048), three of the FFN (5632, 2048); 22 layers; the head (32000, 2048).
LAYER_MACS = 2 * 2048 * 2048 + 2 * 256 * 2048 + 3 * 5632 * 2048
HEAD_MACS = 32000 * 2048


def test_a_generated_token_takes_a_multiply_add_for_each_weight_of_the_matrices() -> None:
    assert work(Plan.make(TINYLLAMA, 4), rows(Case("tg", 1)))[1] == 22 * LAYER_MACS + HEAD_MACS


def test_a_prompt_takes_the_layers_for_each_token_and_the_head_once() -> None:
    assert work(Plan.make(TINYLLAMA, 2), rows(Case("pp", 128)))[1] == 128 * 22 * LAYER_MACS + HEAD_MACS


def test_a_prompt_reads_the_layers_once_a_step_and_the_head_once() -> None:
    plan = Plan.make(TINYLLAMA, 1)
    head_bytes = 32000 * FloatType.Q40.row_bytes(2048)
    layer_bytes = plan.weight_bytes(0) - head_bytes
    assert work(plan, rows(Case("pp", 3 * PREFILL_TOKENS)))[0] == 3 * layer_bytes + head_bytes


def test_kv_heads_that_two_nodes_hold_count_twice() -> None:
    spec = tiny_spec(n_kv_heads=1)  # (16, 64) each of k and v, in 2 layers
    one, two = (work(Plan.make(spec, n), rows(Case("tg", 1)))[1] for n in (1, 2))
    assert two - one == 2 * 2 * 16 * 64


def test_only_experts_that_tokens_use_count() -> None:
    spec = tiny_spec(arch="mixtral", rope=Rope(layout="half"), n_experts=4, n_active_experts=1)
    every = replace(spec, n_active_experts=4)
    expert_weights = 2 * 3 * 64 * 128  # of one expert, in 2 layers
    for n_nodes in (1, 2):
        one, four = (work(Plan.make(of, n_nodes), rows(Case("tg", 1))) for of in (spec, every))
        assert four[1] - one[1] == 3 * expert_weights
        assert four[0] - one[0] == 4 * 3 * expert_weights
        one, four = (work(Plan.make(of, n_nodes), rows(Case("pp", 2))) for of in (spec, every))
        assert four[0] - one[0] == 4 * 4 * expert_weights * 9 / 16  # unused by both: (3/4)^2
