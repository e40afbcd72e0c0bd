"""Whole models in each of the GGUF types that no kernel computes with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_writer import file_tensor, gguf_bytes, llama_metadata, llama_name
from low_bits import LOW_BITS, low_bit_tensor, random_blocks
from tiny import tiny_spec, tiny_tensors

from dllama_zmq import load
from dllama_zmq.quants import BlockMatrix, SourceType
from dllama_zmq.spec import FloatType

TOKENS = np.random.default_rng(3).integers(0, 288, 40).tolist()


@pytest.mark.parametrize("kind", LOW_BITS, ids=lambda kind: kind.name)
def test_a_model_gives_the_same_bits_on_any_number_of_nodes_and_nearly_those_of_its_values(
    tmp_path: Path, kind: SourceType
) -> None:
    spec = tiny_spec(dim=256, hidden_dim=512, n_heads=8, n_kv_heads=2)
    rng = np.random.default_rng(6)
    tensors, exact = [], []
    for name, matrix in tiny_tensors(spec):
        if matrix.rows > 1:
            data = random_blocks(rng, kind, *matrix.shape, size=1 if name == "embedding" else matrix.columns**-0.5)
            tensors.append(low_bit_tensor(llama_name(name), kind, data))
            matrix = BlockMatrix.from_array(kind.dequantize(data), FloatType.F32)
        else:
            tensors.append(file_tensor(llama_name(name), matrix))
        exact.append(file_tensor(llama_name(name), matrix))
    path, exact_path = tmp_path / "a.gguf", tmp_path / "exact.gguf"
    path.write_bytes(gguf_bytes(llama_metadata(spec), tensors))
    exact_path.write_bytes(gguf_bytes(llama_metadata(spec), exact))
    with load(path) as alone, load(exact_path) as floats:
        assert alone.spec.weight_type is kind.read_as
        logits, expected = alone.logits(TOKENS), floats.logits(TOKENS)
    for nodes in (2, 4):
        with load(path, nodes=nodes) as model:
            assert np.array_equal(model.logits(TOKENS), logits), nodes
    difference = np.abs(logits - expected).max() / np.abs(expected).max()
    print(f"{kind.name}: {difference:.2%} of the largest logit")
    # Activations are rounded to Q80: about 0.5% of what goes through a layer. Q2_K: 1% of the weights too.
    assert difference < 0.05
