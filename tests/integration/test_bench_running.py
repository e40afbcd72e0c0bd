"""`bench --cluster` and `--connect`: rows of a running cluster, on the computers that it has."""

from __future__ import annotations

import json

import pytest
from command_line import Cli


@pytest.mark.parametrize("where", ["cluster", "connect"])
def test_a_running_cluster_is_measured_as_it_is(running: Cli, where: str) -> None:
    which = (
        ["--cluster", "cluster.yaml"] if where == "cluster" else ["--connect", f"127.0.0.1:{running.ports['clients']}"]
    )
    done = running.run("bench", *which, "-p", "20", "-n", "4", "-r", "2", "-o", "json")
    assert done.code == 0, done.said
    found = json.loads(done.out)
    assert (found["cluster"], found["model"]) == ("small", str(running.model))
    prompt, generated = found["rows"]
    assert prompt["test"].startswith("pp")
    assert int(prompt["test"][2:]) == pytest.approx(20, abs=2)
    assert (generated["test"], generated["nodes"]) == ("tg4", 2)
    assert len(generated["samples_tokens_per_s"]) == 2
    assert min(prompt["tokens_per_s"], generated["tokens_per_s"]) > 0
    # One sum and one partial sum of 256 floats for each of 2 stages in 2 layers, x, and a few candidates.
    assert generated["kb_per_token"] == pytest.approx((2 * 2 * 2 + 1) * 1.024, rel=0.1)
    assert 0 < generated["wait_share"] < 1


def test_its_table_fits_80_columns(running: Cli) -> None:
    done = running.run("bench", "--cluster", "cluster.yaml", "-p", "0", "-n", "2", "-r", "1")
    assert done.code == 0, done.said
    assert max(map(len, done.out.splitlines())) <= 80, done.out
    assert done.out.splitlines()[-1].startswith("| tg2 ")


def test_nothing_to_measure_is_wrong_use(running: Cli) -> None:
    said = running.run_here("bench", "--cluster", "cluster.yaml", "-p", "0", "-n", "0").error(2)
    assert said == "--n-prompt and --n-gen are both 0: nothing to measure"


@pytest.mark.parametrize("flag", [["--model", "demo"], ["--nodes", "2"], ["--profile"], ["--layers", "2"]])
def test_flags_for_nodes_of_bench_are_refused_for_a_running_cluster(running: Cli, flag: list[str]) -> None:
    said = running.run_here("bench", "--cluster", "cluster.yaml", *flag).error(2)
    assert "a running cluster is measured as it is" in said


def test_a_length_that_the_cluster_has_no_room_for_is_an_error(running: Cli) -> None:
    too_long = running.run_here("bench", "--cluster", "cluster.yaml", "-p", "0", "-n", "2048")
    assert "tg2048 needs 20" in too_long.error()
    assert "small has room for 2048" in too_long.error()
    nothing = running.run_here("bench", "--cluster", "cluster.yaml", "-p", "0", "-n", "0")
    assert "nothing to measure" in nothing.error(2)


def test_a_case_without_room_is_left_out_and_the_others_are_measured(running: Cli) -> None:
    """A prompt of all 2048 positions leaves the answer its one; a longer one has no room. The run goes on."""
    lengths = ["-p", "2048,2060,8", "-n", "2048,2"]
    done = running.run("bench", "--cluster", "cluster.yaml", *lengths, "-r", "1", "-o", "json")
    assert done.code == 0, done.said
    assert len(json.loads(done.out)["rows"]) == 3, done.said
    whole, short, generated = [row["test"] for row in json.loads(done.out)["rows"]]
    assert 2040 <= int(whole[2:]) <= 2047
    assert "pp2047 instead of pp2048: small has room for 2048 tokens in all" in done.err
    assert (short[:2], generated) == ("pp", "tg2")
    assert "pp2060 is left out: the prompt has 20" in done.err
    assert "tg2048 is left out: tg2048 needs 20" in done.err
