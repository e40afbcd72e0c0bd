"""`dllama-zmq doctor` as people run it: before anything is configured, beside a file, with a running cluster."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest
from command_line import Cli, json_object

EVERYWHERE = {"version", "libzmq", "packages", "kernels", "cores", "disk"}


def test_before_anything_is_configured_this_computer_is_looked_at(cli: Cli) -> None:
    result = cli.run("doctor", "--json")
    found = json_object(result.out)
    assert {one["about"] for one in found["findings"]} >= EVERYWHERE | {"ports"}
    assert found["problems"] == sum(one["level"] == "problem" for one in found["findings"])
    assert result.code == (1 if found["problems"] else 0)
    assert {tuple(one) for one in found["findings"]} == {("level", "about", "text", "cure")}


def test_each_finding_of_a_running_cluster_is_one_line_and_its_links_are_measured(running: Cli) -> None:
    result = running.run("doctor")
    assert result.code == 0, result.said
    lines = result.out.splitlines()
    assert all(re.match(r"(ok|warning) +[^:]+: ", line) for line in lines)
    text = "\n".join(lines)
    assert "ok       cluster: small is ready, 2 nodes" in text
    assert re.search(r" link to worker1: round trip [0-9.]+ ms, [0-9,]+ Mbit/s to it, [0-9,]+ from it", text)
    assert len(re.findall(r"ports: [0-9]+ \((?:replies|steps|clients)\) is this cluster's own, of ", text)) == 3
    assert re.search(r"^0 problems, [0-9]+ warnings?$", result.err, re.MULTILINE)


def test_from_another_computer_the_cluster_is_asked_over_tcp(running: Cli) -> None:
    found = json_object(running.run("doctor", "--connect", f"127.0.0.1:{running.ports['clients']}", "--json").out)
    abouts = [one["about"] for one in found["findings"]]
    assert {"cluster", "versions", "link to worker1"} <= set(abouts)


def test_beside_a_file_the_cluster_need_not_run_and_a_taken_port_is_a_problem(cli: Cli) -> None:
    cli.write(2)
    result = cli.run("doctor", "--json")
    found = json_object(result.out)
    (state,) = (one for one in found["findings"] if one["about"] == "cluster")
    assert (state["level"], state["text"].partition(",")[0]) == ("ok", "small is not running")
    with socket.create_server(("127.0.0.1", cli.ports["steps"])):
        result = cli.run_here("doctor")
    assert result.code == 1
    assert f"problem  ports: {cli.ports['steps']} (steps) on 127.0.0.1 is taken by" in result.out
    assert f"(process {os.getpid()})" in result.out


def test_a_file_with_a_mistake_is_a_finding_and_the_computer_is_looked_at_all_the_same(cli: Cli) -> None:
    cli.write(2, sync="f64")
    result = cli.run_here("doctor", "--json")
    assert result.code == 1
    found = json_object(result.out)["findings"]
    assert {one["about"] for one in found} >= EVERYWHERE
    assert found[-1]["about"] == "file"
    assert "expected f32, f16 or q80" in found[-1]["text"]


def test_a_model_that_is_not_there_is_a_problem(cli: Cli) -> None:
    cli.write(1, model="gone.m")
    result = cli.run_here("doctor")
    assert result.code == 1
    assert re.search(r"^problem  model: .*gone\.m", result.out, re.MULTILINE)


def test_a_file_that_is_named_and_is_not_there_is_an_error(cli: Cli) -> None:
    assert "no such file" in cli.run_here("doctor", "home.yaml").error()


def test_a_port_that_says_nothing_is_a_problem_after_seconds_in_which_something_is_said(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        result = cli.run("doctor", "--connect", f"127.0.0.1:{port}")
    assert result.code == 1
    assert re.search(rf"^problem  cluster: .*127\.0\.0\.1:{port}", result.out, re.MULTILINE)
    assert "asking the cluster" in result.err


@pytest.mark.parametrize("word", ["doctor"])
def test_it_leaves_no_folder_and_no_file_behind(cli: Cli, tmp_path: Path, word: str) -> None:
    before = sorted(tmp_path.rglob("*"))
    cli.run_here(word)
    assert sorted(tmp_path.rglob("*")) == before
