"""`dllama-zmq netstat --predict`: what a model will put on the bus, without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from integration.netstat_tool import SPEC, STAGES, row_bytes, tool
from tiny import tiny_spec, write_tiny_model


def prediction(*args: str) -> dict[str, Any]:
    shown = tool("--predict", *args, "--json")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("\n") == 1
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


# README of distributed-llama v0.7.4, S and R each half of the sum there
@pytest.mark.parametrize(
    ("sync", "n_nodes", "kb"),
    [("f32", 2, 1024), ("f32", 4, 3072), ("f32", 8, 7168), ("q80", 2, 272), ("q80", 4, 816), ("q80", 8, 1904)],
)
def test_the_prediction_for_llama_3_8b_is_the_published_one(sync: str, n_nodes: int, kb: int) -> None:
    found = prediction("llama3-8b", "--nodes", str(n_nodes), "--sync", sync)
    one, together = found["one_worker"], found["all_workers"]
    layers = together["flows"]["layers"]
    assert (layers["sent_bytes"], layers["received_bytes"]) == (kb * 1024, kb * 1024)
    layers = one["flows"]["layers"]
    assert layers["sent_bytes"] == layers["received_bytes"] == {"f32": 1024, "q80": 272}[sync] * 1024
    assert not any("_kb" in key for key in together)  # bytes, as all sizes in JSON but those of --stats
    assert together["n_workers"] == n_nodes - 1
    for flow in (one["flows"]["total_greedy"], one["flows"]["total_sampled"]):
        assert 0 < flow["overhead"] <= 0.03


def test_x_and_candidates_have_lines_of_their_own_beside_the_layers() -> None:
    flows = prediction("llama3-8b", "--nodes", "2", "--sync", "q80")["one_worker"]["flows"]
    assert (flows["step"]["sent_bytes"], flows["step"]["received_bytes"]) == (4352 + 4, 0)
    assert (flows["candidates_greedy"]["received_bytes"], flows["candidates_sampled"]["received_bytes"]) == (24, 528)
    assert flows["total_greedy"]["sent_bytes"] == 65 * 4352 + 4
    assert flows["total_sampled"]["received_bytes"] == 64 * 4352 + 528


def test_curve_is_part_of_the_prediction_unless_the_bus_is_open() -> None:
    sealed, bare = (
        prediction("llama3-8b", "--nodes", "4", "--security", security)["one_worker"]["flows"]
        for security in ("curve", "none")
    )
    assert prediction("llama3-8b", "--nodes", "4")["one_worker"]["flows"] == sealed
    for flow, n_frames in (("layers", 2 * 64), ("step", 3), ("total_greedy", 2 * 64 + 3)):
        assert sealed[flow]["sent_wire_bytes"] - bare[flow]["sent_wire_bytes"] == 33 * n_frames
    for flow, n_frames in (("layers", 2 * 64), ("candidates_greedy", 4), ("total_greedy", 2 * 64 + 4)):
        assert sealed[flow]["received_wire_bytes"] - bare[flow]["received_wire_bytes"] == 33 * n_frames
    shown = [tool("--predict", "llama3-8b", *words).stdout for words in ([], ["--security", "none"])]
    assert ["Wire is with CURVE." in text for text in shown] == [True, False]
    assert ["Wire is without CURVE (--security none)." in text for text in shown] == [False, True]


def test_the_prediction_is_shown_as_a_table() -> None:
    shown = tool("--predict", "llama3-8b", "--nodes", "8", "--sync", "q80")
    assert (shown.returncode, shown.stderr) == (0, "")
    layers = [line.split() for line in shown.stdout.splitlines() if "layers  " in line]
    assert [line[-5:-3] for line in layers] == [["278.528", "278.528"], ["1,949.696", "1,949.696"]]
    assert "S 1,904 and R 1,904: in kB of 1024 bytes" in " ".join(shown.stdout.split())
    assert max(len(line) for line in shown.stdout.splitlines() if "  " in line) <= 80  # sentences are the reader's
    for text in ("step x", "candidates, greedy", "candidates, sampled", "`dllama-zmq plan` says what each node"):
        assert text in shown.stdout
    assert "\x1b" not in shown.stdout


def test_a_model_file_is_predicted_by_its_own_numbers(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny.m", SPEC).close()
    found = prediction(str(tmp_path / "tiny.m"), "--nodes", "4", "--sync", "q80")
    assert found["one_worker"]["flows"]["layers"]["sent_bytes"] == STAGES * row_bytes("q80")
    assert found["weight_type"] == "f32"


def test_a_width_that_q80_cannot_carry_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny.m", tiny_spec(dim=48)).close()
    shown = tool("--predict", str(tmp_path / "tiny.m"), "--nodes", "2", "--sync", "q80")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == "error: sync q80 needs whole blocks of 32; this model is 48 wide: use f32 or f16\n"


def test_one_node_is_predicted_to_send_nothing() -> None:
    found = prediction("tinyllama", "--nodes", "1")
    assert (found["one_worker"], found["all_workers"]) == (None, None)


@pytest.mark.parametrize(
    ("args", "code", "sentence"),
    [
        (["--predict", "llama3-8b", "--nodes", "3"], 1, "3 nodes are not a power of two. This model can be split over"),
        (["--predict", "llama3-8b", "--nodes", "64"], 1, "32 heads cannot be split over 64 nodes."),
        (["--predict", "llama3-8b", "--nodes", "0"], 1, "0 nodes are not a power of two."),
        (["--predict", "llama3_8b"], 2, "did you mean llama3-8b"),
        (["--predict", "missing.m"], 1, "missing.m cannot be opened"),
        (["--nodes", "2"], 2, "--nodes and --sync go with --predict"),
        (["--predict", "llama3-8b", "--watch"], 2, "--watch goes with a running cluster"),
        (["--watch", "0"], 2, "--watch 0: expected seconds, more than 0"),
    ],
)
def test_an_impossible_prediction_is_refused_in_one_sentence(args: list[str], code: int, sentence: str) -> None:
    shown = tool(*args)
    assert (shown.returncode, shown.stdout) == (code, "")
    assert sentence in shown.stderr
    assert "Traceback" not in shown.stderr
