"""The plan: what every node holds, which node counts are possible, and the bytes that follow from it."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace
from tiny import tiny_spec

from dllama_zmq.errors import FormatError, PlanError
from dllama_zmq.models import tensor_table
from dllama_zmq.shapes import shape
from dllama_zmq.sharding import (
    MAX_NODES,
    Plan,
    node_memory,
    possible_node_counts,
)
from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    """Sound models whose heads, FFN and vocabulary may each allow other node counts.

    Rows that are not whole blocks of 256 are Q80, as in files that llama.cpp wrote.
    """
    weight_type = draw(st.sampled_from(FloatType))
    n_kv_heads = draw(st.integers(1, 8))
    n_heads = n_kv_heads * draw(st.sampled_from([1, 2, 3, 4, 8]))
    head_dim = draw(st.sampled_from([2, 8, 16, 24, 32, 80]))
    hidden_dim = weight_type.cut_values * draw(st.sampled_from([1, 3, 8, 16, 20, 32]))
    rows = {"attention.o": n_heads * head_dim, "ffn.down": hidden_dim}
    broken = [name for name, width in rows.items() if width % weight_type.block_values]
    try:
        return tiny_spec(
            dim=weight_type.block_values * draw(st.integers(1, 4 if weight_type.block_values <= 32 else 2)),
            hidden_dim=hidden_dim,
            n_layers=1,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            vocab_size=draw(st.integers(1, 300)),
            weight_type=weight_type,
            stored=tuple((f"layers.0.{name}", FloatType.Q80) for name in broken),
        )
    except FormatError:
        assume(False)
        raise


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Equal and uneven plans over any number of nodes that is possible."""
    spec = draw(specs())
    n_nodes = draw(st.sampled_from(possible_node_counts(spec)))
    shares = draw(st.just(n_nodes) | st.lists(st.integers(1, 9), min_size=n_nodes, max_size=n_nodes))
    try:
        return Plan.make(spec, shares)
    except PlanError:
        assume(isinstance(shares, int))  # only uneven shares may leave a node nothing
        raise


def holders(plan: Plan, tensor: TensorSpec) -> np.ndarray:
    """How many nodes hold each value of `tensor`."""
    count = np.zeros(tensor.shape(plan.spec), np.int8)
    for node in range(plan.n_nodes):
        count[plan.region(tensor, node)] += 1
    return count


@given(plans())
def test_every_tensor_lies_whole_on_the_nodes_and_every_split_one_exactly_once(plan):
    for tensor in tensor_table(plan.spec):
        count = holders(plan, tensor)
        if tensor.root_only or {"heads", "ffn", "vocab"} & set(tensor.axes):
            assert (count == 1).all(), tensor.name
        elif "kv_heads" in tensor.axes:
            assert (count >= 1).all(), tensor.name
        else:
            assert (count == plan.n_nodes).all(), tensor.name


@given(plans())
def test_the_kv_head_of_every_query_head_is_on_its_node_and_no_other_one_is(plan):
    head_dim, group = plan.spec.head_dim, plan.spec.n_heads // plan.spec.n_kv_heads
    for node, part in enumerate(plan.slices):
        kv_heads = range(part.kv_heads.start // head_dim, part.kv_heads.stop // head_dim)
        read = [kv_heads[local] for local in plan.kv_of_head(node)]
        heads = range(part.heads.start // head_dim, part.heads.stop // head_dim)
        assert read == [head // group for head in heads]
        assert set(kv_heads) == set(read)
        assert plan.n_kv_heads(node) == len(kv_heads)


@given(plans())
def test_every_cut_is_of_whole_heads_and_whole_blocks(plan):
    block = plan.spec.weight_type.cut_values
    for part in plan.slices:
        for heads in (part.heads, part.kv_heads):
            assert heads.start % plan.spec.head_dim == heads.stop % plan.spec.head_dim == 0
        for columns in (part.heads, part.ffn):
            assert columns.start % block == columns.stop % block == 0


@given(specs())
def test_equal_nodes_hold_equal_parts_and_the_same_tree_of_segments(spec):
    counts = possible_node_counts(spec)
    for n_nodes in counts:
        plan = Plan.make(spec, n_nodes)
        for axis in ("heads", "ffn"):
            widths = [part.along(axis).stop - part.along(axis).start for part in plan.slices]
            assert widths == [spec.axis_width(axis) // n_nodes] * n_nodes
        rows = [part.vocab.stop - part.vocab.start for part in plan.slices]
        assert max(rows) - min(rows) <= 1
        assert plan.segments * n_nodes == max(counts)


@given(specs(), st.integers(1, 130))
def test_a_node_count_is_possible_or_refused_with_those_that_are(spec, n_nodes):
    counts = possible_node_counts(spec)
    block = spec.weight_type.cut_values
    splits = [spec.n_heads % n_nodes, spec.q_dim % (n_nodes * block), spec.hidden_dim % (n_nodes * block)]
    possible = n_nodes.bit_count() == 1 and n_nodes <= MAX_NODES and not any(splits) and spec.vocab_size >= n_nodes
    assert (n_nodes in counts) == possible
    if not possible:
        with pytest.raises(PlanError) as refusal:
            Plan.make(spec, n_nodes)
        sentence = str(refusal.value).rpartition("This model can be split over ")[2]
        assert [int(number) for number in re.findall(r"\d+", sentence)] == counts


@pytest.mark.parametrize(
    ("changes", "n_nodes", "reason"),
    [
        ({}, 3, "3 nodes are not a power of two. This model can be split over 1, 2 or 4 nodes."),
        ({}, 0, "0 nodes are not a power of two."),
        ({}, 8, "4 heads cannot be split over 8 nodes. This model can be split over 1, 2 or 4 nodes."),
        ({"n_heads": 64, "dim": 128, "hidden_dim": 256}, 128, "This version runs at most 64 nodes, not 128."),
        (
            {"hidden_dim": 96, "weight_type": FloatType.Q40},
            2,
            "96 columns of FFN over 2 nodes are 48 each, not a multiple of 32. This model can be split over 1 node.",
        ),
        (
            {"hidden_dim": 256, "weight_type": FloatType.Q80},
            4,
            "64 columns of heads over 4 nodes are 16 each, not a multiple of 32. "
            "This model can be split over 1 or 2 nodes.",
        ),
        ({"vocab_size": 3}, 4, "A vocabulary of 3 cannot be split over 4 nodes."),
    ],
)
def test_a_refusal_says_what_is_in_the_way_and_which_counts_are_possible(changes, n_nodes, reason):
    with pytest.raises(PlanError, match=re.escape(reason)):
        Plan.make(tiny_spec(**changes), n_nodes)


def test_nodes_that_outnumber_kv_heads_hold_one_each_and_share_them_as_neighbours():
    plan = Plan.make(tiny_spec(n_heads=8, n_kv_heads=2, head_dim=16), 8)
    assert [part.kv_heads.start // 16 for part in plan.slices] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [plan.n_kv_heads(node) for node in range(8)] == [1] * 8
    assert [plan.kv_of_head(node) for node in range(8)] == [[0]] * 8


def test_a_node_whose_query_heads_straddle_two_groups_holds_both_their_kv_heads():
    plan = Plan.make(tiny_spec(n_heads=6, n_kv_heads=3, head_dim=16), 2)  # heads 0, 1 | 2, 3 | 4, 5 by KV head
    assert [plan.kv_of_head(node) for node in range(2)] == [[0, 0, 1], [0, 1, 1]]
    assert [part.kv_heads for part in plan.slices] == [slice(0, 32), slice(16, 48)]


@pytest.mark.parametrize("weight_type", list(FloatType))
def test_uneven_nodes_hold_parts_in_proportion_to_their_shares(weight_type):
    sizes = {"dim": 256, "hidden_dim": 512, "n_heads": 8, "n_kv_heads": 8, "head_dim": 64, "vocab_size": 800}
    spec = tiny_spec(**sizes, weight_type=weight_type)
    plan = Plan.make(spec, [4, 2, 1, 1])
    assert [part.heads for part in plan.slices] == [slice(0, 256), slice(256, 384), slice(384, 448), slice(448, 512)]
    assert [part.ffn for part in plan.slices] == [slice(0, 256), slice(256, 384), slice(384, 448), slice(448, 512)]
    assert [part.vocab for part in plan.slices] == [slice(0, 400), slice(400, 600), slice(600, 700), slice(700, 800)]
    assert plan.segments == 1


@pytest.mark.parametrize(
    ("shares", "what"), [([9, 1, 1, 9], "heads"), ([100, 100, 1, 100], "heads"), ([0, 1], "heads")]
)
def test_shares_that_leave_a_node_nothing_are_refused(shares, what):
    with pytest.raises(PlanError, match=f"{', '.join(map(str, shares))} leave a node without any of the {what}"):
        Plan.make(tiny_spec(n_heads=4, n_kv_heads=1), shares)


@pytest.mark.parametrize("shares", [[3, 1], [1, 3], [5, 11]])
def test_uneven_nodes_hold_whole_blocks_where_a_head_is_less_than_one(shares):
    plan = Plan.make(tiny_spec(n_heads=8, head_dim=16, weight_type=FloatType.Q40), shares)  # two heads to a block
    first, second = plan.slices
    assert first.heads.stop == second.heads.start == 32 * (4 * shares[0] // sum(shares))
    assert all(plan.weight_bytes(node) for node in range(2))


def test_only_the_root_needs_the_embedding():
    plan = Plan.make(tiny_spec(), 4)
    embedding = tensor_table(plan.spec)[0]
    regions = [plan.region(embedding, node) for node in range(4)]
    assert [rows.stop - rows.start for rows, _ in regions] == [288, 0, 0, 0]
    assert "embedding" not in [tensor.name for tensor in plan.shard_tensors()]


@given(plans())
def test_a_nodes_bytes_are_those_of_the_blocks_in_which_its_values_lie(plan):
    for node in range(plan.n_nodes):
        held = {}
        for tensor in plan.shard_tensors():
            kind, (rows, columns) = tensor.float_type, plan.region(tensor, node)
            blocks = {column // kind.block_values for column in range(columns.start, columns.stop)}
            held[tensor.name] = (rows.stop - rows.start) * len(blocks) * kind.block_bytes
            assert plan.region_bytes(tensor, node) == held[tensor.name], tensor.name
        assert plan.weight_bytes(node) == sum(held.values())
        assert plan.weights(node).head == held.pop("head")
        assert plan.weights(node).largest == max(held.values())


def test_columns_are_cut_by_32_within_blocks_of_256_and_a_region_has_whole_blocks():
    spec = tiny_spec(dim=256, hidden_dim=512, n_heads=8, weight_type=FloatType.Q4_K)
    assert possible_node_counts(spec) == [1, 2, 4, 8]
    tensors = {tensor.name: tensor for tensor in tensor_table(spec)}
    o, down = tensors["layers.0.attention.o"], tensors["layers.0.ffn.down"]
    plan = Plan.make(spec, 8)
    assert plan.region(o, 3) == (slice(0, 256), slice(96, 128))
    assert plan.region_bytes(o, 3) == 256 * 144
    assert plan.region(down, 5) == (slice(0, 256), slice(320, 384))
    assert plan.region_bytes(down, 5) == 256 * 144
    uneven = Plan.make(spec, [3, 6, 4, 3])
    assert uneven.region(down, 1) == (slice(0, 256), slice(96, 288))
    assert [uneven.region_bytes(down, node) for node in range(4)] == [256 * n * 144 for n in (1, 2, 1, 1)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": 96}, "layers.0.attention.q has 96 columns, not whole Q5_K blocks of 256."),
        ({"n_heads": 2, "head_dim": 80}, "layers.0.attention.o has 160 columns, not whole Q5_K blocks of 256."),
        ({"hidden_dim": 800}, "layers.0.ffn.down has 800 columns, not whole Q5_K blocks of 256."),
        (
            {"weight_type": FloatType.Q40, "hidden_dim": 800, "stored": (("layers.1.ffn.down", FloatType.Q6_K),)},
            "layers.1.ffn.down has 800 columns, not whole Q6_K blocks of 256.",
        ),
    ],
)
def test_a_tensor_whose_rows_are_not_whole_blocks_of_256_is_refused_by_name(changes, said):
    spec = tiny_spec(**{"dim": 256, "hidden_dim": 512, "n_heads": 8, "weight_type": FloatType.Q5_K} | changes)
    with pytest.raises(PlanError, match=f"^{re.escape(said)}$"):
        Plan.make(spec, 1)
    with pytest.raises(PlanError, match=f"^{re.escape('a.gguf: ' + said)}$"):
        Plan.make(spec, 1, "a.gguf")


def test_a_tensor_of_another_type_may_have_rows_that_are_not_blocks_of_256():
    stored = tuple((f"layers.{i}.ffn.down", FloatType.Q80) for i in range(2))
    spec = tiny_spec(dim=256, hidden_dim=800, n_heads=8, weight_type=FloatType.Q4_K, stored=stored)
    assert Plan.make(spec, 1).n_nodes == 1


def test_llama_3_8b_takes_a_quarter_of_its_file_on_each_of_four_nodes():
    plan = Plan.make(shape("llama3-8b"), 4)
    embedding, norms = 128256 * 4096 * 4, 65 * 4096 * 4
    split = 6_323_781_632 - embedding - norms  # of the published size of its file
    assert [plan.weight_bytes(node) for node in range(4)] == [split // 4 + norms] * 4
    # keys and values, 32 layers, 2 of 8 heads of 128, float32
    assert plan.kv_bytes(0, n_positions=8192) == 2 * 32 * 8192 * 2 * 128 * 2


def test_a_node_of_sixteen_keeps_one_kv_head_of_llama_3_8b():
    plan = Plan.make(shape("llama3-8b"), 16)
    # In whole pages of 64 positions.
    assert {plan.kv_bytes(node, n_positions=1000) for node in range(16)} == {2 * 32 * 1024 * 128 * 2}


def n_calls(run: Callable[[], None]) -> int:
    """How many functions in Python `run` calls: what it computes, whatever the machine does meanwhile."""
    events: Counter[str] = Counter()
    before = sys.getprofile()
    sys.setprofile(lambda frame, event, argument: events.update([event]))
    try:
        run()
    finally:
        sys.setprofile(before)
    return events["call"]


def test_a_large_models_numbers_that_each_token_and_each_status_needs_are_computed_once() -> None:
    spec = tiny_spec(n_layers=64, arch="qwen3moe", n_experts=64, n_active_experts=2)
    spec = replace(spec, stored=tuple((f"layers.{i}.x{j}", FloatType.F16) for i in range(64) for j in range(100)))
    plan = Plan.make(spec, 2)

    def ask() -> None:
        node_memory(plan, 1, 64)
        hash(spec)

    assert n_calls(ask) > 64 * 64
    assert n_calls(ask) < 64
    assert replace(spec, stored=()) != spec
