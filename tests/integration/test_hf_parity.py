"""Logits equal those of Hugging Face transformers for random tiny Llamas; golden/README.md says how those were made."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from dllama_zmq import load
from dllama_zmq.formats import write_m
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType, ModelSpec

GOLDEN = Path(__file__).parents[1] / "golden"

# The project's own promise. Both sides compute in float32 and add in different orders: by the golden files' maker
# float32 alone moves these logits (up to 8) by 2e-5; a wrong layout, angle or epsilon moves those of its case by 5.
TOLERANCE = 1e-4

NODE_COUNTS = {
    "gqa": (1, 2, 4, 8),
    "mha": (1, 2, 4),
    "llama31": (1, 2, 4),
    "tied": (1, 2, 4),
    "odd": (1, 2, 4),
    "head_dim": (1, 2),
    "eps": (1, 2, 4),
}


def test_every_golden_file_is_read():
    assert {f"llama_{case}" for case in NODE_COUNTS} == {path.stem for path in GOLDEN.glob("llama_*.npz")}


# F16 holds these weights exactly: its logits are the same ones.
@pytest.mark.parametrize(
    ("case", "nodes", "weight_type"),
    [
        *((case, nodes, FloatType.F32) for case, counts in NODE_COUNTS.items() for nodes in counts),
        ("odd", 1, FloatType.F16),
        ("odd", 4, FloatType.F16),
    ],
)
def test_logits_equal_those_of_transformers(tmp_path, case, nodes, weight_type):
    with np.load(GOLDEN / f"llama_{case}.npz") as golden:
        arrays = dict(golden)
    spec = replace(msgspec.json.decode(str(arrays["spec"]), type=ModelSpec), weight_type=weight_type)
    path = tmp_path / f"{case}.m"
    write_m(
        path,
        spec,
        {t.name: BlockMatrix.from_array(arrays[t.name].astype(np.float32), t.float_type) for t in tensor_table(spec)},
    )
    with load(path, nodes=nodes, kv_cache="f32") as model:
        assert model.spec == spec
        logits = model.logits(arrays["tokens"].tolist())
    assert logits.dtype == np.float32
    print(f"largest difference of a logit: {np.abs(logits - arrays['logits']).max():.1e}")
    np.testing.assert_allclose(logits, arrays["logits"], rtol=0, atol=TOLERANCE)
