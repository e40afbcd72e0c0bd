"""The Python API, as a program would use it."""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from gguf_writer import write_llama
from msgspec.structs import replace
from tiny import tiny_spec, tiny_tensors, tiny_tokenizer_data, write_tiny_model

import dllama_zmq
from dllama_zmq.errors import FormatError, PlanError, RequestError, RootLost, UsageError
from dllama_zmq.formats import write_m, write_t
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.sampling import Sampling
from dllama_zmq.spec import FloatType


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """A tiny Q40 model with its tokenizer beside it."""
    spec = tiny_spec(dim=128, hidden_dim=256, n_heads=4, n_kv_heads=2, weight_type=FloatType.Q40)
    write_tiny_model(tmp_path / "tiny.m", spec).close()
    write_t(tmp_path / "tiny.t", tiny_tokenizer_data())
    return tmp_path / "tiny.m"


def test_package_exports_what_it_documents() -> None:
    assert dllama_zmq.__all__ == ["Chat", "Client", "Grammar", "Sampling", "__version__", "connect", "load"]
    assert all(getattr(dllama_zmq, name) for name in dllama_zmq.__all__)
    assert dir(dllama_zmq) == dllama_zmq.__all__  # what a shell offers, before anything has been used
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dllama_zmq.nothing  # noqa: B018


def test_logits_are_float32_of_tokens_by_vocabulary(model_path: Path) -> None:
    with dllama_zmq.load(model_path, nodes=2) as model:
        logits = model.logits([1, 2, 3])
    assert logits.shape == (3, model.spec.vocab_size)
    assert logits.dtype == np.float32


@pytest.mark.parametrize("kernels", ["numpy", "simd"])
@pytest.mark.parametrize(
    ("tensor", "name", "row", "nodes"),
    [
        ("layers.1.ffn_norm", "blk.1.ffn_norm.weight", 0, 1),
        ("layers.1.ffn.down", "blk.1.ffn_down.weight", 3, 1),
        ("layers.1.ffn.down", "blk.1.ffn_down.weight", 3, 2),  # its first columns: the root's own
        ("head", "output.weight", -1, 2),  # the worker's rows
    ],
)
def test_a_model_with_an_infinite_weight_is_refused_by_file_and_tensor(
    tmp_path: Path, tensor: str, name: str, row: int, nodes: int, kernels: Literal["numpy", "simd"]
) -> None:
    spec = tiny_spec(dim=128, hidden_dim=256, weight_type=FloatType.Q40)
    tensors = dict(tiny_tensors(spec))
    kind = tensors[tensor].float_type
    data = tensors[tensor].data.copy()
    if kind is FloatType.Q40:
        data[row, :2] = (0x00, 0x7C)
    else:
        data[row, -4:] = (0x00, 0x00, 0x80, 0x7F)
    path = write_llama(tmp_path / "a.gguf", spec, (tensors | {tensor: BlockMatrix(data, kind)}).items())
    with pytest.raises(FormatError) as refused, dllama_zmq.load(path, nodes=nodes, kernels=kernels) as model:
        model.logits([1])
    assert str(refused.value) == (
        f"{path}: tensor {name} has values that are infinite or NaN. The file is damaged; copy or download it again."
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"sync": "q81"},
        {"kv_cache": "f8"},
        {"kernels": "foo"},
        {"weights": "q4"},
        {"sync": None},
        {"threads": 0},
        {"threads": 2.0},
        {"threads": 1 << 20},
        {"nodes": "2"},
        {"nodes": 0},
        {"nodes": True},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_by_its_name_as_on_the_command_line(wrong: dict[str, Any]) -> None:
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError) as caught:
        dllama_zmq.load("demo", **wrong)
    assert str(caught.value).startswith(f"{name} is {value!r}; expected ")


def test_max_seq_len_says_how_long_a_text_may_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tiny_model(tmp_path / "long.m", tiny_spec(seq_len=5000)).close()
    with dllama_zmq.load(tmp_path / "long.m", max_seq_len=4200) as model:
        assert model.logits([1] * 4200).shape[0] == 4200
        with pytest.raises(RequestError, match=r"room for 4200 \(max_seq_len, in cluster\.yaml or of load\)"):
            model.logits([1] * 4201)
    assert not caplog.messages
    dllama_zmq.load(tmp_path / "long.m", max_seq_len=9000).close()
    assert "max_seq_len is 9000" in caplog.messages[0]
    for wrong in (0, -1, "9"):
        with pytest.raises(UsageError, match="expected a whole number"):
            dllama_zmq.load(tmp_path / "long.m", max_seq_len=wrong)  # type: ignore[arg-type]


def test_generate_streams_pieces_that_join_to_the_text(model_path: Path) -> None:
    with dllama_zmq.load(model_path) as model:
        pieces = list(model.generate("once upon", 12, Sampling(0.8, seed=4)))
        again = "".join(model.generate("once upon", 12, Sampling(0.8, seed=4)))
    assert len(pieces) > 1
    assert "".join(pieces) == again


def test_a_loaded_model_says_that_it_has_no_log_probabilities(model_path: Path) -> None:
    with dllama_zmq.load(model_path) as model, pytest.raises(RequestError, match="a loaded model yields only text"):
        next(model.generate("once upon", 12, Sampling(logprobs=1)))


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_model_says_the_same_with_a_padded_vocabulary_as_without(tmp_path: Path, nodes: int) -> None:
    """Ids that are no tokens print nothing: here they would be the likeliest, if they could be chosen."""
    padded, n_ids = tiny_spec(n_kv_heads=4, vocab_size=288), 270
    tensors = {name: matrix.dequantize() for name, matrix in tiny_tensors(padded)}
    tensors["head"][n_ids:] *= 5
    for name, spec in (("padded", padded), ("plain", replace(padded, vocab_size=n_ids))):
        rows = {
            key: values[: spec.vocab_size] if key in ("embedding", "head") else values
            for key, values in tensors.items()
        }
        write_m(tmp_path / f"{name}.m", spec, ((key, BlockMatrix.from_array(rows[key], FloatType.F32)) for key in rows))
        write_t(tmp_path / f"{name}.t", tiny_tokenizer_data(n_ids))
    samplings = (Sampling(), Sampling(1.0, top_k=20, seed=3))
    with dllama_zmq.load(tmp_path / "padded.m", nodes=nodes) as model:
        texts = ["".join(model.generate("a cat", 20, how)) for how in samplings]
    with dllama_zmq.load(tmp_path / "plain.m") as model:
        assert texts == ["".join(model.generate("a cat", 20, how)) for how in samplings]


def test_a_tokenizer_that_may_be_another_models_is_logged(
    model_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dllama_zmq.load(model_path).close()
    assert caplog.messages == []
    write_tiny_model(tmp_path / "large.m", tiny_spec(vocab_size=400)).close()
    dllama_zmq.load(tmp_path / "large.m", tokenizer=tmp_path / "tiny.t").close()
    assert ["has 288 tokens, but" in text for text in caplog.messages] == [True]


def test_stopping_early_leaves_the_model_usable(model_path: Path) -> None:
    with dllama_zmq.load(model_path, nodes=2) as model:
        whole = "".join(model.generate("once upon", max_tokens=10))
        for _ in model.generate("a cat", max_tokens=10):
            break
        assert "".join(model.generate("once upon", max_tokens=10)) == whole


def test_closing_ends_every_thread(model_path: Path) -> None:
    before = set(threading.enumerate())
    model = dllama_zmq.load(model_path, nodes=4)
    model.close()
    model.close()
    assert {t for t in set(threading.enumerate()) - before if t.is_alive()} == set()


def test_a_forgotten_model_ends_when_it_is_collected(model_path: Path) -> None:
    before = set(threading.enumerate())
    model = dllama_zmq.load(model_path, nodes=2)
    del model
    gc.collect()
    assert {t for t in set(threading.enumerate()) - before if t.is_alive()} == set()


def test_refusals_say_what_to_do(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"tiny\.m: .* 1, 2 or 4 nodes"):
        dllama_zmq.load(model_path, nodes=8)
    with pytest.raises(PlanError, match="not a power of two"):
        dllama_zmq.load(model_path, nodes=3)
    with pytest.raises(FormatError, match="nowhere"):
        dllama_zmq.load(tmp_path / "nowhere.m")
    (tmp_path / "tiny.t").unlink()
    with dllama_zmq.load(model_path) as model:
        assert model.logits([1]).shape[0] == 1
        with pytest.raises(RequestError, match=r"has no tokenizer .*tiny\.t cannot be opened"):
            next(model.generate("a"))


def test_token_outside_the_vocabulary_is_refused_and_harms_nothing(model_path: Path) -> None:
    with dllama_zmq.load(model_path, nodes=2) as model:
        expected = model.logits([5])
        with pytest.raises(RequestError, match="token 288"):
            model.logits([288])
        assert np.array_equal(model.logits([5]), expected)


def test_client_without_a_root_says_so_before_long() -> None:
    with (
        dllama_zmq.Client("tcp://127.0.0.1:9") as client,
        pytest.raises(RootLost, match=r"nobody answers at tcp://127\.0\.0\.1:9;"),
    ):
        client.status(wait_s=0.3)


def test_client_refuses_an_address_that_is_none() -> None:
    with pytest.raises(UsageError, match="no address"):
        dllama_zmq.Client("http://127.0.0.1:5572")
