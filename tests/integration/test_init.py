"""`dllama-zmq init` writes the commented file, the one that the repository has too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Cli

from dllama_zmq.cli.init import cluster_text
from dllama_zmq.cluster import load_cluster
from dllama_zmq.node_config import WorkerConfig

REPOSITORY = Path(__file__).parents[2] / "cluster.yaml"


def test_the_file_of_the_repository_is_what_init_writes() -> None:
    """What is added to one belongs into the other: dllama_zmq/data/cluster.yaml is the text that ships."""
    assert REPOSITORY.read_text() == cluster_text("dllama-zmq", "demo", ["127.0.0.1"] * 3)


def test_a_written_file_brings_a_cluster_up(cli: Cli) -> None:
    written = cli.run("init", "-m", str(cli.model), "--nodes", "2")
    assert (written.code, written.out) == (0, ""), written.said
    assert written.err == "wrote cluster.yaml: 2 nodes; next: dllama-zmq up\n"
    assert cli.run("up").code == 0
    assert cli.generate("-n", "3").out
    cli.down()


@pytest.mark.parametrize("n_nodes", [1, 2, 8])
def test_nodes_are_this_computers(cli: Cli, n_nodes: int) -> None:
    assert cli.run_here("init", "--nodes", str(n_nodes)).code == 0
    file = load_cluster(cli.folder / "cluster.yaml")
    assert file.cluster.workers == [WorkerConfig(name=f"worker{i}") for i in range(1, n_nodes)]
    assert (file.cluster.model, file.cluster.secured, file.cluster.name) == ("demo", False, cli.folder.name[:32])


@pytest.mark.parametrize("file", ["cluster.yaml", "shelf.yaml"])
def test_the_name_behind_a_mark_is_the_default(cli: Cli, file: str) -> None:
    assert cli.run_here("init", file).code == 0
    path = cli.folder / file
    default = load_cluster(path).cluster.name
    assert default == ("shelf" if file == "shelf.yaml" else cli.folder.name[:32])
    assert f"\n# name: {default} " in path.read_text()


def test_workers_are_other_computers_and_the_root_listens_where_they_reach_it(cli: Cli) -> None:
    hosts = "192.0.2.11,pi3.local,192.0.2.13"
    assert cli.run_here("init", "home.yaml", "--workers", hosts, "--host", "192.0.2.10").code == 0
    cluster = load_cluster(cli.folder / "home.yaml").cluster
    assert [(worker.name, worker.host) for worker in cluster.workers] == [
        ("worker1", "192.0.2.11"),
        ("pi3", "pi3.local"),
        ("worker3", "192.0.2.13"),
    ]
    assert (cluster.root.host, cluster.secured) == ("192.0.2.10", True)


def test_the_address_of_this_computer_is_found_by_the_way_to_the_first_worker(cli: Cli) -> None:
    result = cli.run_here("init", "--workers", "localhost")
    assert result.code == 0, result.said
    assert load_cluster(cli.folder / "cluster.yaml").cluster.root.host == "127.0.0.1"
    sentence = cli.run_here("init", "-f", "--workers", "nobody.invalid").error(2)
    assert sentence.startswith("--workers: no route to nobody.invalid is known")
    assert "--host" in sentence


@pytest.mark.parametrize("name", ["own model.gguf", "#1.gguf", "a: b.gguf", "größe.gguf"])
def test_the_model_is_written_relative_to_the_file_and_as_yaml_needs_it(cli: Cli, name: str) -> None:
    (cli.folder / name).touch()
    (cli.folder / "sub").mkdir()
    for path in ("cluster.yaml", "sub"):
        assert cli.run_here("init", path, "-m", name).code == 0
        written = cli.folder / path / "cluster.yaml" if path == "sub" else cli.folder / path
        file = load_cluster(written)
        assert file.model_path().samefile(cli.folder / name)
        assert not Path(file.cluster.model).is_absolute()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--nodes", "3"], 2, "3 nodes including the root; use 1, 2, 4, 8"),
        (["--workers", "192.0.2.1,192.0.2.2"], 2, "3 nodes"),
        (["--nodes", "2", "--workers", "192.0.2.1"], 2, "give one of them"),
        (["--workers", "3"], 2, "workers on this computer are counted by --nodes: --nodes 4"),
        (["-m", "nosuch.gguf"], 1, "nosuch.gguf cannot be opened"),
        (["--workers", "tcp://192.0.2.1", "--host", "192.0.2.10"], 1, "a host name or an address"),
        (["nowhere/cluster.yaml"], 1, "No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_values_that_are_no_cluster_are_not_written(cli: Cli, words: list[str], code: int, says: str) -> None:
    assert says in cli.run_here("init", *words).error(code)
    assert not (cli.folder / "cluster.yaml").exists()


def test_a_file_that_is_there_is_kept_unless_force_says_so(cli: Cli) -> None:
    (cli.folder / "cluster.yaml").write_text("mine")
    assert cli.run_here("init").error(2) == "cluster.yaml exists; --force replaces it"
    assert (cli.folder / "cluster.yaml").read_text() == "mine"
    assert cli.run_here("init", "--force").code == 0


def test_a_file_that_cannot_be_written_is_named_and_nothing_is_left(cli: Cli) -> None:
    (cli.folder / "notes.txt").touch()
    sentence = cli.run_here("init", "notes.txt/home.yaml").error()
    assert sentence.startswith("notes.txt/home.yaml cannot be written: Not a directory")
    assert (
        cli.run_here("init", "no/home.yaml")
        .error()
        .startswith("no/home.yaml cannot be written: No such file or directory")
    )
    command = ["sh", "-c", 'ulimit -f 0; exec "$0" -m dllama_zmq init', sys.executable]  # as a full disk
    done = subprocess.run(command, cwd=cli.folder, env=cli.environment(), capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith("error: cluster.yaml cannot be written: File too large. Make room")
    assert sorted(path.name for path in cli.folder.iterdir()) == ["notes.txt"]


@pytest.mark.parametrize("name", ["demo", "own.gguf"])
def test_a_model_in_place_of_the_file_is_refused_and_not_replaced(cli: Cli, name: str) -> None:
    (cli.folder / "own.gguf").write_bytes(b"GGUF")
    for words in ([], ["--force"]):
        sentence = cli.run_here("init", name, *words).error(2)
        assert sentence == f"{name} is a model, and a model goes after -m: dllama-zmq init -m {name}"
    assert (cli.folder / "own.gguf").read_bytes() == b"GGUF"
    assert not (cli.folder / "demo").exists()
