"""What has been pulled: listed, named without hf:, removed."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from command_line import json_object
from gguf_writer import gguf_of
from hub_server import COMMIT, Hub, Repo
from puller import BIG, TAKES_S, Puller


def test_pulled_models_are_listed_with_the_name_to_type_and_their_place(puller: Puller, hub: Hub) -> None:
    assert json_object(puller.verb("list", "--json").out) == {"models": []}
    one = puller.path("org/m:Q8_0")
    hub.repos["org/folder"] = Repo({"config.json": b"{}", "model.safetensors": b"12345"})
    folder = puller.path("org/folder")
    puller.python("from huggingface_hub import hf_hub_download as get; get('org/m', 'README.md')")
    assert json_object(puller.verb("list", "--json").out) == {
        "models": [
            {"name": "org/folder", "path": str(folder), "bytes": 7},
            {"name": "org/m", "path": str(one), "bytes": len(BIG)},
        ]
    }
    puller.path("org/m:Q4_K_M")
    table = puller.verb("ls")
    lines = table.out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "org/folder", "org/m:Q4_K_M", "org/m:Q8_0"]
    assert table.err.startswith(f"in {puller.cache}; ")


def test_rm_removes_one_of_two_models_and_leaves_the_other(puller: Puller) -> None:
    kept, _ = puller.path("org/m:Q8_0"), puller.path("org/m:Q4_K_M")
    assert puller.verb("rm", "org/m:Q4_K_M", "--yes").out == ""
    assert kept.read_bytes() == BIG[::-1]
    assert puller.files() == [f"blobs/{kept.resolve().name}", "refs/main", f"snapshots/{COMMIT}/{kept.name}"]


def test_rm_of_the_last_model_removes_the_repository(puller: Puller) -> None:
    puller.path("org/m")
    assert "3.0 MB" in puller.verb("rm", "hf:org/m", "--yes").err
    assert puller.files() == []
    sentence = puller.verb("rm", "org/m", "--yes").error(2)
    assert sentence == f"org/m is not in the cache {puller.cache}; `dllama-zmq list` shows what can be removed"


def test_rm_asks_before_it_removes_and_takes_no_for_an_answer(puller: Puller) -> None:
    path = puller.path("org/m")
    assert "--yes" in puller.verb("rm", "org/m").error(2)  # nobody to ask
    ours, theirs = pty.openpty()
    env = puller.cli.environment(**puller.environment())
    command = [sys.executable, "-m", "dllama_zmq", "rm", "org/m"]
    with subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, env=env) as process:
        os.close(theirs)
        os.write(ours, b"n\n")
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert process.wait(TAKES_S) == 1
    os.close(ours)
    assert "remove org/m (3.0 MB in" in said
    assert said.endswith("nothing was removed\n")
    assert path.exists()


def test_a_pulled_model_needs_no_hf_before_its_name(puller: Puller, hub: Hub, small_model: Path) -> None:
    data = gguf_of(small_model, small_model.with_suffix(".t"))
    hub.repos["org/Tiny-GGUF"] = Repo({"t.Q4_K_M.gguf": data}, stored={"t.Q4_K_M.gguf"})
    path = puller.path("org/Tiny-GGUF")
    for name in ("org/Tiny-GGUF", "org/Tiny-GGUF:Q4_K_M", "Tiny-GGUF", "hf:org/Tiny-GGUF"):
        found = json_object(puller.verb("inspect", name, "--json").out)
        assert found["path"] == str(path)
    assert "`dllama-zmq pull org/Other`" in puller.verb("inspect", "org/Other").error()


def test_a_name_of_several_pulled_models_lists_them(puller: Puller, hub: Hub) -> None:
    hub.repos["org/two-GGUF"] = Repo({"t.Q4_0.gguf": b"4", "t.Q8_0.gguf": b"8"})
    for quantization in ("Q4_0", "Q8_0"):
        puller.path(f"org/two-GGUF:{quantization}")
    for command in (["run", "org/two-GGUF", "hi"], ["show", "two-GGUF"], ["up", "-m", "hf:org/two-GGUF"]):
        assert "has 2 models: Q4_0, Q8_0; choose one, as org/two-GGUF:Q4_0" in puller.verb(*command).error()
    assert "has no 'Q5_0'; " in puller.verb("show", "org/two-GGUF:Q5_0").error()
