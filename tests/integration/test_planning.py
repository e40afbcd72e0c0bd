"""`dllama-zmq plan` as its user runs it: models, shapes and cluster files, what it says, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_line import Cli, json_object
from folders import arrays_of, write_hf
from integration.bench_runs import share_kernels
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.bench import calibration, machine
from dllama_zmq.bench.calibration import measure_rates, small_model
from dllama_zmq.bench.cases import Nodes
from dllama_zmq.errors import PlanError
from dllama_zmq.formats import open_m
from dllama_zmq.formats.m_keys import M_TYPES
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.reporting import SilentReporter
from dllama_zmq.sharding import possible_node_counts
from dllama_zmq.spec import FloatType

THREE_HOSTS = """
model: demo
security: none
root: {host: 192.0.2.1}
workers:
  - {name: pi1, host: 192.0.2.11}
  - {name: pi2, host: 192.0.2.12}
  - {name: pi3, host: 192.0.2.12}
"""


def planned(cli: Cli, *words: str) -> dict[str, Any]:
    """What `plan --no-speed --json` says."""
    result = cli.run_here("plan", *words, "--no-speed", "--json")
    assert result.code == 0, result.said
    return json_object(result.out)


def memory_of(found: dict[str, Any]) -> list[Any]:
    return [outlook["memory"] for outlook in found["outlooks"]]


def test_the_memory_of_a_model_is_shown_for_each_number_of_nodes(cli: Cli) -> None:
    found = planned(cli, str(cli.model))
    assert (found["architecture"], found["weight_type"], found["positions"]) == ("llama", "q40", 2048)
    assert found["possible_nodes"] == [one["nodes"] for one in found["outlooks"]] == [1, 2, 4, 8]
    assert found["impossible_nodes"][0] == {"nodes": 16, "why": "8 heads cannot be split over 16 nodes."}
    one, two, *_ = (outlook["memory"] for outlook in found["outlooks"])
    matrices = 2 * (4 * 256 * 256 + 3 * 256 * 512) + 288 * 256
    norms = (2 * 2 + 1) * 256 * 4
    assert one[0]["weight_bytes"] == matrices // 32 * 18 + norms
    assert [node["weight_bytes"] for node in two] == [matrices // 2 // 32 * 18 + norms] * 2
    # Keys and values of 8 heads of 32 in two layers, f16, for 2048 positions.
    assert one[0]["kv_bytes"] == 2 * 2 * 256 * 2048 * 2
    assert two[1]["kv_bytes"] == one[0]["kv_bytes"] // 2
    assert found["weight_bytes"] == one[0]["weight_bytes"] + 288 * 256 * 4
    assert found["embedding_bytes"] == 288 * 256 * 4
    assert (found["link"], found["fastest"], found["rates"]) == (None, None, [])


def test_a_published_shape_needs_no_file(cli: Cli) -> None:
    found = planned(cli, "llama3-8b", "--nodes", "4")
    (outlook,) = found["outlooks"]
    assert outlook["memory"] == planned(cli, "--shape", "llama3-8b", "--nodes", "4")["outlooks"][0]["memory"]
    # The Q40 file without its f32 embedding, split by 4, and the norms, which every node has.
    norms = 65 * 4096 * 4
    split = 6_323_781_632 - 128256 * 4096 * 4 - norms
    assert {node["weight_bytes"] for node in outlook["memory"]} == {split // 4 + norms}
    # 32 layers, 2 of 8 KV heads of 128, keys and values in f16, as many positions as a cluster makes room for
    assert {node["kv_bytes"] for node in outlook["memory"]} == {32 * 2 * 128 * 2 * 2 * 4096}
    # x, 64 sums and 64 partial sums of 4096 values, and the candidates; headers are less than 1% more
    assert 1 < outlook["worker_wire_bytes"] / ((1 + 2 * 64) * 4096 * 4 + 24) < 1.01
    fewer = planned(cli, "--shape", "llama3-8b", "--layers", "2", "-c", "512", "--nodes", "1")
    assert fewer["outlooks"][0]["memory"][0]["kv_bytes"] == 2 * 8 * 128 * 2 * 2 * 512


def test_a_folder_is_planned_as_it_would_be_read(cli: Cli) -> None:
    assert cli.run("convert", str(cli.model), "f32.m", "--weights", "f32").code == 0
    with open_m(cli.folder / "f32.m") as model:
        write_hf(cli.folder / "floats", model.spec, arrays_of(model), "F16")
    of_q40 = memory_of(planned(cli, str(cli.model)))
    assert memory_of(planned(cli, "floats", "--weights", "q40")) == of_q40
    assert memory_of(planned(cli, "floats")) != of_q40


def test_a_file_says_which_nodes_share_a_computer_and_the_flag_what_these_have(cli: Cli) -> None:
    (cli.folder / "home.yaml").write_text(THREE_HOSTS)
    found = planned(cli, "home.yaml", "--memory", "60MB")
    assert [one["nodes"] for one in found["outlooks"]] == [1, 2, 4]
    hosts = found["outlooks"][2]["hosts"]
    named = [("this computer", ["root"]), ("192.0.2.11", ["pi1"]), ("192.0.2.12", ["pi2", "pi3"])]
    assert [(host["host"], host["nodes"]) for host in hosts] == named
    assert [host["free_bytes"] for host in hosts[1:]] == [60_000_000] * 2
    assert [host["fits"] for host in hosts] == [True, True, False]
    assert any(
        one.startswith("4 nodes: 192.0.2.12 needs ") and "for pi2 and pi3" in one and "has 60.0 MB" in one
        for one in found["advice"]
    )
    assert [host["fits"] for host in planned(cli, "home.yaml")["outlooks"][2]["hosts"]] == [True, None, None]


def test_the_bytes_have_what_curve_adds_unless_the_file_or_the_flag_opens_the_bus(cli: Cli) -> None:
    (cli.folder / "open.yaml").write_text(THREE_HOSTS)
    (cli.folder / "home.yaml").write_text(THREE_HOSTS.replace("security: none\n", ""))
    words = ([], ["--security", "none"], ["home.yaml"], ["open.yaml"])
    found = [planned(cli, "tinyllama", "--nodes", "2", *some) for some in words]
    assert [one["security"] for one in found] == ["curve", "none", "curve", "none"]
    sealed, bare, of_file, of_open_file = (one["outlooks"][0]["worker_wire_bytes"] for one in found)
    assert (of_file, of_open_file) == (sealed, bare)
    assert sealed - bare == 33 * (3 + 2 * 44 + 2 * 44 + 4)  # frames of a token


def test_the_model_of_a_command_replaces_the_file_s(cli: Cli) -> None:
    (cli.folder / "home.yaml").write_text(THREE_HOSTS)
    found = planned(cli, "tinyllama", "home.yaml")
    assert (found["model"], [one["nodes"] for one in found["outlooks"]]) == ("tinyllama", [1, 2, 4])


def test_the_file_of_the_folder_is_planned_where_nothing_is_given(cli: Cli) -> None:
    cli.write(2)
    found = planned(cli)
    assert [len(one["hosts"]) for one in found["outlooks"]] == [1, 1]  # both nodes are here
    assert found["model"] == cli.model.name


def test_the_nodes_of_a_cluster_that_is_up_are_planned_where_they_are(cli: Cli) -> None:
    cli.up(2)
    nodes = cli.status().nodes
    one, two = planned(cli)["outlooks"]
    assert [(host["host"], host["nodes"]) for host in two["hosts"]] == [(nodes[0].host, ["root", "worker1"])]
    assert one["hosts"][0]["nodes"] == ["root"]
    assert two["hosts"][0]["free_bytes"] is not None
    assert "the cluster has 2 nodes" in cli.run_here("plan", "--nodes", "4", "--no-speed").error(2)
    cli.down()


def test_the_tables_fit_80_columns_and_say_what_is_possible(cli: Cli) -> None:
    result = cli.run_here("plan", "llama3-70b", "--no-speed", "--nodes", "32")
    assert result.code == 0, result.said
    assert "llama3-70b: llama, q40 weights, 4" in result.out
    assert "It can be split over 1, 2, 4, 8, 16, 32, 64 nodes." in " ".join(result.out.split())
    rows = [line.split() for line in result.out.splitlines() if line.lstrip().startswith("32 ")]
    assert rows[0][-2:] == ["?", rows[0][-1]]
    # Sentences are the reader's to wrap; tables are not.
    assert max(len(line) for line in result.out.splitlines() if "  " in line) <= 80


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["missing.m"], 1, "missing.m cannot be opened"),
        (["missing.yaml"], 1, "missing.yaml"),
        (["lama3-8b"], 2, "did you mean llama3-8b"),
        ([], 2, "no model is given: dllama-zmq plan MODEL, or --shape NAME"),
        (["tinyllama", "demo"], 2, "tinyllama and demo are given; give one model"),
        (["tinyllama", "--shape", "llama3-8b"], 2, "give one model"),
        (["tinyllama", "--layers", "2"], 2, "--layers is for a shape; add --shape NAME"),
        (["tinyllama", "--nodes", "3"], 1, "3 nodes are not a power of two. This model can be split over 1, 2, 4"),
        (["tinyllama", "--nodes", "128"], 1, "at most 64 nodes, not 128"),
        (["tinyllama", "--nodes", "32"], 1, "5632 columns of FFN over 32 nodes are 176 each, not a multiple of 32"),
        (["tinyllama", "--nodes", "0"], 2, "--nodes '0': expected numbers of 1 to 64"),
        (["tinyllama", "--link", "fast"], 2, "--link 'fast': expected a rate"),
        (["tinyllama", "--link", "0Mbit"], 2, "expected a rate"),
        (["tinyllama", "--memory", "much"], 2, "--memory 'much': expected a size such as 4GB"),
        (["tinyllama", "--here", "--nodes", "32", "--heads", "64"], 2, "--heads is for a shape"),
    ],
)
def test_a_plan_that_is_impossible_is_refused_in_one_sentence(
    cli: Cli, words: list[str], code: int, sentence: str
) -> None:
    result = cli.run_here("plan", *words, "--no-speed")
    assert sentence in result.error(code), result.said
    assert result.out == ""


def test_more_nodes_than_the_file_has_are_refused(cli: Cli) -> None:
    cli.write(2)
    assert "the cluster has 2 nodes; add workers" in cli.run_here("plan", "--nodes", "4", "--no-speed").error(2)


def test_a_width_that_q80_cannot_carry_is_refused(cli: Cli) -> None:
    write_tiny_model(cli.folder / "narrow.m", tiny_spec(dim=48)).close()
    said = cli.run_here("plan", "narrow.m", "--sync", "q80", "--no-speed").error()
    assert said == "sync q80 needs whole blocks of 32; this model is 48 wide: use f32 or f16"


def test_a_model_that_fits_nowhere_is_shown_and_fails_with_the_cure(cli: Cli) -> None:
    result = cli.run_here(
        "plan", "--shape", "llama3-70b", "--layers", "400", "--weights", "f32", "--nodes", "1", "--no-speed"
    )
    assert "too little" in result.out
    assert "this computer has" in result.error()
    assert "nodes need" in result.error()


def test_rates_are_measured_with_a_small_model_that_is_left_in_the_cache_alone(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of Q4_K, which that model cannot have: it is of Q40, and products of both are measured."""
    share_kernels(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(home))
    monkeypatch.setattr(calibration, "_MIN_BYTES", 1)  # one layer is enough to be measured at all
    monkeypatch.setattr(calibration, "_REPETITIONS", 1)
    monkeypatch.setattr(machine, "MAX_READ_BYTES", 32 << 20)
    monkeypatch.setattr(machine, "WEIGHT_BYTES", 2 << 20)
    asked = [Nodes(1, 1), Nodes(2, 1)]
    interrupts = Interrupts()
    with interrupts.caught():
        found = measure_rates(FloatType.Q4_K, "f32", "auto", asked, SilentReporter(), interrupts)
    assert list(found) == asked
    for rates in found.values():  # bounds that no machine comes near: a factor of 1000 would cross them
        assert 1e7 < rates.read_bytes_per_s < 1e13
        assert 1e7 < rates.macs_per_s < 1e13
        assert 0 <= rates.exchange_s < 1
    assert len(list((tmp_path / "dllama-zmq" / "shapes").iterdir())) == 1
    with (
        interrupts.caught(),
        pytest.raises(
            PlanError, match=r"the speed of 32 nodes on one computer cannot be predicted, only that of at most 16"
        ),
    ):
        measure_rates(FloatType.Q40, "f32", "auto", [Nodes(32, 1)], SilentReporter(), interrupts)


@pytest.mark.parametrize("weight_type", list(FloatType))
def test_the_small_model_is_larger_than_caches_in_every_type_and_can_be_split_over_16(weight_type: FloatType) -> None:
    spec, title = small_model(weight_type)
    layers_bytes = spec.n_layers * (2 * 2048**2 + 2 * 256 * 2048 + 3 * 5632 * 2048)
    assert spec.weight_type.row_bytes(layers_bytes) >= 140_000_000
    assert possible_node_counts(spec)[-1] == 16 or weight_type in (FloatType.F16, FloatType.F32, FloatType.BF16)
    assert spec.weight_type in M_TYPES
    assert spec.weight_type is weight_type or weight_type not in M_TYPES
    assert title.startswith(f"tinyllama-{spec.weight_type.name.lower()}-layers")
