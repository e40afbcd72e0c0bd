"""A cluster of real processes over a Hugging Face folder, quantized on the way by `weights` of cluster.yaml."""

from __future__ import annotations

from command_line import SMALL, Cli, write_small_model
from folders import arrays_of, write_hf
from tiny import TINY, write_tiny_model

from dllama_zmq.formats import open_m, write_m
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import BlockMatrix


def test_a_folder_with_weights_q40_says_what_the_same_q40_file_says(cli: Cli, tmp_path) -> None:
    with open_m(write_small_model(tmp_path / "values.m")) as model:
        values = arrays_of(model)
    matrices = {t.name: BlockMatrix.from_array(values[t.name], t.float_type) for t in tensor_table(SMALL)}
    cli.model = tmp_path / "quantized.m"
    write_m(cli.model, SMALL, matrices)
    words = {"tokenizer": str(tmp_path / "values.t")}
    cli.up(2, **words)
    expected, status = cli.generate("-n", "20").out, cli.status()
    cli.down()

    cli.model = write_hf(tmp_path / "folder", SMALL, values, n_shards=2)
    cli.up(2, **words, weights="q40")
    assert cli.generate("-n", "20").out == expected
    assert [node.weight_bytes for node in cli.status().nodes] == [node.weight_bytes for node in status.nodes]
    cli.down()


def test_weights_that_are_not_to_be_had_are_refused_before_anything_starts(cli: Cli, tmp_path) -> None:
    cli.write(2, weights="f16")  # of a .m file that is Q40
    assert "its weights are Q40, and `weights` can only change" in cli.run("up").error(code=2)
    with write_tiny_model(tmp_path / "tiny.m", TINY) as model:
        cli.model = write_hf(tmp_path / "folder", TINY, arrays_of(model))
    (cli.model / "model.safetensors").write_bytes(b"")
    cli.write(2, weights="q40", tokenizer="demo")
    assert "the file is empty" in cli.run("up").error()
