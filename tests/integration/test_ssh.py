"""Workers at the end of a connection of ssh: what becomes of them without it, and what is said where there is none."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli, gone, kill, until
from integration.answers import answer
from integration.sshd import MISSING, Computer, a_computer

from dllama_zmq import __version__
from dllama_zmq.launch.remote import ANSWER_S
from dllama_zmq.launch.ssh import DEAD_S, dllama_line
from dllama_zmq.trust import KeyPair

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)


@pytest.fixture
def computer(tmp_path: Path) -> Iterator[Computer]:
    """A computer with this version, whose sshd runs; nothing of it is left at the end."""
    with a_computer(tmp_path / "computer") as computer:
        computer.install()
        yield computer


def over(computer: Computer, **keys: Any) -> dict[str, Any]:
    """What `Cli.write` needs for one worker there."""
    return {"n_nodes": 2, "workers": [{"name": "far", "ssh": computer.destination, **keys}]}


def refusal(cli: Cli) -> str:
    """What `up` says where it starts nothing, before its deadlines have passed."""
    result = cli.run_here("up")
    assert result.seconds < ANSWER_S + 20
    assert not cli.log_folder.joinpath("far.log").exists()
    return result.error()


def test_a_worker_whose_connection_was_cut_ends_and_another_one_takes_its_place(
    computer: Computer, cli: Cli, greedy_text: str
) -> None:
    cli.up(**over(computer))
    lost = cli.pid("far")
    computer.cut()
    until(lambda: gone(lost), 20, "the worker to end with its connection")
    until(lambda: cli.pid("far") not in (0, lost), 40, "another worker")
    assert answer(cli) == greedy_text
    log = (cli.log_folder / "root.log").read_text()
    assert re.search(r"starting again far: it ended with exit code 255 of ssh \(ssh \S+: .*the connection was cut", log)
    cli.down()


def test_a_cluster_whose_workers_sshd_is_gone_says_why_it_forms_and_is_ready_when_sshd_is_back(
    computer: Computer, cli: Cli, greedy_text: str
) -> None:
    cli.up(**over(computer))
    computer.stop()
    until(lambda: "Connection refused" in reason(cli), 40, "the status to say what ssh said")
    assert f"ssh {computer.destination}: connect to host 127.0.0.1 port {computer.port}" in reason(cli)
    computer.start()
    until(lambda: cli.status().state == "ready", 60, "the worker to be back")
    assert answer(cli) == greedy_text
    cli.down()


@pytest.mark.release  # 30 s of waiting for a sign of life
def test_a_connection_without_a_sign_of_life_is_given_up_and_the_worker_started_again(
    computer: Computer, cli: Cli, greedy_text: str
) -> None:
    cli.up(**over(computer))
    old = cli.pid("far")
    for process in computer.connections():
        process.suspend()
    log = cli.log_folder / "root.log"
    until(lambda: "Timeout, server 127.0.0.1 not responding" in log.read_text(), 2 * DEAD_S, "ssh to give up")
    assert answer(cli) == greedy_text  # the old worker works: only ssh could not tell
    computer.cut()
    until(lambda: gone(old), 20, "the old worker to end")
    until(lambda: cli.status().state == "ready" and cli.pid("far") != old, 60, "the new one to have its place")
    assert answer(cli) == greedy_text
    cli.down()


@pytest.mark.release  # 40 s of waiting for the worker
def test_a_worker_that_is_frozen_there_is_ended_and_started_again(
    computer: Computer, cli: Cli, greedy_text: str
) -> None:
    cli.up(**over(computer))
    frozen = cli.pid("far")
    kill(frozen, signal.SIGSTOP)
    until(lambda: gone(frozen), 120, "the frozen worker to be ended")
    until(lambda: cli.status().state == "ready", 60, "another worker")
    assert answer(cli) == greedy_text
    cli.down()


def reason(cli: Cli) -> str:
    """Why the worker is not there."""
    return next(node.reason for node in cli.status().nodes if node.name == "far")


def test_a_root_that_others_reach_learns_the_keys_of_its_workers_over_ssh(
    computer: Computer, cli: Cli, greedy_text: str
) -> None:
    cli.up(**over(computer), host="0.0.0.0")
    assert answer(cli) == greedy_text
    own = KeyPair.of_secret((computer.home / "clusters" / "keys" / "key").read_text().strip()).public
    assert f"worker far {own}\n" in (cli.home / "keys" / "clusters" / "small.keys").read_text()
    cli.down()


def test_a_key_in_the_file_that_is_not_the_one_there_is_one_sentence(computer: Computer, cli: Cli) -> None:
    cli.write(**over(computer, key=KeyPair.new().public), host="0.0.0.0")
    said = refusal(cli)
    assert re.match(rf"far: the key at {computer.destination} is \S{{40}}, and \S+ has another one: write this", said)


def test_a_host_key_that_has_changed_is_one_sentence_with_what_to_do(computer: Computer, cli: Cli) -> None:
    computer.make_key("other")
    computer.note_host_key("other")
    cli.write(**over(computer))
    said = refusal(cli)
    assert said.startswith(f"far: ssh {computer.destination}: ")
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in said
    assert f"ssh-keygen -f '{computer.folder}/known_hosts' -R '[127.0.0.1]:{computer.port}'" in said.replace('"', "'")


def test_a_host_key_that_nobody_has_accepted_is_not_accepted_in_the_background(computer: Computer, cli: Cli) -> None:
    (computer.folder / "known_hosts").unlink()
    cli.write(**over(computer))
    said = refusal(cli)
    assert f"Host key verification failed.: run `ssh {computer.destination}` once by hand" in said
    assert not (computer.folder / "known_hosts").exists()


@pytest.mark.parametrize("user", ["", "nobody-of-that-name@"])
def test_a_wrong_user_or_key_is_one_sentence_with_what_to_do(computer: Computer, cli: Cli, user: str) -> None:
    if not user:
        computer.make_key("key")
    to = f"{user or f'{computer.user}@'}127.0.0.1"
    cli.write(n_nodes=2, workers=[{"name": "far", "ssh": to}])
    said = refusal(cli)
    assert f"far: ssh {to}: {to}: Permission denied" in said
    assert f"`ssh-copy-id {to}`" in said


def test_a_port_at_which_nobody_listens_is_one_sentence(computer: Computer, cli: Cli) -> None:
    computer.stop()
    cli.write(**over(computer))
    assert f"port {computer.port}: Connection refused: that computer is on, but" in refusal(cli)


def test_a_name_that_nobody_knows_is_one_sentence(computer: Computer, cli: Cli) -> None:
    cli.write(n_nodes=2, workers=[{"name": "far", "host": "127.0.0.1", "ssh": "pi@no-such-host.invalid"}])
    assert "far: ssh pi@no-such-host.invalid: Could not resolve hostname no-such-host.invalid" in refusal(cli)


def test_a_computer_that_does_not_answer_is_one_sentence_within_the_deadline(computer: Computer, cli: Cli) -> None:
    computer.stop()
    with socket.create_server(("127.0.0.1", computer.port)):  # it takes connections, and says nothing
        cli.write(**over(computer))
        said = refusal(cli)
    assert re.search(r"timed out.*: is that computer on", said), said


def test_a_computer_without_ssh_says_what_to_install(
    computer: Computer, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.write(**over(computer))
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refusal(cli)
    assert said.startswith(f"{computer.destination}: there is no ssh on this computer; install it")


def test_a_computer_without_dllama_zmq_is_named_with_the_command_that_installs_it(computer: Computer, cli: Cli) -> None:
    (computer.home / ".profile").unlink()
    cli.write(**over(computer))
    said = refusal(cli)
    assert said == (
        f"far: dllama-zmq is not installed at {computer.destination}: "
        f"`dllama-zmq up --install` puts {__version__} there"
    )


def test_another_version_is_refused_with_both_numbers_and_the_command_that_mends_it(
    computer: Computer, cli: Cli
) -> None:
    computer.install('[ "$*" = --version ] && echo dllama-zmq 0.0.9')
    cli.write(**over(computer))
    assert refusal(cli) == (
        f"far: {computer.destination} has dllama-zmq 0.0.9 and this computer {__version__}: "
        f"`dllama-zmq up --install` puts {__version__} there"
    )


def test_a_worker_that_keeps_ending_there_ends_the_start_with_its_last_error(computer: Computer, cli: Cli) -> None:
    computer.install(
        f'[ "$*" = --version ] && exec echo dllama-zmq {__version__}; echo "error: no luck today" >&2; exit 1'
    )
    cli.write(**over(computer))
    said = cli.run("up").error()
    assert "far ended 3 times before the cluster was ready, last with exit code 1 (no luck today)" in said


def test_all_that_is_wrong_with_several_computers_is_said_at_once(computer: Computer, cli: Cli) -> None:
    (computer.home / ".profile").unlink()
    other = {"name": "other", "host": "127.0.0.1", "ssh": "pi@no-such-host.invalid"}
    cli.write(4, workers=[{"name": "far", "ssh": computer.destination}, other, {"name": "worker3"}])
    said = refusal(cli)
    assert "far: dllama-zmq is not installed" in said
    assert "other: ssh pi@no-such-host.invalid: Could not resolve" in said


@pytest.mark.parametrize("shell", [name for name in ("sh", "bash", "dash", "zsh", "fish") if shutil.which(name)])
@pytest.mark.parametrize("is_own", [True, False])
def test_words_reach_the_command_there_as_they_are(tmp_path: Path, shell: str, is_own: bool) -> None:
    """In whatever shell: of `up --install`, and of a login shell's PATH."""
    home = tmp_path / "it's $HOME"
    folder = home / ".local/share/dllama-zmq/venv/bin" if is_own else home / "bin"
    folder.mkdir(parents=True)
    (folder / "dllama-zmq").write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    (folder / "dllama-zmq").chmod(0o755)
    (home / ".profile").write_text('PATH="$HOME/bin:$PATH"\n')
    words = ["a b", "$HOME", "it's", '"; exit 1; "', "*", "\\", "`id`", ""]
    out = subprocess.run(
        [shell, "-c", dllama_line(["first"], words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={"HOME": str(home), "SHELL": "/bin/sh", "PATH": "/usr/bin:/bin"},
        check=True,
        timeout=60,
    ).stdout
    assert out == "first|" + "".join(f"{word}|" for word in words)


def test_sshd_has_something_to_send_to_a_computer_that_is_gone() -> None:
    command = [sys.executable, "-m", "dllama_zmq", "worker", "--root", "127.0.0.1:9", "--beat"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as worker:
        try:
            assert worker.stdout is not None
            ready, _, _ = select.select([worker.stdout], [], [], 60)
            assert ready
            assert os.read(worker.stdout.fileno(), 1) == b"\0"
        finally:
            worker.kill()
