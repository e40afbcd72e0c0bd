"""What a WeightStream offers and sends, a Loading puts together to the plan's regions; it takes nothing else."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import until
from folders import arrays_of, write_hf
from gguf_writer import write_llama
from msgspec.structs import replace
from tiny import tiny_spec, tiny_tensors, write_tiny_model

from dllama_zmq.bus.messages import ArrayHead, Need, Offer, Weights
from dllama_zmq.errors import ProtocolError
from dllama_zmq.formats import ModelFile, open_model
from dllama_zmq.kept_files import KeptFiles
from dllama_zmq.root import slices as root_slices
from dllama_zmq.root.slices import Slices
from dllama_zmq.root.weight_stream import WeightStream
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import FloatType
from dllama_zmq.worker.loading import Loading
from dllama_zmq.worker.own_model import OwnModel

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, n_kv_heads=2, weight_type=FloatType.Q40)
FIRST = "layers.0.attention.q"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.m", SPEC) as file:
        yield file


def a_stream(model: ModelFile, plan: Plan, node: int) -> WeightStream:
    """Of a root that has hashed all slices."""
    slices, n_slices = Slices(model, plan), len(plan.shard_tensors())
    until(lambda: len(slices.known(node)) == n_slices, 20, "all slices to be hashed")
    return WeightStream(model, plan, node, slices)


def deliver(stream: WeightStream, loading: Loading, most_bytes: int = 1 << 62) -> None:
    """Bring a worker what it needs, until there is no more of it, or `most_bytes` have been sent."""
    while stream.sent_bytes < most_bytes:
        stream.grant(1)
        said = stream.next_message()
        if said is None:
            return
        message, frames = said
        if isinstance(message, Offer):
            loading.offered(message)
            if (need := loading.to_ask()) is not None:
                stream.need(need)
        else:
            assert isinstance(message, Weights)
            loading.take(message, frames)


def answer_the_next_need(stream: WeightStream, loading: Loading) -> None:
    """Send what a worker asks for while its weights are repacked, which another thread does."""
    needs: list[Need | None] = [None]

    def is_asked_for() -> bool:
        needs[0] = loading.to_ask()
        return needs[0] is not None

    until(is_asked_for, 20, "a slice to be asked for")
    assert needs[0] is not None
    stream.need(needs[0])
    deliver(stream, loading)


def assert_is_the_plans(loading: Loading, model: ModelFile, plan: Plan, node: int) -> None:
    for tensor in plan.shard_tensors():
        matrix = loading.slice(tensor.name)
        own = model.read(tensor.name, *plan.region(tensor, node))
        assert (matrix.float_type, matrix.shape, matrix.before) == (tensor.float_type, own.shape, own.before)
        np.testing.assert_array_equal(matrix.data, own.data)


def a_loading(plan: Plan, sha256: str = "0" * 64) -> Loading:
    """Of node 1, which has been offered its first slice and needs it."""
    loading = Loading(plan, 1)
    loading.offered(Offer([(FIRST, sha256)]))
    assert loading.to_ask() is not None
    return loading


def piece(size: int, offset: int = 0) -> tuple[Weights, list[bytes]]:
    return Weights(FIRST, offset, [ArrayHead("u8", 1, size)]), [bytes(size)]


@pytest.mark.parametrize("piece_bytes", [1, 50, 1000, 512 * 1024], ids=lambda n: f"pieces of {n}")
@pytest.mark.parametrize("nodes", [2, 4])
def test_the_pieces_of_a_delivery_are_the_plans_regions(
    model: ModelFile, nodes: int, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root_slices, "PIECE_BYTES", piece_bytes)  # a row of this model has 36 to 512 bytes
    plan = Plan.make(model.spec, nodes)
    for node in range(1, nodes) if piece_bytes > 1 else [nodes - 1]:
        stream, loading = a_stream(model, plan, node), Loading(plan, node)
        deliver(stream, loading)
        assert stream.complete
        assert loading.received_bytes == stream.sent_bytes == stream.total_bytes == plan.weight_bytes(node)
        assert stream.kept_bytes == 0
        assert_is_the_plans(loading, model, plan, node)


@pytest.mark.parametrize("piece_bytes", [100, 144, 512 * 1024], ids=lambda n: f"pieces of {n}")
@pytest.mark.parametrize("kind", [FloatType.Q4_K, FloatType.Q6_K])
def test_columns_within_a_block_come_as_the_whole_block(
    tmp_path: Path, kind: FloatType, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root_slices, "PIECE_BYTES", piece_bytes)
    spec = tiny_spec(dim=256, hidden_dim=512, n_layers=1, n_heads=8, n_kv_heads=2, weight_type=kind)
    whole = dict(tiny_tensors(spec))
    with open_model(write_llama(tmp_path / "k.gguf", spec, whole.items())) as model:
        plan = Plan.make(model.spec, 8)
        for node in (3, 4):
            stream, loading = a_stream(model, plan, node), Loading(plan, node)
            deliver(stream, loading)
            assert loading.received_bytes == stream.total_bytes == plan.weight_bytes(node)
            for tensor in plan.shard_tensors():
                rows, columns = plan.region(tensor, node)
                matrix, (name, size) = loading.slice(tensor.name), (tensor.name, tensor.float_type.block_values)
                n_blocks = (columns.stop - 1) // size + 1 - columns.start // size
                assert matrix.data.shape[1] == n_blocks * tensor.float_type.block_bytes, name
                assert np.array_equal(matrix.dequantize(), whole[name].dequantize()[rows, columns]), name


@pytest.mark.parametrize("first_byte", [0, 1, 35, 36, 37, 1000, 4607])
def test_a_slice_is_sent_from_any_byte_on(model: ModelFile, first_byte: int) -> None:
    plan = Plan.make(model.spec, 2)
    tensor = plan.shard_tensors()[0]
    whole = model.read(tensor.name, *plan.region(tensor, 1)).contiguous().data.tobytes()
    found = list(root_slices.pieces(model, plan, 1, tensor, first_byte))
    assert found[0][0] == first_byte
    assert b"".join(data.tobytes() for _, data in found) == whole[first_byte:]


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


# --- what a wrong root sends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tensor": "layers.0.attention.k"}, "weights of layers.0.attention.k from byte 64; expected"),
        ({"tensor": "no such tensor"}, f"expected {FIRST} from byte 64"),
        ({"offset": 0}, f"from byte 0; expected {FIRST} from byte 64"),
        ({"offset": 65}, "from byte 65; expected"),
        ({"offset": 1 << 60}, f"expected {FIRST} from byte 64"),
        ({"arrays": []}, "not one array of bytes"),
        ({"arrays": [ArrayHead("f32", 1, 16)]}, "not one array of bytes"),
        ({"arrays": [ArrayHead("u8", 1, 32)] * 2}, "not one array of bytes"),
    ],
)
def test_anything_but_the_next_piece_is_refused_and_changes_nothing(
    model: ModelFile, change: dict[str, object], says: str
) -> None:
    loading = a_loading(Plan.make(model.spec, 2))
    loading.take(*piece(64))
    fields = {"tensor": FIRST, "offset": 64, "arrays": [ArrayHead("u8", 1, 64)]} | change
    with pytest.raises(ProtocolError, match=says):
        loading.take(Weights(**fields), [bytes(64)])  # type: ignore[arg-type]
    assert loading.received_bytes == 64


def test_an_empty_piece_is_refused(model: ModelFile) -> None:
    with pytest.raises(ProtocolError, match="not one array of bytes"):
        a_loading(Plan.make(model.spec, 2)).take(*piece(0))


def test_a_piece_beyond_the_region_is_refused(model: ModelFile) -> None:
    plan = Plan.make(model.spec, 2)
    size = plan.region_bytes(plan.shard_tensors()[0], 1)
    with pytest.raises(ProtocolError, match=f"{size + 1} bytes of .*; this node's region has {size}"):
        a_loading(plan).take(*piece(size + 1))


def test_what_was_not_asked_for_is_refused(model: ModelFile) -> None:
    plan = Plan.make(model.spec, 2)
    with pytest.raises(ProtocolError, match=f"weights of {FIRST}, which were not asked for"):
        Loading(plan, 1).take(*piece(64))
    stream, loading = a_stream(model, plan, 1), Loading(plan, 1)
    deliver(stream, loading)
    with pytest.raises(ProtocolError, match="which were not asked for"):
        loading.take(*piece(64))


def test_a_slice_of_other_bytes_than_those_offered_is_refused(model: ModelFile) -> None:
    plan = Plan.make(model.spec, 2)
    size = plan.region_bytes(plan.shard_tensors()[0], 1)
    sound = a_loading(plan, hashlib.sha256(bytes(size)).hexdigest())
    sound.take(*piece(size))
    assert not sound.slice(FIRST).data.any()
    with pytest.raises(ProtocolError, match=f"weights of {FIRST} whose SHA-256 is not the one that was offered"):
        a_loading(plan, hashlib.sha256(bytes(size + 1)).hexdigest()).take(*piece(size))


@pytest.mark.parametrize(
    "names",
    [
        ["layers.0.attention.k"],
        [FIRST, FIRST],
        [FIRST, "layers.0.attention.v"],
        ["no such tensor"],
        ["embedding"],
        [f"tensor {i}" for i in range(4096)],
    ],
    ids=["not the first", "twice", "a gap", "unknown", "the root's own", "too many"],
)
def test_an_offer_of_anything_but_the_next_slices_is_refused(model: ModelFile, names: list[str]) -> None:
    with pytest.raises(ProtocolError, match="which are not the next slices"):
        Loading(Plan.make(model.spec, 2), 1).offered(Offer([(name, "0" * 64) for name in names]))


def test_who_waits_for_a_slice_gets_the_error_that_ends_the_loading(model: ModelFile) -> None:
    loading = Loading(Plan.make(model.spec, 2), 1)
    timer = threading.Timer(0.05, loading.end, [ProtocolError("a broken root")])
    timer.start()
    with pytest.raises(ProtocolError, match="a broken root"):
        loading.slice(FIRST)
    timer.join()


# --- slices that need not be sent -------------------------------------------------------------------------------------


def test_what_came_once_is_not_asked_for_again(model: ModelFile, tmp_path: Path) -> None:
    plan = Plan.make(model.spec, 2)
    for sent in (plan.weight_bytes(1), 0):
        stream, loading = a_stream(model, plan, 1), Loading(plan, 1, cache=KeptFiles(tmp_path))
        deliver(stream, loading)
        assert stream.complete
        assert (stream.sent_bytes, stream.kept_bytes) == (sent, plan.weight_bytes(1) - sent)
        assert_is_the_plans(loading, model, plan, 1)


def test_a_broken_delivery_resumes_at_the_byte_where_it_broke(
    model: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root_slices, "PIECE_BYTES", 1000)
    plan = Plan.make(model.spec, 2)
    half = plan.weight_bytes(1) // 2
    first, broken = a_stream(model, plan, 1), Loading(plan, 1, cache=KeptFiles(tmp_path))
    deliver(first, broken, half)
    broken.close()
    assert list(tmp_path.glob("*.part"))  # it broke within a slice
    second, loading = a_stream(model, plan, 1), Loading(plan, 1, cache=KeptFiles(tmp_path))
    deliver(second, loading)
    assert second.sent_bytes == plan.weight_bytes(1) - first.sent_bytes
    assert_is_the_plans(loading, model, plan, 1)
    assert not list(tmp_path.glob("*.part"))


def test_a_beginning_that_was_altered_is_thrown_away(
    model: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(root_slices, "PIECE_BYTES", 1000)
    plan = Plan.make(model.spec, 2)
    broken = Loading(plan, 1, cache=KeptFiles(tmp_path))
    deliver(a_stream(model, plan, 1), broken, plan.weight_bytes(1) // 2)
    broken.close()
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(ProtocolError, match="whose SHA-256 is not the one that was offered"):
        deliver(a_stream(model, plan, 1), Loading(plan, 1, cache=KeptFiles(tmp_path)))
    loading = Loading(plan, 1, cache=KeptFiles(tmp_path))
    deliver(a_stream(model, plan, 1), loading)
    assert_is_the_plans(loading, model, plan, 1)


def test_a_file_that_was_altered_is_asked_for_after_all(model: ModelFile, tmp_path: Path) -> None:
    plan = Plan.make(model.spec, 2)
    deliver(a_stream(model, plan, 1), Loading(plan, 1, cache=KeptFiles(tmp_path)))
    altered = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(altered.read_bytes())
    data[len(data) // 2] ^= 1
    altered.write_bytes(data)
    stream, loading = a_stream(model, plan, 1), Loading(plan, 1, cache=KeptFiles(tmp_path))
    deliver(stream, loading)
    assert stream.sent_bytes == 0  # it is read when it is to be repacked
    thread = threading.Thread(target=assert_is_the_plans, args=(loading, model, plan, 1))
    thread.start()
    answer_the_next_need(stream, loading)
    thread.join(20)
    assert not thread.is_alive()
    assert stream.sent_bytes == len(data)
    assert hashlib.sha256(altered.read_bytes()).hexdigest() == altered.name


def test_a_copy_of_the_model_is_read_and_nothing_is_sent_or_kept(model: ModelFile, tmp_path: Path) -> None:
    plan = Plan.make(model.spec, 2)
    own = OwnModel.open(model.path, plan, 1)
    assert own is not None
    stream, loading = a_stream(model, plan, 1), Loading(plan, 1, own, KeptFiles(tmp_path))
    deliver(stream, loading)
    assert_is_the_plans(loading, model, plan, 1)
    assert (stream.sent_bytes, list(tmp_path.iterdir())) == (0, [])


def test_a_slice_whose_bytes_nobody_needs_is_neither_read_nor_waited_for(model: ModelFile) -> None:
    """Its tiles are kept. Of the first slice the hash is compared before anything waits for it."""
    plan, names = Plan.make(model.spec, 2), [tensor.name for tensor in Plan.make(model.spec, 2).shard_tensors()]
    stream, loading = a_stream(model, plan, 1), Loading(plan, 1, OwnModel.open(model.path, plan, 1))
    deliver(stream, loading)
    sources = [loading.slice(name).source for name in names]
    assert sources == stream._slices.known(1)
    assert loading.held_bytes == 0
    alone = Loading(plan, 1)  # without a copy, and offered slices that nobody sends
    alone.offered(Offer(list(zip(names, sources, strict=True))))
    matrix = alone.slice(names[0])
    alone.end(ProtocolError("the root is gone"))
    with pytest.raises(ProtocolError, match="the root is gone"):
        matrix.data  # noqa: B018


@pytest.mark.parametrize("differs", ["everywhere", "at its end"])
def test_a_copy_that_differs_is_not_used_from_there_on(model: ModelFile, tmp_path: Path, differs: str) -> None:
    plan = Plan.make(model.spec, 2)
    other = tmp_path / "other.m"
    if differs == "everywhere":
        write_tiny_model(other, SPEC, seed=99).close()
    else:
        data = bytearray(model.path.read_bytes())
        data[-1] ^= 1  # in the last row of the head, which is node 1's
        other.write_bytes(data)
    stream, loading = a_stream(model, plan, 1), Loading(plan, 1, OwnModel.open(other, plan, 1))
    deliver(stream, loading)
    assert stream.sent_bytes == (plan.weight_bytes(1) if differs == "everywhere" else 0)
    thread = threading.Thread(target=assert_is_the_plans, args=(loading, model, plan, 1))
    thread.start()
    if differs == "at its end":
        answer_the_next_need(stream, loading)
    thread.join(20)
    assert not thread.is_alive()
    assert stream.complete


def test_a_copy_whose_floats_the_root_quantizes_is_quantized_too(tmp_path: Path) -> None:
    with write_tiny_model(tmp_path / "floats.m", replace(SPEC, weight_type=FloatType.F32)) as floats:
        write_hf(tmp_path / "hf", floats.spec, arrays_of(floats))
    with open_model(tmp_path / "hf", FloatType.Q40) as roots:
        plan = Plan.make(roots.spec, 2)
        own = OwnModel.open(tmp_path / "hf", plan, 1)
        assert own is not None
        stream, loading = a_stream(roots, plan, 1), Loading(plan, 1, own)
        deliver(stream, loading)
        assert_is_the_plans(loading, roots, plan, 1)
        assert stream.sent_bytes == 0


def test_a_copy_with_weights_that_are_no_numbers_is_left_with_a_line_in_the_log(
    model: ModelFile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan.make(model.spec, 2)
    data = bytearray(model.path.read_bytes())
    data[-18:-16] = b"\x00\x7e"  # the scale of the last block: NaN
    (tmp_path / "nan.m").write_bytes(data)
    own = OwnModel.open(tmp_path / "nan.m", plan, 1)
    assert own is not None
    assert own.read(plan.shard_tensors()[-1], "0" * 64) is None
    assert "the weights come over the bus: " in caplog.text
    assert "infinite or NaN" in caplog.text
    own.close()


def test_a_file_of_another_shape_and_none_at_all_are_no_copy(model: ModelFile, tmp_path: Path) -> None:
    plan = Plan.make(model.spec, 2)
    write_tiny_model(tmp_path / "wide.m", tiny_spec(dim=256, weight_type=FloatType.Q40)).close()
    assert OwnModel.open(tmp_path / "wide.m", plan, 1) is None
    assert OwnModel.open(tmp_path / "nothing.m", plan, 1) is None
