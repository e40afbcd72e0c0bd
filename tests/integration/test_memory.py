"""What two nodes keep in memory, measured from outside on a model large enough to see.

A worker: resident memory (Rss of /proc/PID/smaps_rollup) with a KV cache that is full, less that of an idle
worker, which has started the same way and waits for a root that is not there. The root: anonymous memory (Anonymous, in
the same file: what it has allocated, not the pages of the mapped model), less that of the same idle worker.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Cli, clean_cli, until
from contexts import a_context
from integration.nodes import tcp
from surroundings import free_ports
from tiny import tiny_spec

from dllama_zmq.bus.client_messages import NodeStatus, Status
from dllama_zmq.formats import open_m, write_m, write_t
from dllama_zmq.formats.random_model import random_tensors
from dllama_zmq.kernels import Batch
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import FloatType, ModelSpec

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from make_model import made_up_vocabulary

LARGE = ModelSpec(
    arch="llama",
    dim=2048,
    hidden_dim=5632,
    n_layers=4,
    n_heads=16,
    n_kv_heads=8,
    head_dim=128,
    vocab_size=5000,
    seq_len=128,
    weight_type=FloatType.Q40,
)
N_SEQUENCES = 4
STEP_BYTES = 28 << 20
"""A step of 128 tokens, of which the C library keeps the largest array, 3 MB, or not; machine code and its loader's
data; what a worker that waits has not imported."""
ROOT_BYTES = 35 << 20
"""The same, the tokenizer, what only a root imports."""
EMBEDDING_F32_BYTES = LARGE.vocab_size * LARGE.dim * 4
PROCESS_BYTES = (
    200 << 20
)  # what a node may take beyond its shard and its keys and values, interpreter and libraries too


def measured(pid: int) -> dict[str, int]:
    """The fields of a process's smaps_rollup, in bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """LARGE running on two nodes, with a KV cache that is full."""
    folder = tmp_path_factory.mktemp("large")
    model = folder / "large.m"
    write_m(model, LARGE, random_tensors(LARGE, seed=3))
    write_t(model.with_suffix(".t"), made_up_vocabulary(LARGE.vocab_size))
    with clean_cli(folder, model) as cli:
        cli.up(2, max_sequences=N_SEQUENCES)
        with cli.client() as client:
            n_pages = client.status().kv.pages
            assert n_pages == N_SEQUENCES * LARGE.seq_len // 64
            for i in range(n_pages):  # each leaves its first page in the cache, and no two begin alike
                length = LARGE.seq_len - 4 if i == n_pages - 1 else 64  # the last one is as long as can be
                prompt = chr(ord("a") + i) + "~" * length  # no two merge; <s>, a space, and the answer
                assert client.text(prompt, max_tokens=1) is not None
            assert client.status().kv.cached == n_pages - 1  # the last one's second page was not full
        yield cli
        cli.down()
    model.unlink()


@pytest.fixture(scope="module")
def idle(large: Cli) -> Iterator[dict[str, int]]:
    """The memory of a worker that waits for a root."""
    (port,) = free_ports(1)
    with large.started("worker", "--root", f"tcp://127.0.0.1:{port}") as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert b"asking the root" in line, line
        yield measured(process.pid)
        process.terminate()
        process.wait(5)


def node(status: Status, name: str) -> NodeStatus:
    return next(row for row in status.nodes if row.name == name)


def test_a_worker_holds_its_shard_once_its_kv_cache_and_a_step(large: Cli, idle: dict[str, int]) -> None:
    row = node(large.status(), "worker1")
    now = measured(row.pid)
    above_idle = now["Anonymous"] - idle["Anonymous"]
    expected = row.weight_bytes + row.kv_bytes
    print(f"worker: {above_idle:,} anonymous bytes above idle, {now['Rss']:,} resident; shard + KV {expected:,}")
    assert row.weight_bytes < 0.6 * large.model.stat().st_size
    assert 0.5 * expected > STEP_BYTES  # or what follows would not notice the shard twice
    assert above_idle <= expected + STEP_BYTES
    assert now["Rss"] <= expected + PROCESS_BYTES


def test_the_root_holds_its_shard_once_and_no_f32_embedding(large: Cli, idle: dict[str, int]) -> None:
    row = node(large.status(), "root")
    now = measured(row.pid)
    above_idle = now["Anonymous"] - idle["Anonymous"]
    expected = row.weight_bytes + row.kv_bytes
    print(f"root: {above_idle:,} anonymous bytes above idle, {now['Rss']:,} resident; shard + KV {expected:,}")
    assert ROOT_BYTES < EMBEDDING_F32_BYTES  # or what follows would not notice one
    assert above_idle <= expected + ROOT_BYTES
    assert now["Rss"] <= expected + PROCESS_BYTES


@pytest.mark.parametrize("name", ["root", "worker1"])
def test_the_estimate_is_what_a_node_takes_within_5_percent_and_25_megabytes(large: Cli, name: str) -> None:
    row = node(large.status(), name)
    taken = measured(row.pid)["Anonymous"]
    print(f"{name}: estimated {row.memory_bytes:,}, taken {taken:,}")
    assert taken <= 1.05 * row.memory_bytes
    assert row.memory_bytes <= 1.05 * taken + 25_000_000


def test_memory_does_not_grow_from_answer_to_answer(large: Cli) -> None:
    pids = {row.name: row.pid for row in large.status().nodes}
    with large.client() as client:
        taken = []
        for _ in range(4):
            for _ in range(3):
                client.text("~" * 40, max_tokens=2)
            taken.append({name: measured(pid)["Rss"] for name, pid in pids.items()})
    grown = {name: [after[name] - before[name] for before, after in itertools.pairwise(taken)] for name in pids}
    print(f"grown by three answers, again and again: {grown}")
    # What an answer leaves, each leaves; what the C library keeps, or the kernel gives, comes at any time.
    assert max(map(min, grown.values())) < 300_000


def test_a_worker_has_given_its_last_model_back_when_it_asks_the_next_root(cli: Cli, tmp_path: Path) -> None:
    """What the next root compares with its need is free by then, also what the C library keeps."""
    spec = tiny_spec(dim=1024, hidden_dim=4096, n_layers=8, seq_len=1024, weight_type=FloatType.Q40)
    places = tcp()
    write_m(tmp_path / "m.m", spec, random_tensors(spec, seed=3))
    with open_m(tmp_path / "m.m") as model, cli.started("worker", places.replies[0], "-t", "1") as worker:
        shard_bytes = Plan.make(spec, 2).weight_bytes(1)
        for _ in range(3):
            with a_context() as context:  # whose end frees the ports for the next root
                root = Root(context, model, RootSettings(names=["worker1"], kernels="numpy"), places)
                root.wait_ready(time.monotonic() + 60, lambda: None)
                root.logits(Batch.alone(0, 3), [1, 2, 3])
                loaded = measured(worker.pid)["Rss"]
                root.close("the next one comes", stay=True)
            until(lambda most=loaded - shard_bytes: measured(worker.pid)["Rss"] < most, 10.0, "memory to be given back")
