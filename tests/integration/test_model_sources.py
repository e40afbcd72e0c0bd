"""The whole path from each kind of file: real processes say of it what they say of the `.m` file it was made of.

The model is the small one of all tests; its files are written by the formats' descriptions, the vocabulary too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import Cli
from folders import arrays_of, write_hf
from gguf_writer import TYPE_IDS, FileTensor, file_tensor, gguf_bytes, gguf_of, llama_metadata, llama_name, write_llama
from hub_server import Repo, running_hub
from k_quantizers import quantized
from low_bits import low_bit_tensor, random_blocks
from tiny import tiny_spec, tiny_tensors

from dllama_zmq.formats import gguf_metadata, open_m
from dllama_zmq.quants.low_bits import Q3_K
from dllama_zmq.spec import FloatType

PROMPT = "once upon a time"
GREEDY = ["generate", PROMPT, "--temp", "0", "-n", "30"]


@pytest.fixture(scope="module")
def gguf(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model as a GGUF file with its vocabulary in it."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    path.write_bytes(gguf_of(small_model, small_model.with_suffix(".t")))
    return path


def test_a_gguf_file_says_what_the_m_file_says(cli: Cli, gguf: Path) -> None:
    """The same Q40 bytes, so the same bits; its tokenizer comes from the file."""
    cli.write(2)
    expected = cli.run(*GREEDY)
    assert expected.code == 0, expected.said
    result = cli.run(*GREEDY, "-m", str(gguf))
    assert (result.code, result.out) == (0, expected.out), result.said


def test_a_gguf_file_is_inspected_and_converted_back_to_the_m_file(cli: Cli, gguf: Path) -> None:
    facts = json.loads(cli.run("inspect", str(gguf), "--json").out)
    assert (facts["architecture"], facts["nodes_possible"]) == ("llama", [1, 2, 4, 8])
    assert facts["tokenizer"].startswith("288 tokens")
    result = cli.run("convert", str(gguf), "back.m")
    assert result.code == 0, result.said
    assert (cli.folder / "back.m").read_bytes() == cli.model.read_bytes()
    assert gguf_metadata(cli.folder / "back.t")["tokenizer.ggml.tokens"] == gguf_metadata(gguf)["tokenizer.ggml.tokens"]
    cli.write(1)
    assert cli.run(*GREEDY, "-m", "back.m").out == cli.run(*GREEDY, "-m", str(gguf)).out


def test_inspect_shows_k_quants_as_what_they_are(cli: Cli) -> None:
    spec = tiny_spec(dim=256, hidden_dim=512, n_heads=4, n_kv_heads=2)
    kinds = {"up": FloatType.Q4_K, "down": FloatType.Q4_K, "v": FloatType.Q51}
    tensors = [
        (name, quantized(matrix.dequantize(), kinds.get(name.rpartition(".")[2], matrix.float_type)))
        for name, matrix in tiny_tensors(spec)
    ]
    write_llama(cli.folder / "k.gguf", spec, tensors)
    shown = cli.run("inspect", "k.gguf")
    assert re.search(r"^weights    \S+ MB: F32 \S+ MB, Q4_K 294\.9 kB, Q5_1 49\.2 kB$", shown.out, re.MULTILINE), (
        shown.out
    )
    assert "in file" not in shown.out  # where it says what is read as another type
    in_file = json.loads(cli.run("inspect", "k.gguf", "--json").out)["in_file"]
    assert {"type": "Q4_K", "read_as": "Q4_K", "bytes": 4 * 256 * 512 // 256 * 144} in in_file
    assert {"type": "Q5_1", "read_as": "Q51", "bytes": 2 * 128 * 256 // 32 * 24} in in_file


def test_inspect_counts_an_embedding_that_is_the_output_matrix_once(cli: Cli) -> None:
    spec = tiny_spec()
    tensors = list(tiny_tensors(spec))
    write_llama(cli.folder / "both.gguf", spec, tensors)
    write_llama(cli.folder / "tied.gguf", spec, [(name, matrix) for name, matrix in tensors if name != "head"])
    both, tied = (json.loads(cli.run("inspect", name, "--json").out) for name in ("both.gguf", "tied.gguf"))
    assert both["parameters"] - tied["parameters"] == spec.vocab_size * spec.dim
    assert (both["tied"], tied["tied"], tied["bytes"]) == (False, True, both["bytes"])
    assert sum(each["bytes"] for each in tied["in_file"]) < sum(each["bytes"] for each in both["in_file"])
    shown = cli.run("inspect", "tied.gguf").out
    assert "; the embedding is the output matrix too, and counts twice\n" in shown
    assert max(map(len, shown.splitlines())) > 80  # over a pipe, no line is broken


def test_inspect_shows_what_a_type_without_kernels_is_read_as(cli: Cli) -> None:
    spec = tiny_spec(dim=256, hidden_dim=512, n_heads=4, n_kv_heads=2)
    rng = np.random.default_rng(1)
    tensors = [
        low_bit_tensor(llama_name(name), Q3_K, random_blocks(rng, Q3_K, *matrix.shape, size=0.05))
        if name.endswith(("up", "down"))
        else file_tensor(llama_name(name), matrix)
        for name, matrix in tiny_tensors(spec)
    ]
    (cli.folder / "q.gguf").write_bytes(gguf_bytes(llama_metadata(spec), tensors))
    shown = cli.run("inspect", "q.gguf")
    assert re.search(r"^weights    \S+ MB: F32 \S+ MB, Q6_K 430\.1 kB$", shown.out, re.MULTILINE), shown.out
    assert "Q3_K 225.3 kB read as Q6_K" in shown.out


def test_inspect_shows_what_is_in_a_file_that_is_not_run(cli: Cli) -> None:
    spec = tiny_spec()
    tensors = [file_tensor(llama_name(name), matrix) for name, matrix in tiny_tensors(spec)]
    (cli.folder / "g.gguf").write_bytes(gguf_bytes(llama_metadata(spec, "phi3"), tensors))
    two_bits = [FileTensor("blk.0.ffn_up.weight", [256, 4], TYPE_IDS["IQ2_XXS"], bytes(66 * 4))]
    (cli.folder / "q.gguf").write_bytes(gguf_bytes(llama_metadata(spec), two_bits))
    for name, shown, said in (
        ("g.gguf", ["phi3, 110.9 thousand parameters", "21 tensors: F32 110.9 thousand"], "the architecture is"),
        ("q.gguf", ["llama, 1.0 thousand parameters", "1 tensors: IQ2_XXS 1.0 thousand"], "Get the model's Q4_K_M"),
    ):
        result = cli.run("inspect", name)
        assert result.code == 1
        assert said in result.error()
        assert all(text in result.out for text in shown), result.out
        facts = json.loads(cli.run("inspect", name, "--json").out)
        assert said in facts["error"]


def test_a_pulled_model_runs_by_its_name_without_the_hub(cli: Cli, gguf: Path) -> None:
    with running_hub() as hub:
        hub.repos["org/small"] = Repo({"small-Q4_0.gguf": gguf.read_bytes()}, stored={"small-Q4_0.gguf"})
        env = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(cli.folder / "hub"),
            "HF_HUB_CACHE": str(cli.folder / "hub" / "hub"),
        }
        pulled = cli.run("pull", "org/small:Q4_0", **env)
        assert pulled.code == 0, pulled.said
        cli.write(2, model=pulled.out.strip())
        expected = cli.run(*GREEDY, **env)
        assert expected.code == 0, expected.said
    cli.write(2, model="hf:org/small:Q4_0")  # the hub is gone: nobody is asked
    result = cli.run(*GREEDY, **env)
    assert (result.code, result.out) == (0, expected.out), result.said
    missing = cli.run(*GREEDY, "-m", "hf:org/other", **env).error()
    assert "dllama-zmq pull org/other" in missing
    for words in (["inspect", "hf:org/other"], ["convert", "hf:org/other", "out.m"]):
        assert "dllama-zmq pull org/other" in cli.run(*words, **env).error(1)  # as of a path that is not there


def test_a_folder_is_quantized_on_the_way_where_a_flag_says_so(cli: Cli, small_model: Path) -> None:
    """Q40 of what Q40 says is the same Q40 again; the tokenizer is given, for the folder has none."""
    with open_m(small_model) as file:
        write_hf(cli.folder / "folder", file.spec, arrays_of(file))
    cli.write(2)
    expected = cli.run(*GREEDY).out
    cli.write(2, model="folder", tokenizer=str(small_model.with_suffix(".t")))
    result = cli.run(*GREEDY, "--weights", "q40")
    assert (result.code, result.out) == (0, expected), result.said
    assert cli.run("up", "--weights", "Q40").code == 0
    assert sum(node.weight_bytes for node in cli.status().nodes) < small_model.stat().st_size
    assert "with weights q40" in cli.run(*GREEDY, "--weights", "f16").error()
    cli.down()
