"""A second start maps the weights that the first one has repacked, on every node, and the answers are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Cli, clean_cli, gone, kill, until
from tiny import tiny_spec, tiny_tokenizer_data, write_tiny_model

from dllama_zmq.formats import write_t
from dllama_zmq.spec import FloatType

SPEC = tiny_spec(dim=1024, hidden_dim=2048, n_layers=1, n_heads=8, n_kv_heads=8, weight_type=FloatType.Q40)
PRODUCTS = 4
"""A node's products that are large enough to be kept: q, k and v, o, gate and up, down. The head is small."""
N_NODES = 2


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cli]:
    """Of a model whose parts are large enough to be kept."""
    write_tiny_model(tmp_path / "wide.m", SPEC).close()
    write_t(tmp_path / "wide.t", tiny_tokenizer_data(SPEC.vocab_size))
    with clean_cli(tmp_path, tmp_path / "wide.m") as cli:
        yield cli


def kept(cli: Cli) -> list[str]:
    folder = cli.home / "slices"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def mapped(cli: Cli, pid: int) -> set[str]:
    """The files of the folder that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.rsplit("/", 1)[1] for line in lines if str(cli.home / "slices") in line}


def answer(cli: Cli) -> str:
    return cli.generate("-n", "5").out


def a_start(cli: Cli) -> tuple[str, list[set[str]]]:
    """Bring the cluster up. Returns an answer of it, and what each of its nodes has mapped."""
    cli.up(N_NODES)
    text, maps = answer(cli), [mapped(cli, cli.pid(node)) for node in ("root", "worker1")]
    until(lambda: len(kept(cli)) == N_NODES * PRODUCTS and not any(".part" in n for n in kept(cli)), 30, "all is kept")
    return text, maps


def test_the_second_start_and_a_worker_that_comes_back_map_what_the_first_start_has_repacked(cluster: Cli) -> None:
    first, maps = a_start(cluster)
    assert maps == [set(), set()]
    cluster.down()
    second, maps = a_start(cluster)
    assert [len(names) for names in maps] == [PRODUCTS] * N_NODES
    assert sorted(maps[0] | maps[1]) == kept(cluster)
    pid = cluster.pid("worker1")
    kill(pid)
    until(lambda: gone(pid), 10, "the worker has ended")
    assert answer(cluster) == second == first
    assert mapped(cluster, cluster.pid("worker1")) == maps[1]
    cluster.down()


def test_a_model_that_has_changed_is_not_taken_for_the_one_of_the_last_start(cluster: Cli) -> None:
    first, _ = a_start(cluster)
    cluster.down()
    write_tiny_model(cluster.model, SPEC, seed=99).close()
    cluster.up(N_NODES)
    assert answer(cluster) != first
    assert [mapped(cluster, cluster.pid(node)) for node in ("root", "worker1")] == [set(), set()]
    cluster.down()


def test_a_cluster_without_a_weight_cache_keeps_nothing(cluster: Cli) -> None:
    cluster.up(N_NODES, weight_cache="none")
    answer(cluster)
    cluster.down()
    assert not (cluster.home / "slices").exists()
