"""Workers and clients of other computers: a line to paste once, keys that come and go, and who is refused.

The other computer is another home on this one. Its worker reaches the root by TCP under CURVE, and goes on over ipc,
as every worker of the root's own host does; `test_two_machines.py` has computers of their own.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from command_line import Cli, Process, await_words, finish, json_object, short_home, until

FAR = {"name": "far", "host": "192.0.2.1"}
SOON_S = 30.0


@pytest.fixture
def other() -> Iterator[Path]:
    """The home of the other computer's user."""
    with short_home() as home:
        yield home


def write(cli: Cli, **keys: object) -> None:
    cli.write(2, **{"host": "0.0.0.0", "workers": [FAR], **keys})


@contextmanager
def starting(cli: Cli) -> Iterator[tuple[Process, list[str]]]:
    """`up`, and the words that it tells to type on the other computer."""
    with cli.started("up") as up:
        printed = await_words(up, "start on 192.0.2.1: dllama-zmq worker ")
        if not printed.rstrip().endswith("\n"):
            printed += await_words(up, "\n")
        (line,) = re.findall(r"start on 192\.0\.2\.1: dllama-zmq (worker .*)", printed)
        yield up, line.replace("'", "").split()


def up_with(cli: Cli, other: Path) -> tuple[list[str], Process]:
    """Bring the cluster up with a worker of the other computer; the words that started it, and its process."""
    with starting(cli) as (up, words):
        worker = start(cli, other, words)
        result = finish(up, 60.0, 0.0)
        assert result.code == 0, result.said
    return words, worker


def start(cli: Cli, home: Path, words: list[str]) -> Process:
    import sys

    return subprocess.Popen(
        [sys.executable, "-m", "dllama_zmq", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cli.folder,
        env=cli.environment(DLLAMA_ZMQ_HOME=str(home)),
    )


@contextmanager
def ended(process: Process) -> Iterator[None]:
    """End the process at the end of the block."""
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=15)


def token(cli: Cli, *words: str) -> str:
    """The token that the root's computer prints."""
    result = cli.run("token", *words)
    assert result.code == 0, result.said
    return result.out.split()[-1]


def test_a_line_pasted_once_lets_a_worker_join_and_later_starts_need_none(cli: Cli, other: Path) -> None:
    write(cli)
    words, worker = up_with(cli, other)
    with ended(worker):
        assert words[:2] == ["worker", "--join"]
        text = cli.generate("-n", "6").out
        cli.down()
        with starting(cli) as (up, again):  # the worker is there still, and nothing has to be pasted
            assert again[0] == "worker"
            assert "--join" not in again
            assert finish(up, 60.0, 0.0).code == 0
        assert cli.generate("-n", "6").out == text
        cli.down()
    with starting(cli) as (up, again):
        worker = start(cli, other, again)
        with ended(worker):
            assert finish(up, 60.0, 0.0).code == 0
            assert cli.generate("-n", "6").out == text
            cli.down()


def test_the_same_line_may_start_the_worker_again_but_joins_no_other_computer(cli: Cli, other: Path) -> None:
    write(cli)
    words, worker = up_with(cli, other)
    with ended(worker), short_home() as third:
        sentence = cli.run(*words, DLLAMA_ZMQ_HOME=str(third)).error()
        assert "does not take this token: it has been used or has expired" in sentence
        assert not (third / "keys" / "known_roots").exists()
    until(lambda: cli.status().state == "forming", SOON_S, "the root to miss its worker")
    with ended(start(cli, other, words)):
        until(lambda: cli.status().state == "ready", SOON_S, "the worker to be back")
    cli.down()


def test_a_client_joins_once_and_is_cut_off_when_its_key_is_removed(cli: Cli, other: Path) -> None:
    cli.write(1, host="0.0.0.0", workers=[])
    assert cli.run("up").code == 0
    there = {"DLLAMA_ZMQ_HOME": str(other)}
    text = token(cli, "laptop", "--client")
    joined = cli.run("join", text, **there)
    assert joined.code == 0, joined.said
    assert "it has been used or has expired" in cli.run("join", text, **there).error()
    (where,) = re.findall(r"joined as laptop; now: dllama-zmq chat --connect (\S+)", joined.err)
    answer = cli.run("generate", "--connect", where, "once upon a time", "--temp", "0", "-n", "6", **there)
    assert answer.out == cli.generate("-n", "6").out
    keys = json_object(cli.run("keys", "--json").out)["keys"]
    assert [(key["role"], key["name"], key["from"]) for key in keys] == [("client", "laptop", "token")]
    assert "removed 1 key" in cli.run("keys", "--remove", "laptop").err
    until(lambda: cli.run("status", "--connect", where, **there).code == 1, SOON_S, "the key to be refused")
    assert "does not admit the key of this computer" in cli.run("status", "--connect", where, **there).error()
    cli.down()


def test_a_computer_may_join_first_and_start_its_worker_later(cli: Cli, other: Path) -> None:
    write(cli)
    there = {"DLLAMA_ZMQ_HOME": str(other)}
    with starting(cli) as (up, words):
        joined = cli.run("join", words[-1], **there)
        (later,) = re.findall(r"joined as far; now: dllama-zmq (worker \S+)", joined.err)
        with ended(start(cli, other, later.split())):
            assert finish(up, 60.0, 0.0).code == 0
            cli.generate("-n", "2")
        cli.down()


def test_keys_of_the_file_admit_a_worker_and_a_client_without_a_token(cli: Cli, other: Path) -> None:
    there = {"DLLAMA_ZMQ_HOME": str(other)}
    key = cli.run("keygen", **there).out.strip()
    write(cli, workers=[FAR | {"key": key}], clients=[{"name": "laptop", "key": key}])
    words, worker = up_with(cli, other)
    with ended(worker):
        assert "--root-key" in words
        cli.generate("-n", "2")
    cli.down()


def test_a_computer_that_does_not_know_the_root_hears_how_to_join(cli: Cli, other: Path) -> None:
    there = {"DLLAMA_ZMQ_HOME": str(other)}
    for words in (["worker", "192.0.2.7"], ["status", "--connect", "192.0.2.7"]):
        sentence = cli.run_here(*words, **there).error()
        assert "does not know the key of the root at tcp://192.0.2.7:557" in sentence
        assert "dllama-zmq token" in sentence


def test_a_token_is_refused_on_the_other_computer_where_it_is_not_whole_or_a_clients(cli: Cli, other: Path) -> None:
    write(cli)
    there = {"DLLAMA_ZMQ_HOME": str(other)}
    text = token(cli, "far")
    assert "paste the whole line" in cli.run_here("worker", "--join", text[:-3], **there).error()
    client = token(cli, "--client")
    assert "this token is for a client" in cli.run_here("worker", "--join", client, **there).error(2)
    assert not other.joinpath("keys").exists()


def test_a_root_with_another_key_than_the_known_one_is_refused_before_a_token_is_sent(cli: Cli, other: Path) -> None:
    cli.write(1, host="0.0.0.0", workers=[])
    assert cli.run("up").code == 0
    there = {"DLLAMA_ZMQ_HOME": str(other)}
    assert cli.run("join", token(cli, "--client"), **there).code == 0
    cli.down()
    cli.run("keygen", "--new")
    assert cli.run("up").code == 0
    second = token(cli, "--client")
    known_roots = other / "keys" / "known_roots"
    sentence = cli.run("join", second, **there).error()
    assert f"has another key than the one known at {known_roots}:" in sentence
    (line,) = re.findall(rf"{known_roots}:(\d+)", sentence)
    lines = known_roots.read_text().splitlines(keepends=True)
    known_roots.write_text("".join(lines[: int(line) - 1] + lines[int(line) :]))
    waiting = json_object(cli.run("keys", "--json").out)["tokens"]
    assert len(waiting) == 1  # it was not used up
    assert cli.run("join", second, **there).code == 0
    cli.down()


def test_where_no_token_is_of_use_the_sentence_says_what_is(cli: Cli) -> None:
    cli.write(2)
    assert "is only for this computer" in cli.run_here("token").error()
    write(cli, security="none")
    assert "needs no token" in cli.run_here("token", "far").error()
    write(cli)
    assert "its workers on other computers are far" in cli.run_here("token", "near").error(2)
    write(cli, workers=[FAR | {"key": cli.run("keygen").out.strip()}])
    assert "far has its key in cluster.yaml" in cli.run_here("token", "far").error(2)
    assert "the key of far is in cluster.yaml" in cli.run_here("keys", "--remove", "far").error(2)
    assert "no key and no token of 'near'" in cli.run_here("keys", "--remove", "near").error(2)


def test_a_key_that_others_can_read_starts_no_cluster_until_the_command_mends_it(cli: Cli) -> None:
    cli.run("keygen")
    key = cli.home / "keys" / "key"
    key.chmod(0o644)
    cli.write(1, host="0.0.0.0", workers=[])
    sentence = cli.run("up").error()
    assert f"chmod 600 {key}" in sentence
    subprocess.run(sentence.rpartition(": ")[2], shell=True, check=True)
    assert cli.run("up").code == 0
    cli.down()


def test_a_cluster_of_this_computer_needs_no_key(cli: Cli) -> None:
    cli.up(2)
    cli.generate("-n", "2")
    cli.down()
    assert not (cli.home / "keys").exists()


def test_an_open_bus_is_said_at_every_start_and_wherever_people_look(cli: Cli) -> None:
    words = "security: none: everybody in the network can use and read this cluster"
    path = cli.write(1, host="0.0.0.0", workers=[], security="none")
    for command in ("up", "restart"):
        assert words in cli.run(command).err
    assert words in cli.run("status").out
    assert json_object(cli.run("status", "--json").out)["security"] == "none"
    assert words in (cli.log_folder / "root.log").read_text()
    cli.down()
    data = yaml.safe_load(path.read_text())
    del data["security"]
    path.write_text(yaml.safe_dump(data))
    assert "everybody in the network" not in cli.run("up").err
    assert json_object(cli.run("status", "--json").out)["security"] == "curve"
    cli.down()


def test_an_earlier_file_is_refused_with_what_to_write(cli: Cli) -> None:
    cli.write(1, host="0.0.0.0", workers=[], open_bus=True)
    assert "write `security: none` for an open one" in cli.run_here("up").error()
