"""What loading a folder takes, measured from outside: its weights as they are read, and a bounded amount more."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from folders import hf_config, hf_name, write_meta
from tiny import tiny_spec, tiny_tensors

from dllama_zmq.models import tensor_table
from dllama_zmq.spec import FloatType, ModelSpec

LARGE = ModelSpec(
    arch="llama",
    dim=2048,
    hidden_dim=5632,
    n_layers=4,
    n_heads=16,
    n_kv_heads=8,
    head_dim=128,
    vocab_size=4000,
    seq_len=128,
    weight_type=FloatType.Q40,
)
MORE_BYTES = 110 << 20
"""64 MB of the file before its pages are let go, one tensor twice while the kernels repack it, the KV cache."""

# The peak of resident memory above what this process has when it has run a small model: the kernels are loaded then.
LOAD = """
import re, sys
from pathlib import Path
import dllama_zmq
small, large = sys.argv[1:]
with dllama_zmq.load(small, weights="q40") as model:
    model.logits([1, 2])
def field(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = field("VmRSS")
with dllama_zmq.load(large, weights="q40") as model:
    model.logits([1, 2])
    print(field("VmHWM") - before)
"""


def write_hole(folder: Path) -> int:
    """LARGE as BF16 whose values are all a hole in the file; the file's length."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(LARGE)))
    header, end = {}, 0
    for tensor in tensor_table(LARGE):
        rows, columns = tensor.shape(LARGE)
        shape = [columns] if tensor.axes[0] == "one" else [rows, columns]
        first, end = end, end + 2 * rows * columns
        header[hf_name(tensor.name)] = {"dtype": "BF16", "shape": shape, "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return 8 + len(text) + end


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux")
def test_loading_a_folder_takes_its_weights_as_q40_and_a_bounded_amount(tmp_path: Path) -> None:
    small = tiny_spec(n_layers=1)
    write_meta(tmp_path / "small", small, {name: matrix.dequantize() for name, matrix in tiny_tensors(small)})
    file_bytes = write_hole(tmp_path / "large")
    q40_bytes = sum(tensor.nbytes(LARGE) for tensor in tensor_table(LARGE) if not tensor.root_only)
    found = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "small", tmp_path / "large"], capture_output=True, text=True, check=True
    )
    peak = int(found.stdout)
    print(f"a file of {file_bytes:,} bytes, {q40_bytes:,} as Q40: {peak:,} bytes at the peak")
    assert q40_bytes + MORE_BYTES < 0.6 * file_bytes  # or what follows would not notice the file
    assert q40_bytes < peak + (8 << 20)  # it was measured
    assert peak < q40_bytes + MORE_BYTES
