"""`dllama-zmq pull` against a hub on this computer: what it fetches, and where it puts it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, Repo
from puller import BIG, GGUF, TAKES_S, Puller

# --- what is fetched ----------------------------------------------------------------------------------------------


def test_a_model_is_fetched_and_its_path_is_all_that_stdout_says(puller: Puller, hub: Hub) -> None:
    path = puller.path("org/m")
    assert path == puller.folder / "snapshots" / COMMIT / GGUF
    assert path.read_bytes() == BIG
    assert hub.fetched() == [GGUF]


def test_the_files_to_fetch_are_named_with_their_sizes_before(puller: Puller) -> None:
    lines = puller.run("org/m:q8_0").err.splitlines()
    start = lines.index("org/m at main (01234567): 1 file, 3.0 MB")
    assert lines[start + 1] == "  m.Q8_0.gguf (3.0 MB)"


def test_other_programs_do_not_speak_in_between(puller: Puller, hub: Hub) -> None:
    hub.faults.status = {"/resolve/": [503]}
    env = puller.environment(HF_HUB_ENABLE_HF_TRANSFER="1", HF_DEBUG="1", HF_HUB_DISABLE_PROGRESS_BARS="0")
    result = puller.cli.run("--verbose", "pull", "org/m", wait_s=TAKES_S, **env)
    assert result.code == 0, result.said
    ours = re.compile(
        r"(loading hugging|looking for |org/m at |  m\.|m\.Q4_K_M\.gguf: |checking |try: |for a cluster put this ).*"
    )
    assert [line for line in result.err.splitlines() if not ours.fullmatch(line)] == []


def test_files_that_are_here_are_not_fetched_again(puller: Puller, hub: Hub) -> None:
    assert puller.path("org/m") == puller.path("org/m")
    assert hub.fetched() == [GGUF]


def test_huggingface_hub_finds_what_was_pulled(puller: Puller) -> None:
    path = puller.path("org/m")
    found = puller.python(
        "from huggingface_hub import hf_hub_download, scan_cache_dir\n"
        f"print(hf_hub_download('org/m', '{GGUF}', local_files_only=True))\n"
        "print(len(scan_cache_dir().warnings), [repo.size_on_disk for repo in scan_cache_dir().repos])"
    )
    assert found.splitlines() == [str(path), f"0 [{len(BIG)}]"]


def test_files_that_huggingface_hub_has_fetched_are_not_fetched_again(puller: Puller, hub: Hub) -> None:
    path = puller.python(f"from huggingface_hub import hf_hub_download as get; print(get('org/m', '{GGUF}'))")
    before = len(hub.fetched())
    assert puller.path("org/m") == Path(path)
    assert len(hub.fetched()) == before


def test_a_folder_of_safetensors_is_fetched_without_its_duplicates(puller: Puller, hub: Hub) -> None:
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    wanted = {"config.json": b"{}", "tokenizer.json": b"[]", "model.safetensors.index.json": b"{ }"}
    wanted |= {parts[0]: b"first", parts[1]: b"second"}
    others = {"pytorch_model.bin": b"pickle", "onnx/model.onnx": b"onnx", "README.md": b""}
    hub.repos["org/m"] = Repo(wanted | others, stored={*parts, "pytorch_model.bin"})
    folder = puller.path("org/m")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted


def test_a_split_gguf_is_fetched_whole(puller: Puller, hub: Hub) -> None:
    parts = {f"Q8_0/m-{i:05}-of-00003.gguf": bytes([i]) * 1000 for i in (1, 2, 3)}
    hub.repos["org/m"] = Repo(parts, stored=set(parts))
    path = puller.path("org/m:Q8_0")
    assert path.name == "m-00001-of-00003.gguf"
    assert [path.with_name(Path(name).name).read_bytes() for name in parts] == list(parts.values())


def test_another_revision_is_asked_for_by_name(puller: Puller) -> None:
    puller.path("org/m", "--revision", "refs/pr/1")
    assert (puller.folder / "refs" / "refs" / "pr" / "1").read_text() == COMMIT


def test_a_file_that_git_keeps_itself_is_fetched_too(puller: Puller, hub: Hub) -> None:
    assert puller.path("org/m:README.md").read_bytes() == b"words\n"


# --- to a folder --------------------------------------------------------------------------------------------------


def test_to_puts_the_files_there_alone(puller: Puller) -> None:
    folder = puller.cli.folder / "models"
    assert puller.path("org/m", "--to", "models") == folder / GGUF
    assert [path.name for path in folder.iterdir()] == [GGUF]
    assert not puller.cache.exists()


def test_to_takes_what_the_cache_has(puller: Puller, hub: Hub) -> None:
    puller.path("org/m")
    assert puller.path("org/m", "--to", "models").read_bytes() == BIG
    assert hub.fetched() == [GGUF]


def test_to_replaces_a_file_that_is_not_the_hubs_and_keeps_one_that_is(puller: Puller, hub: Hub) -> None:
    path = puller.path("org/m", "--to", "models")
    path.write_bytes(b"x" + BIG[1:])
    puller.path("org/m", "--to", "models")
    assert path.read_bytes() == BIG
    puller.path("org/m", "--to", "models")
    assert hub.fetched() == [GGUF, GGUF]


# --- without a hub ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "env"), [(["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})], ids=["flag", "variable"]
)
def test_offline_the_cache_answers_and_no_hub_is_asked(
    puller: Puller, hub: Hub, words: list[str], env: dict[str, str]
) -> None:
    path = puller.path("org/m:q8_0")
    before = len(hub.requests)
    assert puller.path("org/m", *words, **env) == path
    sentence = puller.run("org/m:Q4_K_M", *words, **env).error(2)
    assert sentence.endswith("it has Q8_0; `dllama-zmq pull org/m:Q4_K_M` fetches it")
    assert "`dllama-zmq pull org/x` fetches it" in puller.run("org/x", *words, **env).error(2)
    assert len(hub.requests) == before


def test_offline_a_name_that_several_models_have_is_answered_with_theirs(puller: Puller, hub: Hub) -> None:
    puller.path("org/m:Q8_0")
    puller.path("org/m:Q4_K_M")
    sentence = puller.run("org/m:*", "--offline").error(2)
    assert sentence == "the cache of org/m has 2 models like '*': Q4_K_M, Q8_0; choose one, as org/m:Q4_K_M"
    assert puller.verb("rm", "org/m:*").error(2) == sentence


def test_offline_a_part_that_is_missing_is_named(puller: Puller, hub: Hub) -> None:
    parts = {f"m-{i:05}-of-00002.gguf": bytes([i]) * 1000 for i in (1, 2)}
    hub.repos["org/m"] = Repo(parts, stored=set(parts))
    path = puller.path("org/m")
    path.with_name("m-00002-of-00002.gguf").unlink()
    assert "has no m-00002-of-00002.gguf" in puller.run("org/m", "--offline").error(2)


def test_find_pulled_names_what_was_pulled_and_asks_no_hub(puller: Puller, hub: Hub) -> None:
    path = puller.path("org/m")
    before = len(hub.requests)
    code = "from dllama_zmq.hub.cache import find_pulled\n"
    assert puller.python(f"{code}print(find_pulled('hf:org/m:q4_k_m'))") == str(path)
    code += "try: find_pulled('hf:org/x')\nexcept Exception as error: print(error)"
    assert puller.python(code).endswith("`dllama-zmq pull org/x` fetches it")
    assert len(hub.requests) == before


def test_other_commands_do_not_load_huggingface_hub(puller: Puller) -> None:
    modules = "dllama_zmq.cli.app, dllama_zmq.hub.pull, dllama_zmq.hub.store"
    code = f"import {modules}, sys; print('huggingface_hub' in sys.modules)"
    assert puller.python(code) == "False"


# --- on a terminal ------------------------------------------------------------------------------------------------


def test_a_terminal_sees_a_bar(puller: Puller, hub: Hub) -> None:
    hub.faults.hold_after = 1_000_000
    ours, theirs = pty.openpty()
    env = puller.cli.environment(**puller.environment(TERM="xterm", COLUMNS="100"))
    command = [sys.executable, "-m", "dllama_zmq", "pull", "org/m"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL, env=env)
    os.close(theirs)
    try:
        assert hub.faults.held.wait(TAKES_S)
        seen = b""
        deadline = time.monotonic() + TAKES_S
        while b"1.0 of 3.0 MB" not in seen:
            assert select.select([ours], [], [], max(0.0, deadline - time.monotonic()))[0], seen
            seen += os.read(ours, 65536)
        assert GGUF.encode() in seen
        hub.faults.let_go.set()
        while select.select([ours], [], [], TAKES_S)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # the terminal's other end is closed
                break
        out, _ = process.communicate(timeout=TAKES_S)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert (process.returncode, out.decode().count("\n")) == (0, 1)
    assert b"put this path after" in seen
