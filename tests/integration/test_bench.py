"""`dllama-zmq bench` as its user runs it: real processes on a tiny shape, its figures, its refusals, and its ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli, finish
from integration.bench_runs import LITTLE_MEMORY, OVERRIDES, SHAPE, left_folders
from terminal import at_terminal

from dllama_zmq import __version__
from dllama_zmq.bench.cases import prompt_steps
from dllama_zmq.kernels import choose_kernels, pages_for
from dllama_zmq.root.prediction import Asked, predict_step
from dllama_zmq.shapes import shape
from dllama_zmq.sharding import Ask, Plan
from dllama_zmq.spec import Sync

SPEC = shape("tinyllama", overrides=OVERRIDES)
TOOL = Path(__file__).parents[2] / "tools" / "bench.py"
Row = dict[str, Any]
_WAIT_S = 150.0  # for the measures of memory and BLAS, on a busy machine; 6 s alone


def run(cli: Cli, *words: str, code: str | None = None) -> tuple[str, str]:
    """What a bench of SHAPE that must end well writes to stdout and to stderr. code: of `Cli.started`."""
    start = time.monotonic()
    with cli.started("bench", *SHAPE, *words, code=code, XDG_CACHE_HOME=str(cli.folder)) as process:
        result = finish(process, _WAIT_S, start)
    assert result.code == 0, result.said
    assert "Traceback" not in result.err, result.said
    return result.out, result.err


@pytest.fixture(scope="module")
def all_rows(bench: Cli) -> list[Row]:
    cases = ["-p", "40", "-n", "3", "-d", "0,35", "-np", "1,3"]
    out, _ = run(bench, *cases, "-r", "2", "--nodes", "1,2", "--json")
    found = json.loads(out)
    assert isinstance(found, list)
    return found


@pytest.fixture(scope="module")
def rows(all_rows: list[Row]) -> list[Row]:
    """Those of one sequence alone."""
    return [row for row in all_rows if row["test"] != "mv q40" and row["parallel"] == 1]


def predicted_kb(row: Row, sync: Sync) -> float:
    """kB of payload a token, both ways and all workers together, that the plan predicts."""
    vocab = [part.vocab for part in Plan.make(SPEC, row["nodes"]).slices[1:]]
    steps = [(batch.n_rows, int(wanted)) for batch, wanted in prompt_steps(0, 40)] if row["n_prompt"] else [(1, 1)]
    n_tokens = sum(n for n, _ in steps)
    pages = pages_for(row["depth"] + n_tokens)
    kinds = [
        predict_step(SPEC, sync, n, (Asked.of(Ask(1), ids),) * k, n_pages=pages) for n, k in steps for ids in vocab
    ]
    return sum(kind.payload_bytes for step in kinds for kind in step.values()) / n_tokens / 1000


def test_json_has_a_row_for_each_case_and_number_of_nodes(rows: list[Row]) -> None:
    tests = ["pp40", "tg3", "pp40 @ d35", "tg3 @ d35"]
    assert [(row["nodes"], row["test"]) for row in rows] == [(n, test) for n in (1, 2) for test in tests]


def test_the_product_alone_is_measured_on_as_many_threads_as_the_nodes_of_each_case(all_rows: list[Row]) -> None:
    alone = [row for row in all_rows if row["test"] == "mv q40"]
    assert [(row["nodes"], row["threads"], row["kb_per_token"]) for row in alone] == [(1, 1, 0), (1, 2, 0)]
    for row in alone:
        assert row["tokens_per_s"] == max(row["samples_tokens_per_s"])
        assert row["gb_per_s"] == pytest.approx(32768 * 4096 / 32 * 18 * row["tokens_per_s"] / 1e9)
        assert row["pct_of_read_bandwidth"] == pytest.approx(100 * row["gb_per_s"] / row["read_gb_per_s"])


@dataclass(frozen=True)
class Beside:
    """A bench of two nodes with a profile, by the tool, beside a cluster whose root was process `root` before."""

    root: int
    rows: list[Row]


@pytest.fixture(scope="module")
def beside(running: Cli) -> Beside:
    root = running.status().pid
    words = ["-m", str(running.model), "-p", "40", "-n", "3", "-r", "2", "--nodes", "2", "--sync", "q80", "--profile"]
    command = [sys.executable, str(TOOL), *words, "-o", "json"]
    done = subprocess.run(command, env=running.environment(), capture_output=True, text=True, timeout=_WAIT_S)
    assert done.returncode == 0, done.stderr
    return Beside(root, json.loads(done.stdout))


def test_a_profile_says_where_the_time_of_a_token_goes(all_rows: list[Row], beside: Beside) -> None:
    assert all("profile" not in row for row in all_rows)
    alone, *profiled = beside.rows
    assert "profile" not in alone
    assert [row["test"] for row in profiled] == ["pp40", "tg3"]
    for row in profiled:
        profile = row["profile"]
        in_kernels = sum(part["ms_per_token"] for part in profile["parts"])
        assert 0 < in_kernels < profile["ms_per_token"]
        assert 0 < profile["python_share"] < 1
        all_of_it = in_kernels + profile["wait_ms_per_token"] + profile["python_ms_per_token"]
        assert all_of_it == pytest.approx(profile["ms_per_token"])
        assert {"attend", "send, add up"} < {part["name"] for part in profile["parts"]}
        n_tokens, speeds = row["n_prompt"] or row["n_gen"], row["samples_tokens_per_s"]
        seconds = sum(n_tokens / speed for speed in speeds)
        assert profile["ms_per_token"] == pytest.approx(1000 * seconds / (n_tokens * len(speeds)))


def test_every_row_says_what_it_was_measured_with(rows: list[Row]) -> None:
    said = {
        "threads": 1,
        "repetitions": 2,
        "sync": "f32",
        "kernels": choose_kernels("auto", 1).name,
        "weights": "q40",
        "shape": "tinyllama",
        "model": "tinyllama-q40-layers2-dim64-hidden128-heads4-kvheads2-vocab301-seqlen128",
        "version": __version__,
    }
    for row in rows:
        assert {name: row[name] for name in said} == said
        assert row["cpu"]
        assert row["command"].startswith("dllama-zmq bench --shape tinyllama ")


def test_tokens_per_s_are_the_mean_of_its_samples(rows: list[Row]) -> None:
    for row in rows:
        first, second = row["samples_tokens_per_s"]
        assert row["tokens_per_s"] == pytest.approx((first + second) / 2)
        assert row["stddev"] == pytest.approx(abs(first - second) / 2**0.5)


def test_gb_per_s_are_the_bytes_of_all_shards_for_each_generated_token(rows: list[Row]) -> None:
    for row in rows:
        if row["n_gen"]:
            plan = Plan.make(SPEC, row["nodes"])
            shards = sum(plan.weight_bytes(node) for node in range(plan.n_nodes))
            assert row["gb_per_s"] == pytest.approx(shards * row["tokens_per_s"] / 1e9)
        assert row["pct_of_read_bandwidth"] == pytest.approx(100 * row["gb_per_s"] / row["read_gb_per_s"])


def test_gmac_per_s_are_those_of_a_token_times_tokens_per_s(rows: list[Row]) -> None:
    for row in rows:
        assert row["gmac_per_s"] == pytest.approx(row["macs_per_token"] * row["tokens_per_s"] / 1e9)


def test_kb_per_token_are_what_the_plan_predicts(rows: list[Row]) -> None:
    for row in rows:
        assert row["kb_per_token"] == pytest.approx(predicted_kb(row, "f32"))


def test_only_a_root_with_workers_waits_and_sends(rows: list[Row]) -> None:
    for row in rows:
        assert (row["wait_share"] > 0, row["kb_per_token"] > 0) == (row["nodes"] > 1, row["nodes"] > 1)
        assert row["wait_share"] < 1


def test_every_row_is_compared_with_memory_read_between_its_repetitions(rows: list[Row]) -> None:
    assert len({row["read_gb_per_s"] for row in rows}) == len(rows)


TABLE_FLAGS = ["-p", "5,40", "-n", "2", "-r", "1", "-t", "1,2", "--sync", "q80"]


@pytest.fixture(scope="module")
def table(bench: Cli, rows: list[Row]) -> tuple[str, str]:
    """What a second bench of the same shape writes to stdout and to stderr."""
    return run(bench, *TABLE_FLAGS, code=LITTLE_MEMORY)


def test_markdown_has_a_line_for_each_row_and_the_command_last(table: tuple[str, str]) -> None:
    out, _ = table
    lines = out.splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert table[0] == [
        "test",
        "nodes",
        "tokens/s",
        "% read",
        "GMAC/s",
        "kB/tok",
        "wait %",
    ]
    assert [cells[:2] for cells in table[2:]] == [
        *[["mv q40", nodes] for nodes in ("1x1", "1x2")],
        *[[test, nodes] for nodes in ("1x1", "1x2") for test in ("pp5", "pp40", "tg2")],
    ]
    assert all(re.fullmatch(r"[\d.]+ ± 0(\.00?)?", cells[2]) for cells in table[4:])
    assert max(map(len, lines[:-1])) <= 80
    assert f"{' '.join(TABLE_FLAGS)}`" in lines[-1]
    assert "memory read, by " in out
    assert f"kernels {choose_kernels('auto', 1).name}" in out
    assert "GMAC/s with 2 threads" in out


def test_sequences_together_have_rows_of_their_own_on_any_number_of_nodes(all_rows: list[Row]) -> None:
    found = [row for row in all_rows if row["test"] != "mv q40"]
    tests = [
        *[("pp40", 1), ("tg3", 1), ("pp40 @ 3", 3), ("tg3 @ 3", 3)],
        *[("pp40 @ d35", 1), ("tg3 @ d35", 1), ("pp40 @ d35 @ 3", 3), ("tg3 @ d35 @ 3", 3)],
    ]
    assert [(row["nodes"], row["test"], row["parallel"]) for row in found] == [(n, *t) for n in (1, 2) for t in tests]
    for row in found:
        if row["parallel"] > 1 and row["n_gen"]:
            assert row["tokens_per_s"] == pytest.approx(3 * row["tokens_per_s_each"])
        elif row["parallel"] > 1:
            assert 0 < row["gap_beside_ms"] <= row["gap_beside_p99_ms"] <= 1000 * 2 * row["first_token_s"]


def test_at_a_terminal_nothing_stands_between_the_rows_of_the_table(bench: Cli) -> None:
    words = ["bench", *SHAPE, "-p", "5", "-n", "2", "-r", "1", "-t", "1,2"]
    environment = bench.environment(XDG_CACHE_HOME=str(bench.folder))
    with at_terminal([sys.executable, "-c", LITTLE_MEMORY, *words], bench.folder, environment) as terminal:
        assert terminal.to_the_end(60) == 0
    lines = [line.rstrip() for line in terminal.screen()]
    first, last = (at(i for i, line in enumerate(lines) if line.startswith("|")) for at in (min, max))
    assert all(line.startswith("|") for line in lines[first : last + 1]), lines
    assert last + 1 - first == 2 + 2 + 2 * 2


def test_the_shape_is_kept_and_not_made_again(bench: Cli, rows: list[Row], table: tuple[str, str]) -> None:
    (kept,) = (bench.folder / "dllama-zmq" / "shapes").iterdir()
    assert kept.stem == rows[0]["model"]
    _, err = table
    assert "making" not in err


def test_the_tool_is_the_same_command(running: Cli, beside: Beside) -> None:
    alone, row, _ = beside.rows
    assert alone["test"] == "mv q40"
    assert (row["test"], row["model"], row["shape"]) == ("pp40", str(running.model), None)
    assert row["command"].startswith("dllama-zmq bench -m ")


def test_a_bench_does_not_disturb_a_running_cluster(running: Cli, beside: Beside) -> None:
    status = running.status()
    assert (status.pid, status.state) == (beside.root, "ready")
    assert [path.name for path in left_folders(running)] == ["small", "small"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--shape", "tinylama"], 2, "'tinylama' is no model shape known here; did you mean tinyllama"),
        (["--nodes", "3"], 1, "3 nodes are not a power of two"),
        (["--nodes", "1;2"], 2, "--nodes '1;2': expected numbers of 1 to"),
        (["-p", "513"], 1, "pp513 needs 513 positions, and the context of demo has 512"),
        (["-n", "8", "-d", "505"], 1, "pp128 @ d505 needs 633 positions"),
        (["-p", "0", "-n", "0"], 2, "nothing to measure"),
        (["--layers", "2"], 2, "--layers needs random weights; add --shape NAME"),
        (["--shape", "tinyllama", "-m", "demo"], 2, "give one of them"),
        (["--shape", "tinyllama", "--kv-heads", "3"], 1, "32 heads cannot share 3 KV heads"),
        (["--shape", "llama2-70b", "--weights", "f32", "--layers", "4096"], 1, "GB of memory"),
        (["--kernels", "fast"], 2, "--kernels: expected auto, simd or numpy, got 'fast'"),
        (["-m", "nowhere.m"], 1, "nowhere.m cannot be opened"),
        (["-r", "0"], 2, "--repetitions"),
        (["-np", "0"], 2, "--parallel '0': expected numbers of 1 to"),
        (["-o", "xml"], 2, "--output"),
    ],
)
def test_wrong_use_is_one_sentence_and_writes_nothing(bench: Cli, words: list[str], code: int, sentence: str) -> None:
    result = bench.run_here("bench", *words, XDG_CACHE_HOME=str(bench.folder / "unused"))
    assert sentence in result.error(code)
    assert result.out == ""
    assert not (bench.folder / "unused").exists()
