"""A mistake in a cluster's file or a taken port is one sentence, soon, and nothing is left running."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_line import SMALL, Cli, await_words, write_small_model
from msgspec.structs import replace
from surroundings import free_ports
from tiny import tiny_spec, tiny_tokenizer_data, write_tiny_model

from dllama_zmq.formats import write_t

SOON_S = 10.0


def refusal(cli: Cli, *words: str) -> str:
    """The sentence that a command ends in, soon, with nothing on stdout and nothing left behind."""
    # What stays in the foreground could change how this process takes signals.
    result = cli.run(*words, wait_s=SOON_S) if "--foreground" in words else cli.run_here(*words)
    sentence = result.error()
    assert result.seconds < SOON_S
    assert result.out == ""
    assert cli.processes() == []
    assert cli.sockets() == []
    return sentence


# --- ports --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", ["replies", "steps", "clients"])
def test_a_port_in_use_is_named_with_what_to_do(cli: Cli, port: str) -> None:
    cli.write(2)
    with socket.create_server(("127.0.0.1", cli.ports[port])):
        sentence = refusal(cli, "up")
    address = f"tcp://127.0.0.1:{cli.ports[port]}"
    assert sentence.startswith(f"{address} is in use by another program; stop it, or choose other numbers under root")


def test_a_port_in_use_is_found_before_kernels_are_compiled(cli: Cli, tmp_path: Path) -> None:
    cli.write(2)
    with socket.create_server(("127.0.0.1", cli.ports["steps"])):
        result = cli.run("up", wait_s=60.0, XDG_CACHE_HOME=str(tmp_path / "empty"))
    assert result.err == f"error: {result.error()}\n"


def test_two_clusters_on_the_same_ports_cannot_both_run(cli: Cli) -> None:
    cli.up(1)
    other = cli.folder / "other.yaml"
    other.write_text((cli.folder / "cluster.yaml").read_text().replace("name: small", "name: other"))
    assert f"tcp://127.0.0.1:{cli.ports['clients']} is in use" in cli.run("up", "other.yaml", wait_s=SOON_S).error()
    assert cli.status().state == "ready"
    cli.down()


def test_a_root_on_an_address_of_another_machine_is_refused(cli: Cli) -> None:
    cli.write(2, host="192.0.2.7", security="none")
    assert "root.host: 192.0.2.7 is not an address of this computer" in refusal(cli, "up")
    assert "this machine has no such address" in refusal(cli, "up", "--foreground")


def test_a_worker_whose_root_is_not_there_says_what_its_address_meets_and_keeps_trying(cli: Cli) -> None:
    (port,) = free_ports(1)
    with cli.started("worker", f"127.0.0.1:{port}") as worker:
        await_words(worker, f"there, but no program listens at its port {port} (connection refused)")
        with socket.create_server(("127.0.0.1", port)):
            await_words(worker, f"a program listens at 127.0.0.1 port {port} and has not answered")
        assert worker.poll() is None


@pytest.mark.parametrize("command", [["status"], ["down"], ["generate", "once", "--temp", "0"], ["netstat"], ["bench"]])
def test_a_command_to_a_root_that_is_not_there_says_what_its_address_meets(cli: Cli, command: list[str]) -> None:
    (port,) = free_ports(1)
    sentence = refusal(cli, *command, "--connect", f"127.0.0.1:{port}")
    assert sentence.startswith(
        f"nobody answers at tcp://127.0.0.1:{port}; the computer 127.0.0.1 is there, but no prog"
    )


# --- cluster.yaml -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["up"], ["generate", "once", "--temp", "0"], ["down"], ["status"]])
def test_every_command_that_reads_the_file_names_a_mistake_in_it(cli: Cli, command: list[str]) -> None:
    (cli.folder / "cluster.yaml").write_text("model: demo\nmodle: x\n")
    assert re.match(r"cluster\.yaml:2:1: .*unknown key 'modle'.*did you mean model\?", refusal(cli, *command))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: small\n\tmodel: demo\n", r"cluster\.yaml:2:1: .*tab"),
        ("model: demo\nroot:\n\tthreads: 2\n", r"cluster\.yaml:3:1: .*tab"),
        ("model: demo\nroot: {prots: {}}\n", r"cluster\.yaml:2:8: root: .*'prots'.*did you mean ports\?"),
        ("model: demo\nworkers: [{name: a}, {name: b}]\n", r"cluster\.yaml:.*1 root \+ 2 workers are 3 nodes; use "),
        ("", r"cluster\.yaml: .*empty"),
        ("\x00\x01", r"cluster\.yaml"),
    ],
    ids=["tab", "tab inside", "unknown key", "three nodes", "empty", "no text"],
)
def test_a_file_that_is_no_cluster_is_refused_at_its_place(cli: Cli, text: str, says: str) -> None:
    (cli.folder / "cluster.yaml").write_text(text)
    assert re.match(says, refusal(cli, "up"))


def test_a_missing_file_is_refused_with_what_to_do(cli: Cli) -> None:
    assert "there is no such file; a model is enough without one" in refusal(cli, "up")


# --- model and tokenizer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["up"], ["up", "--foreground"], ["generate", "once", "--no-echo", "--json"]])
def test_a_missing_model_is_refused_with_its_path(cli: Cli, command: list[str]) -> None:
    cli.write(2, model="nowhere.m")
    assert f"model: there is no {cli.folder}/nowhere.m" in refusal(cli, *command)


def test_nothing_is_said_to_come_up_before_a_model_is_refused(cli: Cli) -> None:
    cli.write(2, host="0.0.0.0", security="none", workers=[{"name": "far", "host": "192.0.2.1"}], model="nowhere.m")
    result = cli.run("generate", "once", wait_s=SOON_S)
    assert result.err == f"error: {result.error()}\n"


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def too_long(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def of_another_kind(path: Path) -> None:
    path.write_bytes(b"GGUF" + path.read_bytes()[4:])


@pytest.mark.parametrize("suffix", [".m", ".t"])
@pytest.mark.parametrize("damage", [cut_short, too_long, emptied, of_another_kind])
def test_a_damaged_file_is_refused_by_name(cli: Cli, suffix: str, damage: Callable[[Path], None]) -> None:
    model = write_small_model(cli.folder / "own.m")
    damage(model.with_suffix(suffix))
    cli.write(2, model="own.m")
    assert refusal(cli, "up").startswith(f"{model.with_suffix(suffix)}")


def test_the_tokenizer_of_another_model_is_refused_with_both_sizes(cli: Cli) -> None:
    write_t(cli.folder / "other.t", tiny_tokenizer_data(400))
    cli.write(2, tokenizer="other.t")
    sentence = refusal(cli, "up")
    assert "400" in sentence
    assert str(SMALL.vocab_size) in sentence


def test_a_tokenizer_that_may_be_another_models_is_warned_of_and_taken(cli: Cli) -> None:
    write_tiny_model(cli.folder / "large.m", tiny_spec(vocab_size=400)).close()
    write_t(cli.folder / "large.t", tiny_tokenizer_data(288))
    cli.write(1, model="large.m")
    result = cli.generate("-n", "1")
    warnings = [line for line in result.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1, result.said
    assert f"{cli.folder}/large.t has 288 tokens, but {cli.folder}/large.m has a vocabulary of 400" in warnings[0]
    assert warnings[0].removeprefix("warning: ") in (cli.log_folder / "root.log").read_text()


def test_a_model_that_cannot_be_split_so_is_refused_with_the_counts_that_can(cli: Cli) -> None:
    cli.write(16)
    sentence = refusal(cli, "up")
    assert sentence.startswith(f"{cli.model}: ")
    assert "This model can be split over 1, 2, 4 or 8 nodes" in sentence


def test_an_empty_prompt_is_refused_where_the_tokenizer_begins_no_text(cli: Cli) -> None:
    write_t(cli.folder / "bare.t", replace(tiny_tokenizer_data(SMALL.vocab_size), add_bos=False))
    cli.write(1, tokenizer="bare.t")
    assert "the prompt is empty" in cli.run("generate", "", "--no-echo", wait_s=SOON_S).error()


@pytest.mark.parametrize("name", ["/etc/passwd", "a/../b"])
def test_a_name_that_leads_out_of_its_folder_is_refused(cli: Cli, name: str) -> None:
    path = cli.write(1)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"name": name}))
    assert "name: " in refusal(cli, "up")


# --- folders that cannot be written -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "is_folder"),
    [
        ("run", False),
        ("logs", False),
        ("run/small", False),
        ("logs/small", False),
        ("run/small/lock", True),
        ("logs/small/root.log", True),
        ("logs/small/cluster.json", True),
    ],
)
def test_a_place_that_cannot_be_written_is_named_with_what_to_do(cli: Cli, place: str, is_folder: bool) -> None:
    cli.write(1)
    blocked = cli.home / place
    blocked.parent.mkdir(parents=True, exist_ok=True)
    if is_folder:
        (blocked / "x").mkdir(parents=True)  # or the log of the run before would be put aside
        (blocked.parent / "root.log.1").touch()
    else:
        blocked.touch()
    sentence = refusal(cli, "up")
    assert sentence.startswith(f"{blocked}")
    assert "set DLLAMA_ZMQ_HOME to a" in sentence


def test_a_home_that_is_a_file_is_named_with_what_to_do(cli: Cli) -> None:
    file = cli.home / "file"
    file.touch()
    result = cli.run("run", "demo", "hi", wait_s=SOON_S, DLLAMA_ZMQ_HOME=str(file))
    assert result.error().startswith(f"{file}: the folder cannot be made (")
    assert "set DLLAMA_ZMQ_HOME to a folder that you can write" in result.error()
