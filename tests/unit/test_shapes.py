"""The published shapes: their totals are those that the reference program prints."""

from __future__ import annotations

import pytest

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.models import tensor_table
from dllama_zmq.shapes import SHAPES, shape
from dllama_zmq.spec import FloatType, RopeScaling


def data_bytes(name: str, weight_type: FloatType = FloatType.Q40) -> int:
    spec = shape(name, weight_type)
    return sum(tensor.nbytes(spec) for tensor in tensor_table(spec))


# distributed-llama issues #108, #80 and #59: "Loaded ... kB"
@pytest.mark.parametrize(
    ("name", "n_bytes"),
    [("llama3-8b", 6_323_781_632), ("llama2-7b", 4_142_416 * 1024), ("tinyllama", 824_584 * 1024)],
)
def test_a_q40_file_of_a_shape_has_the_published_size(name: str, n_bytes: int) -> None:
    assert data_bytes(name) == n_bytes


# Weights as published, the embedding counted once more where it is tied to the head (Llama 3.2, Qwen3 0.6B).
@pytest.mark.parametrize(
    ("name", "n_weights"),
    [
        ("tinyllama", 1_100_048_384),
        ("llama2-7b", 6_738_415_616),
        ("llama2-13b", 13_015_864_320),
        ("llama2-70b", 68_976_648_192),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("llama3.1-8b", 8_030_261_248),
        ("llama3.2-1b", 1_235_814_400 + 128_256 * 2048),
        ("llama3.2-3b", 3_212_749_824 + 128_256 * 3072),
        ("llama3.3-70b", 70_553_706_496),
        ("mistral-7b", 7_241_732_096),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920 + 151_936 * 1024),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("deepseek-r1-distill-qwen-7b", 7_615_616_512),
    ],
)
def test_a_shape_has_the_published_number_of_weights(name: str, n_weights: int) -> None:
    assert data_bytes(name, FloatType.F32) == 4 * n_weights


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("weight_type", list(FloatType))
def test_every_shape_is_a_sound_model_in_every_type(name: str, weight_type: FloatType) -> None:
    spec = shape(name, weight_type)
    spec.check()
    assert spec.weight_type is weight_type


def test_llama_3_turns_slower_and_llama_3_2_stretches_low_frequencies() -> None:
    assert shape("llama2-7b").rope.theta == 10000
    assert shape("llama3-8b").rope.theta == 500000
    assert shape("llama3.2-1b").rope.scaling == RopeScaling(32, 1, 4, 8192)


def test_a_shape_is_found_whatever_the_case_of_its_name() -> None:
    assert shape("Llama3-8B") == shape("llama3-8b")


def test_an_unknown_shape_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(UsageError, match=r"'llama3_8b' is no model shape .*did you mean llama3-8b"):
        shape("llama3_8b")


def test_a_shape_like_no_other_is_refused_with_all_names() -> None:
    with pytest.raises(UsageError, match=r"known: tinyllama, llama2-7b"):
        shape("????")


def test_numbers_of_a_shape_can_be_given_anew_and_the_heads_share_the_width() -> None:
    spec = shape("tinyllama", FloatType.Q80, {"layers": 2, "dim": 1024, "heads": 8, "kv-heads": 4, "vocab": 300})
    assert (spec.n_layers, spec.dim, spec.n_heads, spec.n_kv_heads, spec.vocab_size) == (2, 1024, 8, 4, 300)
    assert (spec.head_dim, spec.hidden_dim, spec.seq_len) == (128, 5632, 2048)
    assert shape("tinyllama", overrides={"head-dim": 128}).head_dim == 128


def test_numbers_that_cannot_be_a_model_are_refused() -> None:
    with pytest.raises(FormatError, match="32 heads cannot share 3 KV heads"):
        shape("tinyllama", overrides={"kv-heads": 3})
