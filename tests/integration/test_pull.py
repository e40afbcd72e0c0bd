"""`dllama-zmq pull` against a hub on this computer: what it fetches, how it goes on, what it says when it cannot."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import Process, finish
from hub_server import COMMIT, TOKEN, Hub, Repo
from puller import BIG, GGUF, TAKES_S, Puller

SILENT_S = 6.0  # lines come after 1.5 and 5 s of a thing


# --- what is fetched ----------------------------------------------------------------------------------------------


def test_a_model_is_fetched_and_its_path_is_all_that_stdout_says(puller: Puller, hub: Hub) -> None:
    path = puller.path("org/m")
    assert path == puller.folder / "snapshots" / COMMIT / GGUF
    assert path.read_bytes() == BIG
    assert hub.fetched() == [GGUF]


def test_what_will_be_fetched_is_said_before_with_its_size(puller: Puller) -> None:
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


def test_what_is_here_is_not_fetched_again(puller: Puller, hub: Hub) -> None:
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


def test_what_huggingface_hub_fetched_is_not_fetched_again(puller: Puller, hub: Hub) -> None:
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


# --- going on -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["Ctrl-C", "kill"])
def test_a_pull_that_was_stopped_goes_on_where_it_was(puller: Puller, hub: Hub, number: int, code: int) -> None:
    hub.faults.hold_after = 2_000_000
    with puller.started("org/m") as process:
        assert hub.faults.held.wait(TAKES_S)
        part = puller.folder / "blobs" / f"{hub.repos['org/m'].sha256(GGUF)}.dllama-zmq.incomplete"
        deadline = time.monotonic() + TAKES_S
        while not part.exists() or part.stat().st_size < 2_000_000:
            assert time.monotonic() < deadline
        process.send_signal(number)
        ended = finish(process, TAKES_S, time.monotonic())
    assert ended.code == code, ended.said
    assert (ended.out, "Traceback" in ended.err) == ("", False)
    if code == 130:
        assert ended.err.splitlines()[-1].endswith("the same command goes on from there")
    hub.faults.hold_after = None
    result = puller.run("org/m")
    assert f"  {GGUF} (3.0 MB, 1.0 MB to go)" in result.err
    assert (puller.folder / "snapshots" / COMMIT / GGUF).read_bytes() == BIG
    assert hub.fetched() == [GGUF, f"{GGUF} bytes=2000000-2999999"]
    assert not part.exists()


def test_a_connection_that_ends_early_is_made_again_and_goes_on(puller: Puller, hub: Hub) -> None:
    hub.faults.cut_after = [1_000_000, 1_500_000]
    assert puller.path("org/m").read_bytes() == BIG
    assert hub.fetched() == [GGUF, f"{GGUF} bytes=1000000-2999999", f"{GGUF} bytes=2500000-2999999"]


def test_a_fault_of_the_hub_that_passes_is_waited_for(puller: Puller, hub: Hub) -> None:
    hub.faults.status = {"/resolve/": [503, 500]}
    assert puller.path("org/m").read_bytes() == BIG


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "2"}, {"RateLimit": '"resolvers";r=0;t=2'}], ids=["Retry-After", "RateLimit"]
)
@pytest.mark.parametrize("asked", ["/api/models/", "/resolve/"])
def test_too_many_requests_are_waited_for_as_the_hub_asks_and_that_is_said_once(
    puller: Puller, hub: Hub, headers: dict[str, str], asked: str
) -> None:
    hub.faults.status, hub.faults.headers = {asked: [429]}, headers
    result = puller.run("org/m")
    assert result.code == 0, result.said
    said = f"{hub.url} has had too many requests from here and asks to wait 2 s; waiting"
    assert result.err.splitlines().count(said) == 1
    assert result.seconds > 2


def test_a_transfer_goes_on_where_it_was_when_the_hub_had_had_too_many_requests(puller: Puller, hub: Hub) -> None:
    hub.faults.cut_after, hub.faults.headers = [1_000_000], {"Retry-After": "1"}
    hub.faults.status = {"/resolve/": [0, 429, 429, 429, 429]}  # more often than a fault may come in a row
    assert puller.path("org/m").read_bytes() == BIG


@pytest.mark.parametrize(
    ("asked_s", "says"), [("86400", "try again in 86400 s"), ("soon", "try again in some minutes")]
)
def test_too_long_a_wait_is_not_begun(puller: Puller, hub: Hub, asked_s: str, says: str) -> None:
    hub.faults.status, hub.faults.headers = {"/resolve/": [429]}, {"Retry-After": asked_s}
    assert says in puller.run("org/m").error()


def test_a_server_that_sends_all_or_nothing_is_begun_again(puller: Puller, hub: Hub) -> None:
    hub.faults.cut_after, hub.faults.no_ranges = [1_000_000], True
    assert puller.path("org/m").read_bytes() == BIG


def test_two_pulls_of_one_file_do_not_mix(puller: Puller, hub: Hub) -> None:
    hub.faults.hold_after = 1000
    with puller.started("org/m") as first:
        assert hub.faults.held.wait(TAKES_S)
        assert "another process is downloading" in puller.run("org/m").error()
        hub.faults.let_go.set()
        assert finish(first, TAKES_S, time.monotonic()).code == 0
    assert puller.path("org/m").read_bytes() == BIG


# --- what is checked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", [GGUF, "README.md"], ids=["SHA-256", "Git"])
def test_bytes_without_the_hubs_checksum_are_refused_and_removed(puller: Puller, hub: Hub, file: str) -> None:
    hub.faults.corrupt = True
    assert f"{file} does not have the hub's checksum" in puller.run(f"org/m:{file}").error()
    assert puller.files() == []


def test_a_part_that_is_damaged_is_not_taken_for_the_file(puller: Puller, hub: Hub) -> None:
    part = puller.folder / "blobs" / f"{hub.repos['org/m'].sha256(GGUF)}.dllama-zmq.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1_000_000))
    assert "does not have the hub's checksum" in puller.run("org/m").error()
    assert puller.path("org/m").read_bytes() == BIG


def test_a_disk_without_the_room_is_known_before_anything_is_fetched(puller: Puller, hub: Hub) -> None:
    hub.repos["org/m"].listed_bytes = {GGUF: 1 << 49}
    assert "org/m needs 562950.0 GB more, and " in puller.run("org/m").error(2)
    assert hub.fetched() == []


@pytest.mark.parametrize("name", ["../m.gguf", "/etc/m.gguf", "a/../../m.gguf", "a\nb.gguf", "a\\b.gguf"])
def test_a_listing_with_a_file_that_leads_elsewhere_is_refused(puller: Puller, hub: Hub, name: str) -> None:
    hub.repos["org/m"] = Repo({name: b"x"})
    assert "which is not safe" in puller.run("org/m").error()


@pytest.mark.parametrize("n_bytes", [-1, 1 << 51, None, "7", 1.5])
def test_a_listing_without_a_size_that_can_be_is_refused(puller: Puller, hub: Hub, n_bytes: int) -> None:
    hub.repos["org/m"].listed_bytes = {GGUF: n_bytes}
    assert f"as the size of org/m/{GGUF}" in puller.run("org/m").error()


# --- no network ---------------------------------------------------------------------------------------------------


def test_a_hub_that_cannot_be_reached_is_named_with_what_to_do(puller: Puller) -> None:
    puller.hub.stop()
    sentence = puller.run("org/m").error()
    assert sentence.startswith(
        f"{puller.hub.url} cannot be reached ([Errno 111] Connection refused); check the network"
    )
    assert all(word in sentence for word in ("try again", "HF_ENDPOINT", "HF_HUB_OFFLINE=1"))


def test_a_name_that_no_address_belongs_to_is_told_as_no_network(puller: Puller) -> None:
    sentence = puller.run("org/m", HF_ENDPOINT="https://hub.invalid").error()
    assert sentence.startswith("https://hub.invalid cannot be reached (")


def test_a_proxy_that_does_not_answer_is_named(puller: Puller) -> None:
    sentence = puller.run("org/m", HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9").error()
    assert "check the network and the proxy of HTTP_PROXY" in sentence


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"HF_ENDPOINT": "hub.example"}, "hub.example cannot be asked"),
        ({"HTTPS_PROXY": "nothing://x", "https_proxy": "nothing://x"}, "the proxy cannot be used"),
        ({"HF_HUB_ETAG_TIMEOUT": "soon"}, "an HF_... variable must be a number"),
        ({"HF_TOKEN": "hf_sécret"}, "the token has a character that no token has"),
    ],
    ids=["endpoint", "proxy", "number", "token"],
)  # fmt: skip
def test_a_variable_that_cannot_be_used_is_told(puller: Puller, env: dict[str, str], says: str) -> None:
    result = puller.run("org/m", **env)
    assert result.error(2).startswith(says)
    assert "sécret" not in result.err


def test_a_hub_that_says_nothing_is_waited_for_aloud_and_not_for_long(puller: Puller, hub: Hub) -> None:
    hub.faults.hold_all = True
    with puller.started("org/m", HF_HUB_ETAG_TIMEOUT="4") as process:
        assert hub.faults.held.wait(TAKES_S)
        (line,) = read_lines(process, 1)
        ended = finish(process, TAKES_S, time.monotonic())
    assert line.startswith("looking for org/m (")
    assert ended.error().startswith(f"{hub.url} does not answer in time")


def test_a_transfer_is_told_where_there_is_no_terminal(puller: Puller, hub: Hub) -> None:
    hub.faults.hold_after = 1_000_000
    with puller.started("org/m") as process:
        assert hub.faults.held.wait(TAKES_S)
        lines = read_lines(process, 4)
        assert lines[-1].startswith(f"{GGUF}: 1.0 of 3.0 MB, ")


def test_a_transfer_that_always_ends_early_ends_in_one_sentence(puller: Puller, hub: Hub) -> None:
    hub.faults.cut_after = [100] * 50
    result = puller.run("org/m")
    assert result.error().startswith(f"127.0.0.1 (where {hub.url} sends downloads) ") or hub.url in result.error()
    assert len(hub.fetched()) == 3


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (500, "failed (HTTP 500); try again later"),
        (503, "failed (HTTP 503); try again later"),
        (429, "has had too many requests from here"),
        (200, "does not answer like a hub"),
        (418, "refuses org/m (HTTP 418"),
    ],
)
def test_what_the_hub_answers_is_told_in_one_sentence(puller: Puller, hub: Hub, status: int, says: str) -> None:
    hub.faults.status = {"/api/models/": [status]}
    assert says in puller.run("org/m").error()


# --- who may have it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "hf_SomebodyElse"])
def test_a_gated_model_says_where_to_accept_its_licence(puller: Puller, hub: Hub, token: str) -> None:
    hub.repos["org/m"].gated = True
    result = puller.run("org/m", HF_TOKEN=token)
    says = f"accept its licence at {hub.url}/org/m and set HF_TOKEN (or run `hf auth login`)"
    assert says in result.error()
    assert "SomebodyElse" not in result.err
    assert puller.files() == []


@pytest.mark.parametrize("kind", ["gated", "private"])
def test_the_token_opens_what_it_may_and_goes_to_the_hub_alone(puller: Puller, hub: Hub, kind: str) -> None:
    setattr(hub.repos["org/m"], kind, True)
    env = puller.environment(HF_TOKEN=TOKEN, DLLAMA_ZMQ_DEBUG="1", HF_DEBUG="1")
    result = puller.cli.run("--verbose", "pull", "org/m", wait_s=TAKES_S, **env)
    assert result.code == 0, result.said
    assert TOKEN not in result.out + result.err
    with_token = {request.path for request in hub.requests if "authorization" in request.headers}
    assert with_token
    assert not any("signature" in path for path in with_token)


def test_a_token_that_was_signed_in_with_is_used(puller: Puller, hub: Hub) -> None:
    hub.repos["org/m"].private = True
    puller.cache.parent.mkdir()
    (puller.cache.parent / "token").write_text(TOKEN)
    assert puller.path("org/m").read_bytes() == BIG


@pytest.mark.parametrize("private", [False, True])
def test_a_model_that_is_not_there_for_you_says_so(puller: Puller, hub: Hub, private: bool) -> None:
    hub.repos["org/x" if private else "org/y"] = Repo({GGUF: b""}, private=True)
    sentence = puller.run("org/x").error(2)
    assert sentence.startswith(f"there is no public model {hub.url}/org/x; check its name")
    assert "HF_TOKEN (or run `hf auth login`)" in sentence


def test_a_token_that_does_not_help_is_said(puller: Puller) -> None:
    assert "does not accept your token for org/x" in puller.run("org/x", HF_TOKEN="hf_SomebodyElse").error()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["org/m", "--revision", "dev"], "org/m has no branch, tag or commit 'dev'"),
        (["org/m:Q5_K_M"], "has no 'Q5_K_M'; the nearest are Q4_K_M"),
        (["org/m:*"], "has 2 models like '*': Q4_K_M, Q8_0; choose one, as org/m:Q4_K_M"),
        (["../m"], "is not the name of a hub"),
        (["org/m", "--to", "x", "--offline"], "--to downloads from the hub, which is not asked offline"),
    ],
    ids=["revision", "file", "several", "name", "offline"],
)
def test_wrong_use_is_told(puller: Puller, words: list[str], says: str) -> None:
    assert says in puller.run(*words).error(2)


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
    assert puller.python("from dllama_zmq.hub import find_pulled; print(find_pulled('hf:org/m:q4_k_m'))") == str(path)
    code = (
        "from dllama_zmq.hub import find_pulled\ntry: find_pulled('hf:org/x')\nexcept Exception as error: print(error)"
    )
    assert puller.python(code).endswith("`dllama-zmq pull org/x` fetches it")
    assert len(hub.requests) == before


def test_other_commands_do_not_load_huggingface_hub(puller: Puller) -> None:
    code = "import dllama_zmq.cli.app, dllama_zmq.hub, sys; print('huggingface_hub' in sys.modules)"
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


def read_lines(process: Process, n_lines: int) -> list[str]:
    """The next lines of stderr, none of which comes later than SILENT_S after the one before; the first may."""
    assert process.stderr is not None
    data, wait_s = b"", TAKES_S
    while data.count(b"\n") < n_lines:
        assert select.select([process.stderr], [], [], wait_s)[0], f"silent for {wait_s} s after {data!r}"
        data += os.read(process.stderr.fileno(), 65536)
        wait_s = SILENT_S
    return data.decode().splitlines()[:n_lines]
