"""The block types that no kernel computes with: their values, and what is read in their place. See FORMATS.md §4."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from gguf_writer import TYPE_IDS, file_tensor, gguf_bytes, llama_metadata, llama_name
from low_bits import LOW_BITS, low_bit_tensor, random_blocks
from tiny import tiny_spec, tiny_tensors

from dllama_zmq.formats import open_gguf
from dllama_zmq.formats.gguf.container import TYPES
from dllama_zmq.formats.mapped import MappedFile
from dllama_zmq.formats.stored import Extent, StoredTensor, with_types
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import F32, U8, BlockMatrix, SourceType, dequantize
from dllama_zmq.quants.low_bits import IQ4_NL, IQ4_XS, MXFP4, Q2_K, Q3_K, TQ1_0, TQ2_0
from dllama_zmq.spec import FloatType

GOLDEN = Path(__file__).parents[1] / "golden" / "gguf_blocks.npz"
EXACT = {
    Q3_K: FloatType.Q6_K,
    IQ4_NL: FloatType.Q80,
    MXFP4: FloatType.Q50,
    TQ1_0: FloatType.Q40,
    TQ2_0: FloatType.Q40,
}
DOWN = "layers.0.ffn.down"
all_types = pytest.mark.parametrize("kind", LOW_BITS, ids=lambda kind: kind.name)


def golden(kind: SourceType) -> tuple[U8, F32]:
    with np.load(GOLDEN) as arrays:
        return arrays[f"{kind.name}_bytes"], arrays[f"{kind.name}_values"]


def as_read(kind: SourceType, data: U8) -> F32:
    return dequantize(kind.convert(data), kind.read_as)


def relative_rms(got: F32, exact: F32) -> float:
    return float(np.sqrt(np.square(got - exact, dtype=np.float64).sum() / np.square(exact, dtype=np.float64).sum()))


@all_types
def test_values_are_those_of_gguf_py_to_the_last_bit(kind: SourceType) -> None:
    data, expected = golden(kind)
    assert np.array_equal(kind.dequantize(data), expected)
    assert TYPES[TYPE_IDS[kind.name]] is kind


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.name)
def test_the_type_that_takes_the_place_has_the_same_values(kind: SourceType) -> None:
    data, expected = golden(kind)
    if kind is MXFP4:
        data = data.copy()
        data[:, 0] = np.linspace(104, 143, len(data))  # the powers of two from 2^-24 to 2^15, which an f16 has
        expected = kind.dequantize(data)
    assert kind.read_as is EXACT[kind]
    assert np.array_equal(as_read(kind, data), expected)


def test_mxfp4_below_the_smallest_f16_is_near_zero() -> None:
    data, expected = golden(MXFP4)
    small = data[:, 0] < 104
    assert small.sum() > 3
    assert np.abs(as_read(MXFP4, data[small]) - expected[small]).max() <= 12 * 2.0**-25


def test_iq4_xs_has_scales_of_11_bits() -> None:
    data, expected = golden(IQ4_XS)
    got = as_read(IQ4_XS, data)
    fits = np.isfinite(got).all(axis=1)
    assert fits.sum() == len(data) - 2  # all but those under a d of 65504 and -65504
    assert (np.abs(got - expected) <= np.abs(expected) * 2.0**-11)[fits].all()
    assert IQ4_XS.read_as is FloatType.Q80


def test_q2_k_moves_no_value_by_more_than_a_31st_of_its_blocks_largest() -> None:
    data, expected = golden(Q2_K)
    error = np.abs(as_read(Q2_K, data) - expected).max(axis=1)
    # A step of the smallest scale that the largest group can have is 1/31 of it, if the f16 d is not below 2^-24.
    assert (error <= np.abs(expected).max(axis=1) / 31 + 2.0**-25).all()
    assert Q2_K.read_as is FloatType.Q6_K


def test_q2_k_is_read_with_an_error_of_about_one_percent() -> None:
    rng = np.random.default_rng(3)
    sizes = np.exp(rng.uniform(np.log(1e-4), np.log(10), 64))
    data = np.concatenate([random_blocks(rng, Q2_K, 1, 1024, size) for size in sizes])
    errors = [relative_rms(as_read(Q2_K, row[None]), Q2_K.dequantize(row[None])) for row in data]
    print(f"Q2_K: {np.mean(errors):.2%} of the values, {max(errors):.2%} of those of the worst row")
    assert np.mean(errors) < 0.009  # 0.0141 if only one scale is tried, 0.0098 if the largest group has no choice
    assert max(errors) < 0.015


@all_types
def test_scales_that_no_number_has_are_found_to_be_infinite(kind: SourceType) -> None:
    data = random_blocks(np.random.default_rng(1), kind, 1, 256, 1.0)
    assert BlockMatrix(kind.convert(data), kind.read_as).is_finite
    if kind is MXFP4:
        data[0, 0] = 255
    else:
        data[0, {Q2_K: 81, Q3_K: 109, TQ1_0: 53, TQ2_0: 65}.get(kind, 1)] = 0x7C
    assert not BlockMatrix(kind.convert(data), kind.read_as).is_finite


@all_types
def test_any_bytes_are_taken(kind: SourceType) -> None:
    blocks = 3000 * 256 // kind.block_values  # three chunks
    data = np.random.default_rng(4).integers(0, 256, (3, blocks * kind.block_bytes), dtype=np.uint8)
    got = kind.convert(data)
    assert got.shape == (3, kind.read_as.row_bytes(blocks * kind.block_values))
    assert np.array_equal(got[1:2], kind.convert(data[1:2]))
    assert kind.dequantize(data).shape == (3, blocks * kind.block_values)
    assert kind.convert(data[:0]).shape == (0, got.shape[1])


@all_types
def test_any_part_of_a_tensor_is_the_part_of_its_whole(kind: SourceType, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    spec = tiny_spec(dim=512, hidden_dim=768, n_heads=8, n_kv_heads=2, n_layers=1)
    bytes_of, tensors = {}, []
    for name, matrix in tiny_tensors(spec):
        if name in ("embedding", DOWN):
            data = bytes_of[name] = random_blocks(rng, kind, *matrix.shape, 0.05)
            tensors.append(low_bit_tensor(llama_name(name), kind, data))
        else:
            tensors.append(file_tensor(llama_name(name), matrix))
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(llama_metadata(spec), tensors))
    with open_gguf(tmp_path / "a.gguf") as model:
        whole = model.read(DOWN)
        assert whole.float_type is kind.read_as
        assert np.array_equal(whole.data, kind.convert(bytes_of[DOWN]))
        for _ in range(20):
            rows = sorted(rng.integers(0, whole.rows + 1, 2).tolist())
            columns = sorted((rng.integers(0, whole.columns // 32 + 1, 2) * 32).tolist())
            part, expected = (cut(slice(*rows), slice(*columns)) for cut in (partial(model.read, DOWN), whole.cut))
            assert np.array_equal(part.data, expected.data)
            assert (part.before, part.behind) == (expected.before, expected.behind)
        row = model.read("embedding", slice(7, 8))
        assert row.float_type is FloatType.F32
        assert np.array_equal(row.dequantize(), kind.dequantize(bytes_of["embedding"][7:8]))


def test_a_router_is_read_as_its_values_and_experts_as_the_type_with_kernels(tmp_path: Path) -> None:
    spec = tiny_spec(arch="mixtral", dim=256, hidden_dim=256, n_layers=1, n_experts=4, n_active_experts=2)
    (tmp_path / "weights").write_bytes(bytes(1))
    with closing(MappedFile(tmp_path / "weights")) as pages:
        stored = {
            tensor.name: StoredTensor("weights", (Extent(pages, 0, *tensor.shape(spec), Q2_K),))
            for tensor in tensor_table(spec)
        }
        read = with_types(tmp_path / "weights", spec, stored, None)
    types = {tensor.name: tensor.float_type for tensor in tensor_table(read)}
    assert types["layers.0.router"] is FloatType.F32
    assert types["layers.0.experts.3.down"] is FloatType.Q6_K
