"""`convert` and `inspect` as their user sees them: real processes and files."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, Cli, finish
from folders import arrays_of, write_hf
from tiny import tiny_spec, write_tiny_model

import dllama_zmq
from dllama_zmq.formats import open_m
from dllama_zmq.quants import quantize
from dllama_zmq.spec import FloatType


def test_a_model_converted_to_its_own_type_is_the_same_file(cli: Cli) -> None:
    result = cli.run("convert", str(cli.model), "again.m")
    assert result.code == 0, result.said
    assert (cli.folder / "again.m").read_bytes() == cli.model.read_bytes()
    assert (cli.folder / "again.t").read_bytes() == cli.model.with_suffix(".t").read_bytes()
    assert "again.m and again.t" in result.err
    assert result.out == ""


@pytest.mark.parametrize("weights", ["f32", "f16", "q40", "q80"])
def test_weights_are_those_of_the_source_in_the_type_asked_for(cli: Cli, weights: str) -> None:
    result = cli.run("convert", str(cli.model), "other.m", "--weights", weights, "--tokenizer", "words.t")
    assert result.code == 0, result.said
    assert (cli.folder / "words.t").exists()
    kind = FloatType[weights.upper()]
    with open_m(cli.model) as source, open_m(cli.folder / "other.m") as made:
        assert made.spec.weight_type is kind
        for tensor in made.tensors:
            matrix = source.read(tensor.name)
            same = matrix.float_type is tensor.float_type
            expected = matrix.data if same else quantize(matrix.dequantize(), tensor.float_type)
            assert np.array_equal(made.read(tensor.name).data, expected), tensor.name


def test_a_converted_model_runs_and_says_what_the_source_says(cli: Cli) -> None:
    assert cli.run("convert", str(cli.model), "f32.m", "--weights", "f32").code == 0
    with dllama_zmq.load(cli.folder / "f32.m") as made, dllama_zmq.load(cli.model) as source:
        tokens = source.tokenizer.encode("once upon a time")
        expected = source.logits(tokens)
        # The same weights; only the activations of the one are quantized.
        assert np.abs(made.logits(tokens) - expected).max() < 0.05 * np.abs(expected).max()


def test_an_existing_file_is_replaced_only_by_force(cli: Cli) -> None:
    (cli.folder / "kept.m").write_bytes(b"precious")
    assert "kept.m exists; --force" in cli.run_here("convert", str(cli.model), "kept.m").error(2)
    assert (cli.folder / "kept.m").read_bytes() == b"precious"
    assert cli.run("convert", str(cli.model), "kept.m", "--force").code == 0
    assert (cli.folder / "kept.m").read_bytes() == cli.model.read_bytes()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipes_and_folders_are_never_replaced(cli: Cli, make: Callable[[Path], None]) -> None:
    taken = cli.folder / "taken.t"  # a device is such a file too, and root could replace it
    make(taken)
    before = taken.lstat()
    command = ("convert", str(cli.model), "new.m", "--tokenizer", "taken.t", "--force")
    assert "taken.t is not a regular file" in cli.run_here(*command).error(2)
    assert (taken.lstat().st_ino, taken.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert not (cli.folder / "new.m").exists()


def test_a_model_is_never_converted_onto_itself(cli: Cli) -> None:
    before = write_tiny_model(cli.folder / "own.m").nbytes
    assert "is the model to convert" in cli.run_here("convert", "own.m", "./own.m", "--force").error(2)
    with open_m(cli.folder / "own.m") as model:
        assert model.nbytes == before


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["nowhere.m", "out.m"], 1, "nowhere.m cannot be opened"),
        (["MODEL", "out.bin"], 2, "out.bin: the output is a .m file"),
        (
            ["MODEL", "no/folder/out.m"],
            2,
            "no/folder/out.m cannot be written: No such file or directory. Check its folder, /",
        ),
        (["MODEL", "out.m", "--weights", "q17"], 2, "q17"),
    ],
)
def test_a_model_that_cannot_be_converted_is_refused_and_leaves_nothing(
    cli: Cli, words: list[str], code: int, reason: str
) -> None:
    before = sorted(cli.folder.rglob("*"))
    assert reason in cli.run_here("convert", *(str(cli.model) if word == "MODEL" else word for word in words)).error(
        code
    )
    assert sorted(cli.folder.rglob("*")) == before


def test_weights_that_do_not_fit_the_widths_are_refused(cli: Cli) -> None:
    write_tiny_model(cli.folder / "narrow.m", tiny_spec(dim=40, n_heads=2, n_kv_heads=2, hidden_dim=88)).close()
    assert (
        "dim is 40; expected a multiple of 32"
        in cli.run_here("convert", "narrow.m", "out.m", "--weights", "q40").error()
    )


def test_ctrl_c_leaves_no_half_file(cli: Cli) -> None:
    spec = tiny_spec(dim=2048, hidden_dim=8192, n_heads=16, n_layers=1)
    write_tiny_model(cli.folder / "large.m", spec).close()
    with cli.started("convert", "large.m", "out.m", "--weights", "q40") as process:
        assert process.stderr is not None
        assert b"no tokenizer" in process.stderr.readline()  # which is said before the first tensor is written
        os.kill(process.pid, signal.SIGINT)
        result = finish(process, wait_s=30.0, start=time.monotonic())
    assert result.code == 130, result.said
    assert sorted(path.name for path in cli.folder.iterdir()) == ["large.m"]


def test_inspect_shows_what_a_model_consists_of(cli: Cli) -> None:
    facts = json.loads(cli.run("inspect", "-m", str(cli.model), "--json", "--tensors").out)
    assert facts["architecture"] == "llama"
    assert facts["nodes_possible"] == [1, 2, 4, 8]
    matrices = 2 * (4 * 256 * 256 + 3 * 256 * 512) + 288 * 256
    assert facts["parameters"] == matrices + 288 * 256 + 5 * 256
    assert facts["bytes"] == matrices // 32 * 18 + (2 * 2 + 1) * 256 * 4 + 288 * 256 * 4
    assert len(facts["tensors"]) == 3 + 9 * SMALL.n_layers
    assert facts["tokenizer"] == "288 tokens, no chat template"


def test_inspect_reads_a_folder_as_a_cluster_would_that_quantizes_it(cli: Cli) -> None:
    assert cli.run("convert", str(cli.model), "f32.m", "--weights", "f32").code == 0
    with open_m(cli.folder / "f32.m") as model:
        write_hf(cli.folder / "floats", model.spec, arrays_of(model), "F16")
    as_q40 = cli.run("inspect", "floats", "--weights", "q40", "--json")
    assert as_q40.code == 0, as_q40.said
    of_q40_file = json.loads(cli.run("inspect", str(cli.model), "--json").out)
    assert json.loads(as_q40.out)["bytes_by_type"]["Q40"] == of_q40_file["bytes_by_type"]["Q40"]  # the rest is as it is
    assert "Q40" not in json.loads(cli.run("inspect", "floats", "--json").out)["bytes_by_type"]
    assert "stored as floats" in cli.run_here("inspect", str(cli.model), "--weights", "q80").error(2)


def test_inspect_reads_as_a_page_and_says_what_is_missing(cli: Cli, tmp_path: Path) -> None:
    alone = tmp_path / f"alone{'x' * 60}.m"
    alone.write_bytes(cli.model.read_bytes())
    result = cli.run("inspect", str(alone))
    assert result.code == 0, result.said
    assert result.out.startswith(f"{alone}: llama, ")  # a long path is not cut in two
    assert "can be split over 1, 2, 4, 8 nodes\n" in result.out
    assert "tokenizer  none: " in result.out
    assert "nowhere.m cannot be opened" in cli.run_here("inspect", "nowhere.m").error()
