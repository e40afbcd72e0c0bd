"""The memory that nodes need, and the message where this computer does not have it."""

from __future__ import annotations

import pytest

from dllama_zmq.errors import PlanError
from dllama_zmq.kernels import KV_PAGE
from dllama_zmq.root.fitting import Wish, check_fits, check_kv_memory, kv_room
from dllama_zmq.shapes import shape
from dllama_zmq.sharding import DEFAULT_SEQ_LEN, KVBudget, Plan, context_length, node_memory
from dllama_zmq.spec import FloatType

GB = 10**9
LARGE = shape("llama2-70b", FloatType.Q80)  # 73 GB of weights
LONG = shape("llama3-8b", FloatType.Q40)  # 4.5 GB of weights, 131,072 bytes of KV cache for each position


def wish(spec=LARGE, n_nodes: int = 1, n_here: int = 1, seq_len: int = 4096) -> Wish:
    return Wish(Plan.make(spec, n_nodes), range(n_here), seq_len, "f16", "big.gguf")


def refusal(asked: Wish, free_bytes: int) -> str:
    with pytest.raises(PlanError) as caught:
        check_fits(asked, free_bytes)
    return str(caught.value)


def test_a_model_too_large_for_one_computer_is_refused_with_the_number_of_nodes_that_would_do() -> None:
    assert refusal(wish(), 22_400_000_000) == (
        "big.gguf needs 74.5 GB on each of 1 nodes; this computer has 22.4 GB free; 4 nodes need 18.7 GB each; "
        "--force starts it nevertheless"
    )


def test_a_model_that_fits_is_not_refused_nor_one_whose_computer_does_not_tell() -> None:
    check_fits(wish(), wish().all_bytes(4096))
    check_fits(wish(), None)
    refusal(wish(), wish().all_bytes(4096) - 1)


def test_the_nodes_of_one_computer_count_together() -> None:
    sentence = refusal(wish(n_nodes=4, n_here=4), 22_400_000_000)
    assert "needs 18.7 GB on each of 4 nodes, 74.7 GB for the 4 of them on this computer" in sentence
    assert "4 nodes on computers of their own need 18.7 GB each" in sentence
    check_fits(wish(n_nodes=4, n_here=1), 22_400_000_000)


def test_where_no_number_of_nodes_would_do_that_is_said() -> None:
    assert "even 64 nodes need" in refusal(wish(), GB // 4)


def test_a_shorter_context_that_would_fit_is_named() -> None:
    assert "with max_seq_len: 4096 it fits" in refusal(wish(LONG, seq_len=8192), 5_300_000_000)
    assert "max_seq_len" not in refusal(wish(LONG, seq_len=8192), 4_000_000_000)


@pytest.mark.parametrize("n_nodes", [1, 2, 8])
def test_a_nodes_memory_is_its_weights_and_what_is_larger_of_loading_and_working(n_nodes: int) -> None:
    plan = Plan.make(LONG, n_nodes)
    for node in range(n_nodes):
        short, full = node_memory(plan, node, 16), node_memory(plan, node, 8192)
        assert short.weights == plan.weight_bytes(node)
        assert full.kv_cache == plan.kv_bytes(node, 8192)
        assert short.total - short.program == short.weights + short.loading  # repacking: more than a step
        assert full.total - full.program == full.weights + full.kv_cache + full.step


def test_the_context_is_what_was_asked_for_and_never_more_than_the_models_own() -> None:
    assert context_length(LONG) == DEFAULT_SEQ_LEN < LONG.seq_len
    assert context_length(LONG, 100) == 100
    assert context_length(LONG, 1 << 20) == LONG.seq_len


PAGE_BYTES = KV_PAGE * 131_072  # of LONG on one node


def budget(n_nodes: int = 1, kv_gb: float | None = None, trusted: bool = False) -> KVBudget:
    kv_bytes = None if kv_gb is None else round(kv_gb * GB)
    return KVBudget(Plan.make(LONG, n_nodes), "f16", 4096, 16, kv_bytes, trusted)


def free_for(one: KVBudget, n_pages: int, nodes: range) -> int:
    """Memory of which nine tenths hold these nodes with so many pages."""
    needed = sum(node_memory(one.plan, node, 0).total + one.plan.kv_bytes(node, n_pages * KV_PAGE) for node in nodes)
    return -(-needed * 10 // 9)


def test_there_are_pages_for_all_sequences_where_memory_is_enough_or_not_known() -> None:
    assert budget().pages([0], 100 * GB) == budget().pages([0], None) == 16 * 64


@pytest.mark.parametrize("n_here", [1, 4])
def test_pages_fill_nine_tenths_of_what_is_free(n_here: int) -> None:
    one, nodes = budget(4), range(n_here)
    assert one.pages(nodes, free_for(one, 500, nodes)) == 500
    assert one.pages(nodes, free_for(one, 500, nodes) - n_here * PAGE_BYTES // 4) == 499
    assert one.pages(nodes, GB) == 64  # one answer of 4,096 positions, that nobody is refused for lack of a page


def test_kv_memory_is_that_of_each_node_and_no_more_than_is_free() -> None:
    assert budget(1, 2.0).pages([0], None) == 2 * GB // PAGE_BYTES
    assert budget(4, 2.0).pages(range(4), 100 * GB) == 4 * 2 * GB // PAGE_BYTES
    one = budget(1, 20.0)
    assert one.pages([0], free_for(one, 500, range(1))) == 500
    assert budget(1, 20.0, trusted=True).pages([0], GB) == 20 * GB // PAGE_BYTES


def test_less_than_one_answer_needs_is_refused_with_what_would_do() -> None:
    with pytest.raises(PlanError) as caught:
        check_kv_memory(budget(2, 0.2))
    assert str(caught.value) == (
        "kv_memory is 200.0 MB, and one answer of 4,096 positions needs 268.4 MB on each of 2 nodes: set kv_memory to "
        "at least that, or max_seq_len to 3008"
    )
    check_kv_memory(budget(2, 0.27))
    check_kv_memory(budget(2))


def test_the_room_of_the_cache_is_given_in_positions_and_answers() -> None:
    one = budget()
    assert kv_room(1024, 4096, 16, one.node_bytes(1024)) == (
        "KV cache: room for 65,536 positions (16 answers of 4,096), 8.6 GB on each node"
    )
    assert "(1 answer of 4,096; max_sequences is 16)" in kv_room(127, 4096, 16, one.node_bytes(127))
