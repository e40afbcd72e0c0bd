"""A published 7B's layout: its head and the first rows of its output matrix are real, the other weights are 0."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli, clean_cli, json_object

from dllama_zmq.formats import open_model

N_ROWS = 8192
ROUNDING = 1e-5
"""Relative RMS of an error: Q6_K is kept as it is, and dequantized in float32."""
WAIT_S = 250.0


@pytest.fixture
def cli(tmp_path: Path, deepseek: Path) -> Iterator[Cli]:
    with clean_cli(tmp_path, deepseek) as cli:
        yield cli


def test_it_is_described_and_planned(cli: Cli) -> None:
    result = cli.run("inspect", str(cli.model), "--json")
    assert result.code == 0, result.said
    assert "error" not in result.err
    about = json_object(result.out)
    assert about["architecture"] == "qwen2"
    planned = cli.run("plan", str(cli.model), "--no-speed", "--nodes", "1,2,4")
    assert planned.code == 0, planned.said
    assert "It can be split over 1, 2, 4 nodes" in planned.out


def test_its_output_matrix_is_that_of_gguf(deepseek: Path) -> None:
    import gguf

    (tensor,) = (tensor for tensor in gguf.GGUFReader(deepseek).tensors if tensor.name == "output.weight")
    exact = gguf.dequantize(tensor.data[:N_ROWS], tensor.tensor_type)
    with open_model(deepseek) as model:
        rows = model.read("head", slice(0, N_ROWS)).dequantize()
    error = float(np.sqrt(np.mean((rows - exact) ** 2) / np.mean(exact**2)))
    print(f"relative RMS of the error {error:.5f}")
    assert error < ROUNDING


@pytest.mark.timeout(600)
def test_it_is_converted(cli: Cli) -> None:
    made = cli.folder / "made.m"
    try:
        result = cli.run("convert", str(cli.model), str(made), wait_s=500.0)
        assert result.code == 0, result.said
        with open_model(made) as model, open_model(cli.model) as source:
            for name in ("n_layers", "dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size", "rope", "arch"):
                assert getattr(model.spec, name) == getattr(source.spec, name)
        inspected = cli.run("inspect", str(made))
        assert inspected.code == 0, inspected.said
        assert "151665 tokens" in inspected.out
    finally:
        made.unlink(missing_ok=True)  # pytest keeps the folders of several runs


@pytest.mark.timeout(600)
def test_one_node_loads_it_and_answers(cli: Cli) -> None:
    cli.write(limits={"join_s": 60, "load_s": WAIT_S, "step_s": 60}, max_seq_len=512)
    up = cli.run("up", wait_s=WAIT_S)
    assert up.code == 0, up.said
    try:
        answered = cli.run("generate", "Once upon a time", "--temp", "0", "-n", "4", wait_s=120)
    finally:
        cli.down()
    assert answered.code == 0, answered.said
    print(f"up in {up.seconds:.0f} s")
