"""The header of a `.m` file: rotation and architecture by its keys, refused in words where no model has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from m_bytes import HAND_PAIRS, keyed, old
from tiny import tiny_spec, tiny_tensors, write_tiny_model

from dllama_zmq.errors import FormatError
from dllama_zmq.formats import open_m
from dllama_zmq.formats.m_header import read_header
from dllama_zmq.spec import FloatType, Rope, RopeScaling


@pytest.mark.parametrize(
    ("changes", "layout", "scaling"),
    [
        ({14: 8, 15: 1, 16: 4, 17: 8192, 18: 2}, "interleaved", RopeScaling(8.0, 1.0, 4.0, 8192)),
        ({14: 8, 15: 1, 16: 4, 17: 8192}, "interleaved", RopeScaling(8.0, 1.0, 4.0, 8192)),
        ({14: 1, 18: 2}, "interleaved", None),
        ({18: 0}, "interleaved", None),
        ({18: 1}, "half", None),
        ({14: 8, 15: 1, 16: 4, 17: 8192, 18: 1}, "half", None),
    ],
)
def test_rope_keys_become_layout_and_scaling(tmp_path, changes, layout, scaling):
    path = tmp_path / "a.m"
    path.write_bytes(keyed(HAND_PAIRS | changes))
    with open_m(path) as model:
        assert (model.spec.rope.layout, model.spec.rope.scaling) == (layout, scaling)


EXPERTS = {7: 3, 8: 2}


# Of tensors of ones and zeros the header alone says what they are.
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({1: 0xABCD01} | EXPERTS, {"arch": "grok1", "activation": "gelu", "norm_topk": False, "n_experts": 3}),
        ({1: 0xABCD01}, {"arch": "qwen3"}),
        ({1: 0xABCD01, 19: 4, 20: 6}, {"arch": "qwen3", "head_dim": 4, "norm_eps": 1e-6}),
        ({1: 0xABCD01, 19: 2, 14: 8, 15: 1, 16: 4, 17: 64}, {"arch": "qwen3"}),
        ({1: 0xABCD02} | EXPERTS, {"arch": "mixtral", "n_experts": 3, "n_active_experts": 2, "norm_topk": True}),
        ({1: 0xABCD02, 18: 1} | EXPERTS, {"arch": "mixtral"}),
        ({1: 0xABCD02, 20: 6, 21: 6} | EXPERTS, {"arch": "qwen3moe", "hidden_dim": 6, "norm_topk": True}),
        ({1: 0xABCD02, 20: 6, 21: 6, 1001: 0} | EXPERTS, {"arch": "qwen3moe", "norm_topk": False}),
        ({1: 0xABCD03}, {"arch": "qwen2", "head_dim": 2}),
        ({11: 0}, {"arch": "llama", "activation": "gelu"}),
        ({1000: 9}, {"arch": "llama", "window": 9}),
    ],
)
def test_a_header_says_which_architecture_it_is(changes, expected):
    head = keyed(HAND_PAIRS | changes, 0)
    spec, tensors_at = read_header(head, 1 << 20, Path("a.m"))
    assert tensors_at == len(head)
    assert {name: getattr(spec, name) for name in expected} == expected
    assert (spec.rope.layout, spec.rope.scaling) == ("interleaved" if spec.arch == "llama" else "half", None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({1: 0xABCD0F}, r"key 1 \(arch_type\) is 11259151; an unknown architecture"),
        ({7: 8, 8: 2}, r"key 7 \(n_experts\) is 8; but a llama of this file format has none"),
        ({1: 0xABCD03, 7: 8, 8: 2}, r"but a qwen2 of this file format has none"),
        ({1: 0xABCD02}, r"n_experts \(key 7\) is 0 or missing, and a mixtral is a mixture"),
        ({1: 0xABCD02, 7: 8, 8: 9}, "n_active_experts is 9; expected 1 to 8"),
        ({1: 0xABCD02, 7: 8}, "n_active_experts is 0; expected 1 to 8"),
        ({1: 0xABCD02, 7: 8, 8: 2, 20: 6}, r"no key 21 \(moe_hidden_dim\)"),
        ({1: 0xABCD02, 4: 4096, 7: 1024, 8: 2}, "4096 layers of 1024 experts"),
        ({1000: 0}, "the sliding window is 0"),
        ({1002: -1}, "one layer in -1 attends to all positions"),
        ({1003: 0}, "rope_theta is 0"),
        ({1004: 0}, "query_pre_attn_scalar is 0"),
        ({1005: 0}, r"key 1005 \(rope_linear_factor\) is 0"),
        ({1001: 2}, r"key 1001 \(norm_topk\) is 2"),
    ],
)
def test_a_header_of_no_model_is_refused_in_words(tmp_path, changes, words):
    path = tmp_path / "a.m"
    path.write_bytes(keyed(HAND_PAIRS | changes))
    with pytest.raises(FormatError, match=words) as refusal:
        open_m(path)
    assert str(path) in str(refusal.value)


def test_an_old_file_of_grok_is_read_with_its_tensors_in_order(tmp_path):
    dim, hidden, vocab, n_experts = 2, 4, 3, 8
    layer = [(dim, dim)] * 4 + [(n_experts, dim)] + [(hidden, dim), (hidden, dim), (dim, hidden)] * n_experts
    shapes = [(vocab, dim), *layer, *[(1, dim)] * 4, (1, dim), (vocab, dim)]
    n_values = sum(rows * columns for rows, columns in shapes)
    path = tmp_path / "a.m"
    values = np.arange(n_values, dtype="<f4")
    path.write_bytes(old([dim, hidden, 1, 1, 1, n_experts, 2, vocab, 16], values.tobytes(), magic=0xABCD01))
    with open_m(path) as model:
        assert (model.spec.arch, model.spec.activation, model.spec.weight_type) == ("grok1", "gelu", FloatType.F32)
        at = 0
        names = ["embedding", *(f"layers.0.attention.{name}" for name in "qkvo"), "layers.0.router"]
        names += [f"layers.0.experts.{e}.{part}" for e in range(n_experts) for part in ("up", "gate", "down")]
        norms = ("attention_norm", "ffn_norm", "moe_norm", "moe_out_norm")
        names += [*(f"layers.0.{name}" for name in norms), "final_norm", "head"]
        for name, (rows, columns) in zip(names, shapes, strict=True):
            expected = values[at : at + rows * columns].reshape(rows, columns)
            assert np.array_equal(model.read(name).dequantize(), expected), name
            at += rows * columns


HALF = Rope(layout="half")
MIXTURE = {"n_experts": 4, "n_active_experts": 2, "rope": HALF}


@pytest.mark.parametrize(
    "overrides",
    [
        {"arch": "qwen2", "rope": HALF},
        {"arch": "qwen2", "rope": HALF, "window": 7, "norm_eps": 1e-6},
        {"arch": "qwen3", "rope": HALF},
        {"arch": "qwen3", "rope": HALF, "head_dim": 32},
        {"arch": "qwen3moe", **MIXTURE},
        {"arch": "qwen3moe", **MIXTURE, "head_dim": 32, "norm_topk": False},
        {"arch": "mixtral", **MIXTURE},
        {"arch": "grok1", **MIXTURE, "activation": "gelu", "norm_topk": False},
        {"activation": "gelu", "window": 5},
        {"arch": "gemma2", "rope": HALF, "window": 5, "full_every": 2, "norm_eps": 1e-6, "query_scalar": 24},
        {"arch": "gemma3", "rope": Rope(1e6, "half", factors=(8.0,) * 8), "full_every": 6, "window_rope": HALF},
    ],
)
@pytest.mark.parametrize("weight_type", [FloatType.F32, FloatType.Q40])
def test_every_architecture_reads_back_as_it_was_written(tmp_path, weight_type, overrides):
    spec = tiny_spec(weight_type=weight_type, **overrides)
    with write_tiny_model(tmp_path / "a.m", spec) as model:
        assert model.spec == spec
        for name, matrix in tiny_tensors(spec):
            assert np.array_equal(model.read(name).data, matrix.data), name


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"arch": "qwen2"}, "a .m file's qwen2 has RoPE of half layout"),
        ({"arch": "mixtral", **MIXTURE, "norm_eps": 1e-6}, "mixtral has a norm epsilon of 1e-05 and a head_dim"),
        ({"arch": "grok1", **MIXTURE}, "grok1 has GELU"),
        ({"n_experts": 4, "n_active_experts": 2}, "llama has no experts; this one has 4"),
        ({"arch": "mixtral", "rope": HALF}, "mixtral has experts; this one has 0"),
        ({"norm_topk": False}, "llama has experts' weights that sum to 1"),
        ({"rope": Rope(factors=(1.0,) * 7 + (2.0,))}, "cannot hold a RoPE factor for each pair"),
        ({"window_rope": Rope(factors=(2.0,) * 8)}, "cannot hold a scaling of RoPE in the layers with a window"),
    ],
)
def test_a_spec_that_a_header_cannot_express_is_not_written(tmp_path, overrides, words):
    with pytest.raises(FormatError, match=words):
        write_tiny_model(tmp_path / "a.m", tiny_spec(**overrides))
    assert not list(tmp_path.iterdir())
