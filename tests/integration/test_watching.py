"""Looking at a running cluster: the logs of all nodes, the status again and again."""

from __future__ import annotations

import json
import signal
import time

from command_line import Cli, finish, read_some


def test_the_logs_of_all_nodes_are_one_by_time_with_their_names(running: Cli) -> None:
    lines = running.run("logs", "-n", "100").out.splitlines()
    assert {line.split(" | ")[0].strip() for line in lines} == {"root", "worker1"}
    times = [line.split(" | ")[1][:23] for line in lines if line.split(" | ")[1][:2] == "20"]
    assert times == sorted(times)
    assert len(times) > 5
    assert running.run("logs", "-n", "2").out.splitlines() == lines[-2:]
    assert " | " not in running.run("logs", "worker1", "-n", "3").out


def test_following_shows_what_any_node_adds(running: Cli) -> None:
    with running.started("logs", "-f", "-n", "1") as process:
        read_some(process, 1)
        running.generate("-n", "2")
        seen = b""
        deadline = time.monotonic() + 10
        while b"root    | " not in seen or b"request done" not in seen:
            assert time.monotonic() < deadline, seen
            seen += read_some(process, 1)
        process.send_signal(signal.SIGINT)
        assert finish(process, 10, time.monotonic()).code == 130


def test_a_status_that_is_watched_comes_again_until_ctrl_c(running: Cli) -> None:
    with running.started("status", "--json", "--watch", "0.1") as process:
        seen = b""
        while seen.count(b"\n") < 2:
            seen += read_some(process, 1)
        assert [json.loads(line)["state"] for line in seen.splitlines()[:2]] == ["ready", "ready"]
        process.send_signal(signal.SIGINT)
        ended = finish(process, 10, time.monotonic())
    assert (ended.code, ended.err) == (130, "")


def test_a_table_that_no_terminal_shows_is_not_cut(running: Cli) -> None:
    assert f"model: {running.model}\n" in running.run("status", COLUMNS="20").out


def test_a_watch_of_no_seconds_is_refused(running: Cli) -> None:
    assert running.run("status", "--watch", "0").error(2).startswith("--watch 0: expected seconds, more than 0")
