"""A row's figures, from seconds and counts that are given; and both forms in which rows are printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from tiny import tiny_spec

from dllama_zmq.bench.cases import Case, Nodes, work
from dllama_zmq.bench.machine import COLUMNS, ROWS, WEIGHT_BYTES
from dllama_zmq.bench.measure import Gaps, Measured
from dllama_zmq.bench.output import as_json, markdown
from dllama_zmq.bench.rows import Row, case_row, figures
from dllama_zmq.bus.client_messages import StepStats
from dllama_zmq.sharding import Plan

SPEC = tiny_spec()
FACTS = {
    "model": "tiny.m",
    "shape": None,
    "weights": "f32",
    "model_bytes": 2_000_000,
    "n_weights": 3_000_000,
    "sync": "f32",
    "kernels": "numpy",
    "dot": None,
    "cpu": "Some CPU",
    "cores": 4,
    "hardware_threads": 8,
    "blas": "OpenBLAS 0.3",
    "version": "1.2.3",
    "commit": "abc1234",
    "command": "dllama-zmq bench -n 10",
}
TG10 = Case("tg", 10)
TWO_BY_TWO = Nodes(2, 2)
SPENT = {"linear 64 x 32": (0.9, 60), "rms_norm": (0.3, 20), "encode": (0.0, 0)}
PROFILE_COLUMNS = ["part", "ms/token", "%", "calls", "us/call"]


def row(
    seconds: Sequence[float] = (2.0, 1.0),
    nodes: Nodes = TWO_BY_TWO,
    case: Case = TG10,
    kernels: dict[str, tuple[float, int]] | None = None,
) -> Row:
    timing = StepStats(wall_s=4.0, wait_s=1.0, sent_bytes=30_000, received_bytes=10_000, waited_for_s={})
    steps = [(batch.n_rows, int(given)) for batch, given in case.steps()] * len(seconds)
    if case.parallel > 1:
        steps = [(case.parallel, case.parallel)] * case.n_tokens * len(seconds)
    gaps = Gaps([0.1, 0.1], [0.2] * 98 + [0.3, 0.7]) if case.kind == "pp" and case.parallel > 1 else None
    measured = Measured(case, tuple(seconds), timing, 16e9, steps, kernels, gaps)
    return case_row(nodes, Plan.make(SPEC, nodes.n_nodes), measured) | FACTS


def product(threads: int, speeds: list[float], read_gb: float, blas_gmac: float, read_by: str = "simd") -> Row:
    found = figures("mv q40", Nodes(1, threads), speeds, (WEIGHT_BYTES, ROWS * COLUMNS), read_gb * 1e9, best=True)
    return {**found, "read_by": read_by, "blas_gmac_per_s": blas_gmac, **FACTS}


PRODUCTS = [product(1, [100.0, 90.0], 8, 3), product(4, [200.0, 240.0, 220.0], 20, 10)]


def table(*rows: Row) -> list[str]:
    """What is printed of these rows, in the parts in which it is printed."""
    return list(markdown([PRODUCTS, *([row] for row in rows)]))


def test_tokens_per_s_are_the_mean_of_the_repetitions_and_their_sample_deviation() -> None:
    found = row([2.0, 1.0])  # 5 and 10 tokens/s
    assert (found["tokens_per_s"], found["samples_tokens_per_s"]) == (7.5, [5.0, 10.0])
    assert found["stddev"] == pytest.approx(12.5**0.5)
    assert found["repetitions"] == 2


def test_one_repetition_has_no_deviation() -> None:
    assert row([2.0])["stddev"] == 0


def test_gb_and_gmac_per_s_are_those_of_a_token_times_tokens_per_s() -> None:
    found, (weight_bytes, macs) = row(), work(Plan.make(SPEC, 2), [(1, 1)] * 10)
    assert found["gb_per_s"] == pytest.approx(weight_bytes / 10 * 7.5 / 1e9)
    assert found["gmac_per_s"] == pytest.approx(macs / 10 * 7.5 / 1e9)


def test_the_share_of_bandwidth_is_of_what_all_threads_of_all_nodes_read() -> None:
    found = row(nodes=Nodes(2, 2))
    assert found["read_gb_per_s"] == 16, "what was read by turns with the repetitions, not at the beginning of the run"
    assert found["pct_of_read_bandwidth"] == pytest.approx(100 * found["gb_per_s"] / 16)


def test_kb_are_payload_both_ways_for_each_token_of_all_repetitions() -> None:
    assert row([2.0, 1.0])["kb_per_token"] == 40 / (2 * 10)


def test_the_wait_share_is_of_the_roots_time() -> None:
    assert row()["wait_share"] == 0.25


def test_a_row_says_which_of_prompt_and_generation_it_is() -> None:
    prompt, generated = row(case=Case("pp", 10, depth=3)), row(case=Case("tg", 10))
    assert (prompt["test"], prompt["n_prompt"], prompt["n_gen"], prompt["depth"]) == ("pp10 @ d3", 10, 0, 3)
    assert (generated["test"], generated["n_prompt"], generated["n_gen"], generated["depth"]) == ("tg10", 0, 10, 0)


def test_sequences_together_have_tokens_per_s_in_all_and_each() -> None:
    found, alone = row([2.0, 1.0], case=Case("tg", 10, parallel=4)), row([2.0, 1.0])
    assert (found["test"], found["n_gen"], found["parallel"], alone["parallel"]) == ("tg10 @ 4", 10, 4, 1)
    assert (found["tokens_per_s"], found["tokens_per_s_each"]) == (30, 7.5)
    assert found["gb_per_s"] == pytest.approx(alone["gb_per_s"]), "a step reads the weights once for all"
    assert found["gmac_per_s"] == pytest.approx(4 * alone["gmac_per_s"])
    assert "tokens_per_s_each" not in alone


def test_a_prompt_beside_others_has_the_time_of_its_first_token_and_their_gaps() -> None:
    found = row([2.0, 1.0], case=Case("pp", 10, parallel=4))
    assert (found["test"], found["tokens_per_s"], found["first_token_s"]) == ("pp10 @ 4", 7.5, 1.5)
    gaps = [found[key] for key in ("gap_ms", "gap_beside_ms", "gap_beside_p99_ms")]
    assert gaps == pytest.approx([100, 200, 304])


def test_markdown_shows_sequences_together_after_the_table() -> None:
    written = "".join(table(row(), row(case=Case("tg", 10, parallel=4)), row(case=Case("pp", 10, parallel=4))))
    lines = written[written.index("| many at once") :].split("\n\n")[0].splitlines()
    assert len({tuple(map(len, line.split("|"))) for line in lines}) == 1
    assert max(map(len, lines)) <= 80
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells == [
        ["tg10 @ 4", "2x2", "7.50", "", "", "", ""],
        ["pp10 @ 4", "2x2", "", "1.500", "100.0", "200.0", "304.0"],
    ]
    assert "many at once" not in "".join(table(row()))


def test_the_product_alone_is_a_row_of_the_best_round_on_all_threads() -> None:
    found = PRODUCTS[1]
    assert (found["test"], found["nodes"], found["threads"], found["n_prompt"], found["n_gen"]) == (
        "mv q40",
        1,
        4,
        0,
        0,
    )
    assert (found["tokens_per_s"], found["samples_tokens_per_s"]) == (240, [200, 240, 220])
    assert found["stddev"] == pytest.approx(20)
    assert found["weight_bytes_per_token"] == WEIGHT_BYTES == 32768 * 4096 // 32 * 18
    assert found["gb_per_s"] == pytest.approx(WEIGHT_BYTES * 240 / 1e9)
    assert found["pct_of_read_bandwidth"] == pytest.approx(100 * WEIGHT_BYTES * 240 / 20e9)
    assert found["gmac_per_s"] == pytest.approx(ROWS * COLUMNS * 240 / 1e9)
    assert (found["kb_per_token"], found["wait_share"]) == (0, 0)
    assert "profile" not in found


def test_a_profile_adds_up_to_the_time_of_a_token() -> None:
    profile = row([2.0, 1.0], kernels=SPENT)["profile"]  # 20 tokens in 3 s, of which 1.2 s in kernels and 1 s waiting
    assert profile["ms_per_token"] == pytest.approx(150)
    assert [part["name"] for part in profile["parts"]] == ["linear 64 x 32", "rms_norm"]  # what did not run is left out
    product, norm = profile["parts"]
    assert (product["ms_per_token"], product["share"], product["calls"]) == pytest.approx((45, 0.3, 30))
    assert product["us_per_call"] == pytest.approx(15_000)
    assert (norm["ms_per_token"], norm["share"], norm["calls"]) == pytest.approx((15, 0.1, 10))
    assert (profile["wait_ms_per_token"], profile["wait_share"]) == pytest.approx((50, 1 / 3))
    assert (profile["python_ms_per_token"], profile["python_share"]) == pytest.approx((40, 0.8 / 3))


def test_only_a_profiled_row_has_a_profile_in_json() -> None:
    plain, profiled = json.loads(as_json([row(), row(kernels=SPENT)]))
    assert "profile" not in plain
    assert profiled["profile"]["parts"][0]["name"] == "linear 64 x 32"
    assert profiled["profile"]["python_share"] == pytest.approx(0.8 / 3)
    assert (plain["dot"], plain["hardware_threads"]) == (None, 8)


def test_json_is_one_list_of_all_rows() -> None:
    found: list[dict[str, Any]] = json.loads(as_json([row(), row(case=Case("pp", 10))]))
    assert [one["test"] for one in found] == ["tg10", "pp10"]
    assert found[0]["cpu"] == "Some CPU"
    assert (found[0]["version"], found[0]["commit"]) == ("1.2.3", "abc1234")


def test_markdown_shows_profiles_after_the_last_row() -> None:
    written = table(row(kernels=SPENT), row(case=Case("pp", 10), kernels=SPENT))
    (last,) = (i for i, text in enumerate(written) if text.startswith("| pp10 "))
    lines = "".join(written[last + 1 :]).splitlines()
    assert "profile" not in "".join(written[: last + 1])
    assert "tg10, 2 nodes of 2 threads: the root's 150.000 ms a token" in lines
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[0] == PROFILE_COLUMNS
    assert cells[2] == ["linear 64 x 32", "45.0000", "30.0", "30", "15000.0"]
    assert cells[-2:] == [["bus wait", "50.0000", "33.3", "", ""], ["python", "40.0000", "26.7", "", ""]]
    assert any("quantizing" in line for line in lines)


def test_markdown_shows_the_machine_and_each_row_as_soon_as_it_is_known() -> None:
    written = markdown([PRODUCTS, [row(nodes=Nodes(4, 1))]])
    head = next(written)
    assert max(map(len, head.splitlines())) <= 80
    words = " ".join(head.split())
    assert "tiny.m, F32, 3 million weights, 2 MB" in words
    assert "Some CPU, 8 threads (4 for this process); dllama-zmq 1.2.3, kernels numpy, sync f32" in words
    assert "memory read, by SIMD loads: 8.0 GB/s with 1 thread, 20.0 GB/s with 4 threads" in words
    assert "3.0 GMAC/s with 1 thread, 10.0 GMAC/s with 4 threads" in words
    assert [line.split("|")[2].strip() for line in next(written).splitlines()] == ["1x1", "1x4"]
    cells = [cell.strip() for cell in next(written).strip().strip("|").split("|")]
    assert cells == ["tg10", "4x1", "7.50 ± 3.54", "0.0", "0.0", "2.0", "25.0"]


def test_markdown_names_the_dot_product_of_the_kernels_and_whose_loops_read() -> None:
    only = {**product(2, [1.0], 8, 3, "numpy"), "kernels": "simd", "dot": "vnni512", "cores": 8}
    head = " ".join(next(markdown([[only]])).split())
    assert "Some CPU, 8 threads; dllama-zmq 1.2.3, kernels simd (dot vnni512), sync f32" in head
    assert "memory read, by NumPy's maximum: 8.0 GB/s with 2 threads" in head


def test_every_line_of_a_table_has_as_many_cells_of_the_same_width() -> None:
    text = "".join(table(row(kernels=SPENT)))
    for head, n_lines in (("| test", 5), ("| part", 6)):
        lines = text[text.index(head) :].split("\n\n")[0].splitlines()
        assert len({tuple(map(len, line.split("|"))) for line in lines}) == 1
        assert len(lines) == n_lines


def test_markdown_ends_with_the_command_and_the_commit() -> None:
    assert table(row())[-1] == "\n`dllama-zmq bench -n 10`, commit abc1234\n"
