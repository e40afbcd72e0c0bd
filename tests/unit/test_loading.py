"""WeightStream cuts the regions of a plan into pieces; Loading puts exactly these together and takes nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.bus.messages import ArrayHead, Weights
from dllama_zmq.errors import ProtocolError
from dllama_zmq.formats import ModelFile
from dllama_zmq.root import weight_stream
from dllama_zmq.root.weight_stream import WeightStream
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import FloatType
from dllama_zmq.worker.loading import Loading


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    spec = tiny_spec(dim=128, hidden_dim=256, n_heads=8, n_kv_heads=2, weight_type=FloatType.Q40)
    with write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.m", spec) as file:
        yield file


def first_piece(loading_of: Plan, size: int) -> tuple[Weights, list[bytes]]:
    tensor = loading_of.shard_tensors()[0]
    return Weights(tensor.name, 0, [ArrayHead("u8", 1, size)]), [bytes(size)]


@pytest.mark.parametrize("piece_bytes", [1, 50, 1000, 512 * 1024], ids=lambda n: f"pieces of {n}")
@pytest.mark.parametrize("nodes", [2, 4])
def test_what_is_delivered_piece_by_piece_is_the_plans_regions(
    model: ModelFile, nodes: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_stream, "PIECE_BYTES", piece_bytes)  # a row of this model has 36 to 512 bytes
    plan = Plan.make(model.spec, nodes)
    for node in range(1, nodes) if piece_bytes > 1 else [nodes - 1]:
        sender, receiver = WeightStream(model, plan, node), Loading(plan, node)
        while (piece := sender.next_piece()) is not None:
            assert not receiver.complete
            assert len(piece[1][0]) <= piece_bytes
            receiver.take(*piece)
        assert receiver.complete
        assert receiver.received_bytes == sender.sent_bytes == sender.total_bytes == plan.weight_bytes(node)
        assert list(receiver.weights) == [tensor.name for tensor in plan.shard_tensors()]
        for tensor in plan.shard_tensors():
            expected = model.read(tensor.name, *plan.region(tensor, node))
            np.testing.assert_array_equal(receiver.weights[tensor.name].data, expected.data)


def test_all_nodes_regions_together_are_the_whole_tensor(model: ModelFile) -> None:
    plan = Plan.make(model.spec, 4)
    for tensor in plan.shard_tensors():
        seen = np.zeros(tensor.shape(model.spec), np.int64)
        for node in range(4):
            seen[plan.region(tensor, node)] += 1
        if tensor.axes[1] == "embed" and tensor.axes[0] in ("kv_heads", "one"):
            assert seen.min() >= 1  # KV heads are replicated where nodes outnumber them, norms are everywhere
        else:
            assert seen.min() == seen.max() == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tensor": "layers.0.attention.k"}, "weights of layers.0.attention.k from byte 64; expected"),
        ({"tensor": "no such tensor"}, "expected layers.0.attention.q from byte 64"),
        ({"offset": 0}, "from byte 0; expected layers.0.attention.q from byte 64"),
        ({"offset": 65}, "from byte 65; expected"),
        ({"offset": 1 << 60}, "expected layers.0.attention.q from byte 64"),
        ({"arrays": []}, "not one array of bytes"),
        ({"arrays": [ArrayHead("f32", 1, 16)]}, "not one array of bytes"),
        ({"arrays": [ArrayHead("u8", 1, 32)] * 2}, "not one array of bytes"),
    ],
)
def test_anything_but_the_next_piece_is_refused_and_changes_nothing(
    model: ModelFile, change: dict[str, object], says: str
) -> None:
    plan = Plan.make(model.spec, 2)
    loading = Loading(plan, 1)
    loading.take(*first_piece(plan, 64))
    fields = {"tensor": "layers.0.attention.q", "offset": 64, "arrays": [ArrayHead("u8", 1, 64)]} | change
    with pytest.raises(ProtocolError, match=says):
        loading.take(Weights(**fields), [bytes(64)])  # type: ignore[arg-type]
    assert loading.received_bytes == 64
    assert not loading.complete


def test_an_empty_piece_is_refused(model: ModelFile) -> None:
    plan = Plan.make(model.spec, 2)
    with pytest.raises(ProtocolError, match="not one array of bytes"):
        Loading(plan, 1).take(*first_piece(plan, 0))


def test_a_piece_beyond_the_region_is_refused(model: ModelFile) -> None:
    plan = Plan.make(model.spec, 2)
    size = plan.region_bytes(plan.shard_tensors()[0], 1)
    with pytest.raises(ProtocolError, match=f"{size + 1} bytes of .*; this node's region has {size}"):
        Loading(plan, 1).take(*first_piece(plan, size + 1))


def test_a_piece_after_the_last_is_refused(tmp_path: Path) -> None:
    with write_tiny_model(tmp_path / "tiny.m") as file:
        plan = Plan.make(file.spec, 2)
        sender, receiver = WeightStream(file, plan, 1), Loading(plan, 1)
        while (piece := sender.next_piece()) is not None:
            receiver.take(*piece)
        with pytest.raises(ProtocolError, match="after the last tensor"):
            receiver.take(*first_piece(plan, 4))
