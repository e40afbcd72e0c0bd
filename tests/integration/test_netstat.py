"""`dllama-zmq netstat` against real clusters of processes, and alone: what is measured is what the plan predicts."""

from __future__ import annotations

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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli
from integration.netstat_tool import SPEC, STAGES, row_bytes, tool
from surroundings import free_ports
from tiny import tiny_tokenizer_data, write_tiny_model

from dllama_zmq.bus.client_messages import Prefill, TokenText
from dllama_zmq.client import Client
from dllama_zmq.formats import write_t
from dllama_zmq.sampling import Sampling
from dllama_zmq.spec import Sync

NETSTAT = Path(__file__).parents[2] / "tools" / "netstat.py"
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
                *client.generate("a cat", 12, Sampling(1.0, seed=3), ignore_eos=True),
                # So hot that 64 candidates of each node seldom suffice, where a node has more of them.
                *client.generate("the dog", 12, Sampling(50.0, seed=5), ignore_eos=True),
            ]
        prefills = [answer for answer in answers if isinstance(answer, Prefill)]
        figures = [answer.figures for answer in answers if isinstance(answer, TokenText) and answer.figures is not None]
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
                pages = line["payload_bytes"] - n_tokens * row_bytes(seen.sync)
                assert 4 * seen.report["steps"][phase] <= pages <= 4 * 8 * seen.report["steps"][phase]


def test_tokens_and_steps_are_those_of_the_clients_report(seen: Seen) -> None:
    assert seen.prompt_tokens > 32 + 2  # one of the prompts took two steps, of which the first wanted no logits
    assert seen.report["tokens"] == {"prompt": seen.prompt_tokens, "prediction": seen.predicted_tokens}
    assert seen.report["steps"] == {"prompt": seen.prompt_steps, "prediction": seen.predicted_tokens}
    assert seen.report["unfinished_steps"] == 0


def test_the_payload_sent_in_all_is_that_of_the_clients_report(seen: Seen) -> None:
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
        assert by_kind["candidates"] == seen.predicted_tokens + by_kind.get("more_candidates", 0)
    if seen.n_workers == 1:  # 4 nodes have 72 tokens each, of which 64 nearly always suffice
        assert messages["worker1"]["more_candidates"] > 0


def test_the_report_says_that_it_agrees(seen: Seen) -> None:
    assert seen.report["agrees"] is True
    assert "measured agrees with planned: payload to the byte, wire within 1%" in seen.text


def test_the_lines_of_all_workers_are_the_sums_of_theirs(seen: Seen) -> None:
    for phase, lines in seen.report["all_workers"].items():
        for line in lines:
            if line["kind"] == "other":
                continue
            of_workers = [
                one
                for _, one in seen.lines(phase)
                if (one["kind"], one["direction"]) == (line["kind"], line["direction"])
            ]
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


REPORT_FIELDS = (
    "cluster state note model sync nodes tokens steps unfinished_steps sent_again agrees workers all_workers "
    "oversubscribed recent waiting slowest"
)
LINE_FIELDS = (
    "kind direction messages payload_bytes wire_bytes payload_bytes_per_token wire_bytes_per_token "
    "predicted_payload_bytes predicted_wire_bytes agrees"
)


def test_the_json_of_a_cluster_has_these_fields(seen: Seen) -> None:
    assert set(seen.report) == set(REPORT_FIELDS.split())
    assert (seen.report["sync"], seen.report["nodes"]) == (seen.sync, 1 + seen.n_workers)
    for worker in seen.report["workers"]:
        assert set(worker) == {"worker", "phases", "setup"}
        assert set(worker["phases"]) == {"prompt", "prediction"}
        for line in worker["phases"]["prompt"]:
            assert set(line) == set(LINE_FIELDS.split())
        setup = {line["kind"]: line for line in worker["setup"]}
        assert {"welcome", "plan", "offer", "credit", "loaded", "beacon_ack", "beacon"} <= set(setup)
        assert "weights" not in setup  # a worker of the root's own computer reads them from the root's file


def test_before_the_first_token_the_set_up_is_shown(seen: Seen) -> None:
    assert "no tokens yet" in seen.before
    assert "other sent" in seen.before
    assert "weights" not in seen.before  # the workers read them from the root's file
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
    assert "kB per token" not in shown.stdout  # no table without rows
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


def test_help_lists_every_flag() -> None:
    shown = tool("-h")
    assert shown.returncode == 0
    for flag in ("--cluster", "--connect", "--predict", "--nodes", "--sync", "--watch", "--json"):
        assert flag in shown.stdout
