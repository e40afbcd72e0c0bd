"""One body for both ways of starting workers: as processes of this computer, and over ssh."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import Cli, gone, kill, until
from integration.answers import answer
from integration.sshd import MISSING, a_computer

SSH = pytest.param("ssh", marks=pytest.mark.skipif(bool(MISSING), reason=MISSING))


@pytest.fixture(params=["local", SSH])
def worker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """A line of `workers:`; what it stands for is ready, and nothing of it is left at the end."""
    if request.param == "local":
        yield {"name": "worker1"}
        return
    with a_computer(tmp_path / "computer") as computer:
        computer.install()
        yield {"name": "worker1", "ssh": computer.destination}


def test_a_worker_is_started_shows_its_log_and_is_stopped(worker: dict[str, Any], cli: Cli, greedy_text: str) -> None:
    cli.up(2, workers=[worker], limits={"stop_s": 20})
    pid = cli.pid("worker1")
    assert answer(cli) == greedy_text
    assert "joined" in cli.run("logs", "worker1").out
    cli.down()
    until(lambda: gone(pid), 20, "the worker to end")
    assert "killing" not in (cli.log_folder / "root.log").read_text()


def test_a_worker_that_dies_is_started_again(worker: dict[str, Any], cli: Cli, greedy_text: str) -> None:
    cli.up(2, workers=[worker])
    dead = cli.pid("worker1")
    kill(dead)
    until(lambda: cli.pid("worker1") not in (0, dead), 40, "worker1 to be back")
    assert answer(cli) == greedy_text
    assert "starting again worker1: it ended with" in (cli.log_folder / "root.log").read_text()
    cli.down()


def test_a_worker_ends_with_a_root_that_is_killed(worker: dict[str, Any], cli: Cli) -> None:
    cli.up(2, workers=[worker])
    worker_pid, root_pid = cli.pid("worker1"), cli.pid("root")
    kill(root_pid)
    until(lambda: gone(worker_pid), 20, "the worker to end")
    assert cli.run("down").code == 0


def test_a_frozen_worker_ends_with_the_cluster(worker: dict[str, Any], cli: Cli) -> None:
    cli.up(2, workers=[worker])
    pid = cli.pid("worker1")
    kill(pid, signal.SIGSTOP)
    assert psutil.pid_exists(pid)
    cli.down()
    until(lambda: gone(pid), 20, "the worker to end")
