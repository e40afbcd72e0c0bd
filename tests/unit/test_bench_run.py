"""What `bench` refuses before anything is measured, and its lists of numbers."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from dllama_zmq.bench.cases import Case, Nodes
from dllama_zmq.bench.run import check
from dllama_zmq.cli.bench import counts
from dllama_zmq.errors import ClusterError, PlanError, RequestError, UsageError
from dllama_zmq.models import main_types, types_in_words
from dllama_zmq.shapes import shape
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import FloatType

Q4_K, Q6_K, Q80 = FloatType.Q4_K, FloatType.Q6_K, FloatType.Q80
TINYLLAMA = shape("tinyllama")
ROOM = 1 << 40


def test_a_case_longer_than_the_context_is_refused_with_both_lengths() -> None:
    check(TINYLLAMA, "tinyllama", [Case("pp", 48, depth=2000)], [Nodes(1, 1)], ROOM)
    with pytest.raises(RequestError, match="tg49 @ d2000 needs 2049 positions, and the context of tinyllama has 2048"):
        check(TINYLLAMA, "tinyllama", [Case("tg", 49, depth=2000)], [Nodes(1, 1)], ROOM)


def test_an_impossible_number_of_nodes_is_refused_with_those_that_are_possible() -> None:
    with pytest.raises(PlanError, match=r"3 nodes are not a power of two. .* over 1, 2, 4, 8"):
        check(TINYLLAMA, "tinyllama", [Case("tg", 1)], [Nodes(1, 1), Nodes(3, 1)], ROOM)


def test_a_model_larger_than_memory_is_refused_with_what_it_needs() -> None:
    plan = Plan.make(TINYLLAMA, 1)
    needed = plan.weight_bytes(0) + plan.kv_bytes(0, 32)
    check(TINYLLAMA, "tinyllama", [Case("tg", 32)], [Nodes(1, 1)], needed)
    with pytest.raises(ClusterError, match=f"tinyllama over 1 node needs {needed / 1e9:.1f} GB of memory, and "):
        check(TINYLLAMA, "tinyllama", [Case("tg", 32)], [Nodes(1, 1)], needed - 1)


def test_the_memory_of_all_nodes_counts_for_they_are_on_one_machine() -> None:
    plan = Plan.make(TINYLLAMA, 8)  # more nodes than KV heads: some are held twice
    needed = sum(plan.weight_bytes(node) + plan.kv_bytes(node, 32) for node in range(8))
    with pytest.raises(ClusterError, match="over 8 nodes"):
        check(TINYLLAMA, "tinyllama", [Case("tg", 32)], [Nodes(1, 1), Nodes(8, 1)], needed - 1)


def test_a_list_of_numbers_holds_each_once_in_its_order() -> None:
    assert counts("512, 128,512", "--n-prompt", 0, 1000) == [512, 128]


@pytest.mark.parametrize("text", ["", "1,,2", "1;2", "-1", "1.5", "x", "1e3", "²", "1001", "9" * 5000])
def test_a_text_that_is_no_list_of_numbers_is_refused_with_its_flag(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--nodes .*expected numbers of 0 to 1000"):
        counts(text, "--nodes", 0, 1000)


def test_products_are_measured_of_the_types_with_a_tenth_of_the_bytes_or_more() -> None:
    sixth = {f"layers.{i}.ffn.down": Q6_K for i in range(0, 22, 2)}
    few = {"layers.1.attention.k": Q80, "embedding": FloatType.F16}
    mixed = replace(TINYLLAMA, weight_type=Q4_K, stored=tuple({**sixth, **few}.items()))
    assert main_types(TINYLLAMA) == [FloatType.Q40]
    assert main_types(mixed) == [Q4_K, Q6_K]
    assert types_in_words(mixed) == "q4_k + q6_k"
    assert main_types(replace(mixed, weight_type=Q80)) == [Q80]  # Q6_K has 9%
