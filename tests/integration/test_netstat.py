"""`dllama-zmq netstat` against real clusters of processes, and alone: what is measured is what the plan predicts."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from rich.console import Console
from surroundings import free_ports
from tiny import tiny_spec, tiny_tokenizer_data, write_tiny_model

from dllama_zmq.bus.client_messages import NodeStatus, Piece, Prefill, Status, TrafficRow
from dllama_zmq.cli.app import app
from dllama_zmq.cli.netstat_figures import measured
from dllama_zmq.cli.netstat_tables import report_tables
from dllama_zmq.cli.wrong_use import exit_code
from dllama_zmq.client import Client
from dllama_zmq.formats import write_t
from dllama_zmq.spec import SYNC_FLOAT, Sync

NETSTAT = Path(__file__).parents[2] / "tools" / "netstat.py"
SPEC = tiny_spec(n_kv_heads=4, seq_len=512)
STAGES = 2 * SPEC.n_layers
PROMPT = ", ".join(8 * ["the cat and the dog was once upon a time in the sun"])  # in micro-batches
STEP_KINDS = ("step", "sum", "partial", "candidates")


@dataclass(frozen=True)
class Seen:
    """A cluster that has answered some requests, and what netstat said of it before and after them."""

    sync: Sync
    n_workers: int
    clients: str
    environment: dict[str, str]
    cluster_file: Path
    before: str
    text: str
    report: dict[str, Any]
    prompt_tokens: int
    prompt_steps: int
    predicted_tokens: int
    sent_bytes: int

    def lines(self, phase: str) -> list[tuple[str, dict[str, Any]]]:
        """Every worker's lines of a phase."""
        return [(worker["worker"], line) for worker in self.report["workers"] for line in worker["phases"][phase]]


@pytest.fixture(scope="module", params=[("f32", 3), ("q80", 1)], ids=["f32-4-nodes", "q80-2-nodes"])
def seen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    sync, n_workers = request.param
    with cluster(tmp_path_factory.mktemp("netstat"), sync, n_workers) as (path, environment, clients):
        before = tool("--connect", clients).stdout
        with Client(clients) as client:
            answers = [
                *client.generate(PROMPT, 20, ignore_eos=True),
                *client.generate("a cat", 12, temperature=1.0, top_p=1.0, seed=3, ignore_eos=True),
                # So hot that 64 candidates of each node seldom suffice, where a node has more of them.
                *client.generate("the dog", 12, temperature=50.0, top_p=1.0, seed=5, ignore_eos=True),
            ]
        prefills = [answer for answer in answers if isinstance(answer, Prefill)]
        figures = [answer.figures for answer in answers if isinstance(answer, Piece) and answer.figures is not None]
        yield Seen(
            sync=sync,
            n_workers=n_workers,
            clients=clients,
            environment=environment,
            cluster_file=path,
            before=before,
            text=netstat("--cluster", str(path), environment=environment).stdout,
            report=json.loads(tool("--connect", clients, "--json").stdout),
            prompt_tokens=sum(prefill.n_tokens for prefill in prefills),
            prompt_steps=len(prefills),
            predicted_tokens=len(figures),
            sent_bytes=sum(f.sent_bytes for f in [*figures, *(prefill.figures for prefill in prefills)]),
        )


@contextmanager
def cluster(folder: Path, sync: Sync, n_workers: int) -> Iterator[tuple[Path, dict[str, str], str]]:
    """A tiny model's cluster of real processes: its file, its environment, its address for clients."""
    write_tiny_model(folder / "tiny.m", SPEC).close()
    write_t(folder / "tiny.t", tiny_tokenizer_data(SPEC.vocab_size))
    replies, steps, clients = free_ports(3)
    names = [f"worker{i}" for i in range(1, n_workers + 1)]
    path = folder / "cluster.yaml"
    path.write_text(
        f"name: {sync}-{n_workers}\nmodel: tiny.m\nsync: {sync}\n"
        f"root: {{ports: {{replies: {replies}, steps: {steps}, clients: {clients}}}}}\n"
        f"workers: [{', '.join(f'{{name: {name}}}' for name in names)}]\n"
    )
    with home() as environment:
        try:
            up = dllama("up", str(path), environment=environment)
            assert up.returncode == 0, up.stderr
            yield path, environment, f"tcp://127.0.0.1:{clients}"
        finally:
            pids = [pid_in(file) for file in Path(environment["DLLAMA_ZMQ_HOME"]).glob("run/*/cluster.json")]
            down = dllama("down", str(path), environment=environment)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # its workers leave when their pipes close
        assert down.returncode == 0, down.stderr


@contextmanager
def home() -> Iterator[dict[str, str]]:
    """An environment whose clusters live in a short folder of their own: the path of a socket has few bytes."""
    folder = tempfile.mkdtemp(prefix="n", dir="/tmp")
    try:
        yield {**os.environ, "DLLAMA_ZMQ_HOME": folder}
    finally:
        shutil.rmtree(folder)


def pid_in(cluster_file: Path) -> int:
    return int(json.loads(cluster_file.read_text())["pid"])


def dllama(*args: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dllama_zmq", *args], env=environment, capture_output=True, text=True, timeout=60
    )


def netstat(*args: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(NETSTAT), *args], env=environment, capture_output=True, text=True, timeout=60
    )


@dataclass(frozen=True)
class Shown:
    """What the tool printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def tool(*args: str) -> Shown:
    """The command called in this process: much faster than starting it."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = exit_code(app, ["netstat", *args])
    return Shown(code, out.getvalue(), err.getvalue())


def row_bytes(sync: Sync) -> int:
    """One token's activations on the bus."""
    return SYNC_FLOAT[sync].row_bytes(SPEC.dim)


# --- a running cluster ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["prompt", "prediction"])
def test_measured_payload_is_the_predicted_one_to_the_byte_by_worker_kind_and_phase(seen: Seen, phase: str) -> None:
    lines = [(name, line) for name, line in seen.lines(phase) if line["kind"] != "other"]
    assert {(name, line["kind"]) for name, line in lines} >= {
        (f"worker{i}", kind) for i in range(1, seen.n_workers + 1) for kind in STEP_KINDS
    }
    for _, line in lines:
        assert line["payload_bytes"] == line["predicted_payload_bytes"]


@pytest.mark.parametrize("phase", ["prompt", "prediction"])
def test_measured_wire_bytes_are_within_1_percent_of_the_predicted_ones(seen: Seen, phase: str) -> None:
    for name, line in seen.lines(phase):
        if line["kind"] != "other":
            assert line["wire_bytes"] == pytest.approx(line["predicted_wire_bytes"], rel=0.01), (name, line)


def test_layers_move_two_rows_a_layer_and_token_each_way(seen: Seen) -> None:
    for phase, n_tokens in (("prompt", seen.prompt_tokens), ("prediction", seen.predicted_tokens)):
        for _, line in seen.lines(phase):
            if line["kind"] in ("sum", "partial"):
                assert line["payload_bytes"] == n_tokens * STAGES * row_bytes(seen.sync)
                assert line["payload_bytes_per_token"] == STAGES * row_bytes(seen.sync)
            elif line["kind"] == "step":
                assert line["payload_bytes_per_token"] == row_bytes(seen.sync)


def test_tokens_and_steps_are_those_that_the_client_was_told(seen: Seen) -> None:
    assert seen.prompt_tokens > 32 + 2  # one of the prompts took two steps, of which the first wanted no logits
    assert seen.report["tokens"] == {"prompt": seen.prompt_tokens, "prediction": seen.predicted_tokens}
    assert seen.report["steps"] == {"prompt": seen.prompt_steps, "prediction": seen.predicted_tokens}
    assert seen.report["unfinished_steps"] == 0


def test_the_payload_sent_in_all_is_what_the_client_was_told(seen: Seen) -> None:
    sent = [
        line["payload_bytes"]
        for lines in seen.report["all_workers"].values()
        for line in lines
        if (line["kind"], line["direction"]) == ("total", "sent")
    ]
    assert sum(sent) == seen.sent_bytes


def test_candidates_that_did_not_suffice_are_predicted_too(seen: Seen) -> None:
    messages: dict[str, dict[str, int]] = {}
    for name, line in seen.lines("prediction"):
        messages.setdefault(name, {})[line["kind"]] = line["messages"]
    for by_kind in messages.values():
        assert by_kind["candidates"] == seen.predicted_tokens + by_kind.get("more", 0)
    if seen.n_workers == 1:  # 4 nodes have 72 tokens each, of which 64 nearly always suffice
        assert messages["worker1"]["more"] > 0


def test_the_report_says_that_it_agrees(seen: Seen) -> None:
    assert seen.report["agrees"] is True
    assert "measured agrees with planned: payload to the byte, wire within 1%" in seen.text


def test_the_lines_of_all_workers_are_the_sums_of_theirs(seen: Seen) -> None:
    for phase, lines in seen.report["all_workers"].items():
        for line in lines:
            if line["kind"] == "other":
                continue
            of_workers = [
                one for _, one in seen.lines(phase)
                if (one["kind"], one["direction"]) == (line["kind"], line["direction"])
            ]  # fmt: skip
            assert len(of_workers) == seen.n_workers
            for field in ("messages", "payload_bytes", "wire_bytes", "predicted_wire_bytes"):
                assert line[field] == sum(one[field] for one in of_workers)


def test_every_node_has_a_share_of_waiting_in_every_phase(seen: Seen) -> None:
    names = ["root", *(f"worker{i}" for i in range(1, seen.n_workers + 1))]
    rows = seen.report["waiting"]
    assert {(row["node"], row["phase"]) for row in rows} == {(n, p) for n in names for p in ("prompt", "prediction")}
    for row in rows:
        assert row["wait_share"] == pytest.approx(row["wait_s"] / (row["wait_s"] + row["compute_s"]))
        assert 0 <= row["wait_share"] <= 1


def test_the_json_of_a_cluster_has_these_fields(seen: Seen) -> None:
    assert set(seen.report) == {
        "cluster", "state", "note", "model", "sync", "nodes", "tokens", "steps", "unfinished_steps", "sent_again",
        "agrees", "workers", "all_workers", "crowded", "recent", "waiting", "slowest",
    }  # fmt: skip
    assert (seen.report["sync"], seen.report["nodes"]) == (seen.sync, 1 + seen.n_workers)
    for worker in seen.report["workers"]:
        assert set(worker) == {"worker", "phases", "setup"}
        assert set(worker["phases"]) == {"prompt", "prediction"}
        for line in worker["phases"]["prompt"]:
            assert set(line) == {
                "kind", "direction", "messages", "payload_bytes", "wire_bytes", "payload_bytes_per_token",
                "wire_bytes_per_token", "predicted_payload_bytes", "predicted_wire_bytes", "agrees",
            }  # fmt: skip
        setup = {line["kind"]: line for line in worker["setup"]}
        assert {"welcome", "plan", "weights", "credit", "loaded", "heard", "beacon"} <= set(setup)
        assert setup["weights"]["payload_bytes"] > 100_000


def test_before_the_first_token_the_set_up_is_shown(seen: Seen) -> None:
    assert "no tokens yet" in seen.before
    assert "weights" in seen.before
    assert "agrees" not in seen.before


def test_the_tables_name_every_worker_and_both_phases_without_colour(seen: Seen) -> None:
    assert "no tokens yet" not in seen.text
    for text in (
        f"worker{seen.n_workers}",
        "prompt, kB per token",
        "prediction, kB per token",
        "waiting",
    ):
        assert text in seen.text
    assert "\x1b" not in seen.text


def test_the_tables_fit_80_columns(seen: Seen) -> None:
    lines = [line for line in seen.text.splitlines() if not line.startswith("model: ")]
    assert max(map(len, lines)) <= 80


def test_the_summary_before_any_token_says_so(cli: Cli) -> None:
    cli.up(2)
    assert cli.run("netstat", "--summary").out == "no tokens yet: make some with `dllama-zmq generate`\n"
    cli.down()


def test_the_summary_is_a_few_lines_of_all_workers_and_the_verdict(seen: Seen) -> None:
    lines = netstat("--cluster", str(seen.cluster_file), "--summary", environment=seen.environment).stdout.splitlines()
    assert 6 <= len(lines) <= 8
    assert max(map(len, lines)) <= 80
    assert [line.split(" by ")[0] for line in lines[1:5]] == [
        f"{phase}, {way}" for phase in ("prompt", "prediction") for way in ("sent", "received")
    ]
    assert lines[-1].startswith("measured agrees with planned")


def test_watching_prints_an_object_each_time_until_ctrl_c(seen: Seen) -> None:
    command = [sys.executable, str(NETSTAT), "--connect", seen.clients, "--watch", "0.1", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            for _ in range(2):
                assert json.loads(line_of(process.stdout))["cluster"] == seen.report["cluster"]
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
            assert process.stderr.read() == b""
        finally:
            process.kill()


def line_of(stream: Any, wait_s: float = 20.0) -> bytes:
    """The next line, with a deadline."""
    line, deadline = b"", time.monotonic() + wait_s
    while not line.endswith(b"\n"):
        assert select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0], f"only {line!r}"
        data = stream.read(1)
        assert data, f"ended after {line!r}"
        line += data
    return line


def test_one_node_alone_puts_nothing_on_the_bus_and_waits_for_nobody(tmp_path: Path) -> None:
    with cluster(tmp_path, "f32", 0) as (path, environment, clients):
        answer = dllama("generate", "the cat", "-n", "3", "--cluster", str(path), environment=environment)
        assert answer.returncode == 0, answer.stderr
        shown = tool("--connect", clients)
        summary = tool("--connect", clients, "--summary")
        report = json.loads(tool("--connect", clients, "--json").stdout)
    assert (shown.returncode, shown.stderr) == (0, "")
    alone = "One node alone puts nothing on the bus."
    assert alone in shown.stdout
    assert summary.stdout == f"{alone}\n"
    assert (report["workers"], report["agrees"]) == ([], None)
    assert {row["wait_share"] for row in report["waiting"]} == {0.0}


def test_without_a_cluster_there_is_one_sentence_and_exit_code_1(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("name: nobody\nmodel: tiny.m\n")
    with home() as environment:
        shown = netstat("--cluster", str(path), environment=environment)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == f"error: cluster 'nobody' is not running; `dllama-zmq up --cluster {path}` starts it\n"


def test_an_address_that_is_none_is_refused_with_exit_code_1() -> None:
    shown = tool("--connect", "nowhere")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.startswith("error: nowhere: this computer knows no host of that name")
    assert shown.stderr.count("\n") == 1


# --- figures that do not agree -------------------------------------------------------------------------------------


def made_up_status(step_messages: int, payload: int, wire: int, n_missed: int = 0) -> Status:
    """A cluster of two nodes that has done 10 steps, for which 10 messages of 1000 bytes (1100 on the wire) are due."""
    row = TrafficRow("worker1", "prediction", "sent", "step", step_messages, payload, wire, 10_000, 11_000)
    nodes = [
        NodeStatus(name, "ready", "", "pi", "", 1, 1, 1, 1, 1, 1, 1, 1, 1.0, "", 0) for name in ("root", "worker1")
    ]
    missed = TrafficRow("worker1", "prediction", "received", "missed", n_missed, 0, 20 * n_missed, 0, 0)
    return Status(
        id=1, name="made-up", version="0", state="ready", note="", pid=1, uptime_s=1.0, model="m", sync="f32",
        kernels="numpy", seq_len=8, active=0, queued=0, crowded=False, steps={"prediction": 10},
        tokens={"prediction": 10}, sampled={}, nodes=nodes, recent={}, traffic=[row, missed],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "payload", "wire", "agrees", "unfinished"),
    [
        (10, 10_000, 11_110, True, 0),
        (10, 10_000, 11_111, False, 0),
        (10, 10_000, 10_889, False, 0),
        (10, 10_001, 11_000, False, 0),
        (11, 11_000, 12_100, False, 1),
    ],
)
def test_payload_agrees_to_the_byte_and_wire_within_1_percent(
    messages: int, payload: int, wire: int, agrees: bool, unfinished: int
) -> None:
    report = measured(made_up_status(messages, payload, wire))
    assert (report.agrees, report.unfinished_steps) == (agrees, unfinished)


def test_what_the_plan_does_not_count_is_given_as_the_reason() -> None:
    report = measured(made_up_status(12, 12_000, 13_200, n_missed=1))
    console = Console(width=120)
    with console.capture() as capture:
        console.print(report_tables(report))
    reason = "measured differs from planned; the plan does not count 2 steps that did not end and 1 message sent again"
    assert reason in capture.get()


# --- a prediction --------------------------------------------------------------------------------------------------


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
    assert (flows["step"]["sent_bytes"], flows["step"]["received_bytes"]) == (4352, 0)
    assert (flows["candidates_greedy"]["received_bytes"], flows["candidates_sampled"]["received_bytes"]) == (16, 520)
    assert flows["total_greedy"]["sent_bytes"] == 65 * 4352
    assert flows["total_sampled"]["received_bytes"] == 64 * 4352 + 520


def test_the_prediction_is_shown_as_a_table() -> None:
    shown = tool("--predict", "llama3-8b", "--nodes", "8", "--sync", "q80")
    assert (shown.returncode, shown.stderr) == (0, "")
    layers = [line.split() for line in shown.stdout.splitlines() if "layers  " in line]
    assert [line[-5:-3] for line in layers] == [["278.528", "278.528"], ["1,949.696", "1,949.696"]]
    assert "S 1,904 and R 1,904: in kB of 1024 bytes" in " ".join(shown.stdout.split())
    assert max(len(line) for line in shown.stdout.splitlines() if "  " in line) <= 80  # sentences are the reader's
    for text in ("step x", "candidates, greedy", "candidates, sampled", "memory", "1, 2, 4, 8, 16, 32 nodes"):
        assert text in shown.stdout
    assert "\x1b" not in shown.stdout


def test_the_prediction_tells_the_memory_of_every_node() -> None:
    found = prediction("llama3-8b", "--nodes", "4")
    assert [row["node"] for row in found["memory"]] == ["root", "worker1", "worker2", "worker3"]
    # 32 layers, 2 of 8 KV heads of 128, keys and values in f16, as many positions as a cluster makes room for
    assert {row["kv_bytes"] for row in found["memory"]} == {32 * 2 * 128 * 2 * 2 * 4096}
    assert found["seq_len"] == 4096
    # The Q40 file without its f32 embedding, split by 4, and the norms, which every node has.
    norms = 65 * 4096 * 4
    split = 6_323_781_632 - 128256 * 4096 * 4 - norms
    assert {row["weight_bytes"] for row in found["memory"]} == {split // 4 + norms}
    assert found["possible_nodes"] == [1, 2, 4, 8, 16, 32]


def test_a_model_file_is_predicted_by_its_own_numbers(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny.m", SPEC).close()
    found = prediction(str(tmp_path / "tiny.m"), "--nodes", "4", "--sync", "q80")
    assert found["one_worker"]["flows"]["layers"]["sent_bytes"] == STAGES * row_bytes("q80")
    assert (found["weight_type"], found["seq_len"], found["possible_nodes"]) == ("f32", 512, [1, 2, 4])


def test_a_width_that_q80_cannot_carry_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "tiny.m", tiny_spec(dim=48)).close()
    shown = tool("--predict", str(tmp_path / "tiny.m"), "--nodes", "2", "--sync", "q80")
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr == "error: sync q80 needs whole blocks of 32; this model is 48 wide: use f32 or f16\n"


def test_one_node_is_predicted_to_send_nothing() -> None:
    found = prediction("tinyllama", "--nodes", "1")
    assert (found["one_worker"], found["all_workers"]) == (None, None)
    assert len(found["memory"]) == 1


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
def test_what_cannot_be_predicted_is_refused_in_one_sentence(args: list[str], code: int, sentence: str) -> None:
    shown = tool(*args)
    assert (shown.returncode, shown.stdout) == (code, "")
    assert sentence in shown.stderr
    assert "Traceback" not in shown.stderr


def test_help_tells_every_flag() -> None:
    shown = tool("-h")
    assert shown.returncode == 0
    for flag in ("--cluster", "--connect", "--predict", "--nodes", "--sync", "--watch", "--json"):
        assert flag in shown.stdout
