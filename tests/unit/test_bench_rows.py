"""A row's figures, from seconds and counts that are given; and both forms in which rows are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from tiny import tiny_spec

from dllama_zmq.bench.cases import Case, work
from dllama_zmq.bench.measure import Measured
from dllama_zmq.bench.nodes import Nodes
from dllama_zmq.bench.output import Json, Markdown
from dllama_zmq.bench.rows import Baseline, Facts, Row, make_row
from dllama_zmq.root.root import Timing
from dllama_zmq.sharding import Plan

SPEC = tiny_spec()
FACTS = Facts(
    model="tiny.m", shape=None, spec=SPEC, model_bytes=2_000_000, n_weights=3_000_000, sync="f32", kernels="numpy",
    cpu="Some CPU", cores=4, blas="OpenBLAS 0.3", baselines={1: Baseline(8e9, 3e9), 4: Baseline(20e9, 10e9)},
    version="1.2.3", commit="abc1234", command="dllama-zmq bench -n 10",
)  # fmt: skip


TG10 = Case("tg", 10)
TWO_BY_TWO = Nodes(2, 2)


def row(seconds: Sequence[float] = (2.0, 1.0), nodes: Nodes = TWO_BY_TWO, case: Case = TG10) -> Row:
    timing = Timing(wall_s=4.0, wait_s=1.0, sent_bytes=30 * 1024, received_bytes=10 * 1024)
    return make_row(FACTS, nodes, Measured(case, tuple(seconds), timing))


def test_tokens_per_s_are_the_mean_of_the_repetitions_and_their_sample_deviation() -> None:
    found = row([2.0, 1.0])  # 5 and 10 tokens/s
    assert (found.tokens_per_s, found.samples_tokens_per_s) == (7.5, [5.0, 10.0])
    assert found.stddev == pytest.approx(12.5**0.5)
    assert found.repetitions == 2


def test_one_repetition_has_no_deviation() -> None:
    assert row([2.0]).stddev == 0


def test_gb_and_gmac_per_s_are_those_of_a_token_times_tokens_per_s() -> None:
    found, needed = row(), work(Plan.make(SPEC, 2), Case("tg", 10))
    assert found.gb_per_s == pytest.approx(needed.weight_bytes / 10 * 7.5 / 1e9)
    assert found.gmac_per_s == pytest.approx(needed.macs / 10 * 7.5 / 1e9)


def test_the_share_of_bandwidth_is_of_what_all_threads_of_all_nodes_read() -> None:
    found = row(nodes=Nodes(2, 2))
    assert found.read_gb_per_s == 20
    assert found.pct_of_read_bandwidth == pytest.approx(100 * found.gb_per_s / 20)


def test_kb_are_payload_both_ways_for_each_token_of_all_repetitions() -> None:
    assert row([2.0, 1.0]).kb_per_token == 40 / (2 * 10)


def test_the_wait_share_is_of_the_roots_time() -> None:
    assert row().wait_share == 0.25


def test_a_row_says_which_of_prompt_and_generation_it_is() -> None:
    prompt, generated = row(case=Case("pp", 10, depth=3)), row(case=Case("tg", 10))
    assert (prompt.test, prompt.n_prompt, prompt.n_gen, prompt.depth) == ("pp10 @ d3", 10, 0, 3)
    assert (generated.test, generated.n_prompt, generated.n_gen, generated.depth) == ("tg10", 0, 10, 0)


def test_json_is_one_list_of_all_rows() -> None:
    written: list[str] = []
    output = Json(written.append)
    output.begin(FACTS)
    output.row(row())
    output.row(row(case=Case("pp", 10)))
    assert written == []  # a reader gets a whole list or nothing
    output.end()
    found = json.loads("".join(written))
    assert [one["test"] for one in found] == ["tg10", "pp10"]
    assert found[0]["cpu"] == "Some CPU"
    assert (found[0]["version"], found[0]["commit"]) == ("1.2.3", "abc1234")


def test_markdown_tells_the_machine_and_each_row_as_soon_as_it_is_known() -> None:
    written: list[str] = []
    output = Markdown(written.append)
    output.begin(FACTS)
    head = "".join(written)
    assert "tiny.m, F32, 3 million weights, 2 MB" in head
    assert "Some CPU, 4 cores; dllama-zmq 1.2.3, numpy kernels, sync f32" in head
    assert "8.0 GB/s with 1 thread, 20.0 GB/s with 4 threads" in head
    assert "3.0 GMAC/s with 1 thread, 10.0 GMAC/s with 4 threads" in head
    output.row(row(nodes=Nodes(4, 1)))
    cells = [cell.strip() for cell in written[-1].strip().strip("|").split("|")]
    assert cells == ["tg10", "4", "1", "7.50 ± 3.54", "0.00", "0.0", "0.00", "2.0", "25.0%"]


def test_every_line_of_the_markdown_table_has_as_many_cells_of_the_same_width() -> None:
    written: list[str] = []
    output = Markdown(written.append)
    output.begin(FACTS)
    output.row(row())
    lines = [line for line in "".join(written).splitlines() if line.startswith("|")]
    assert len({tuple(map(len, line.split("|"))) for line in lines}) == 1
    assert len(lines) == 3


def test_markdown_ends_with_the_command_and_the_commit() -> None:
    written: list[str] = []
    output = Markdown(written.append)
    output.begin(FACTS)
    output.end()
    assert "".join(written).splitlines()[-1] == "`dllama-zmq bench -n 10`, commit abc1234"
