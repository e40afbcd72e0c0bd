"""cluster.yaml: what it may say. `test_cluster_paths.py` has how it is read, and the files that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml

from dllama_zmq.api_config import ApiConfig, ApiLimits
from dllama_zmq.cluster import (
    Cluster,
    ClusterFile,
    default_name,
    is_loopback,
    load_cluster,
    parse_cluster,
)
from dllama_zmq.errors import UsageError
from dllama_zmq.launch.registry import without_file
from dllama_zmq.node_config import NAME_PATTERN, Limits, Ports, RootConfig, WorkerConfig
from dllama_zmq.spec import FloatType

SHIPPED = Path(__file__).parents[2] / "cluster.yaml"

FULL = """\
name: shelf
model: models/story.m
tokenizer: models/other.t
weights: q40
sync: q80
kernels: numpy
max_seq_len: 512
kv_memory: 1.5GB
root:
  host: 192.168.1.10
  ports: {replies: 7000, steps: 7001, clients: 7002}
  threads: 4
workers:
  - {name: pi-1, host: 192.168.1.11, ssh: pi@shelf, threads: 2}
limits: {join_s: 5, load_s: 60.5, step_s: 2, stop_s: 1}
api:
  host: 192.168.1.10
  port: 7003
  keys: [sk-0123456789]
  origins: ["http://192.168.1.20:3000"]
  limits: {body_mb: 1, max_tokens: 500, n: 2, stop: 4, connections: 9, stalled_s: 5}
security: none
"""


def test_every_key_of_the_file_reaches_the_cluster() -> None:
    assert parse_cluster(FULL) == Cluster(
        name="shelf",
        model="models/story.m",
        tokenizer="models/other.t",
        weights="q40",
        sync="q80",
        kernels="numpy",
        max_seq_len=512,
        kv_memory="1.5GB",
        root=RootConfig(host="192.168.1.10", ports=Ports(replies=7000, steps=7001, clients=7002), threads=4),
        workers=[WorkerConfig(name="pi-1", host="192.168.1.11", ssh="pi@shelf", threads=2)],
        limits=Limits(join_s=5, load_s=60.5, step_s=2, stop_s=1),
        api=ApiConfig(
            host="192.168.1.10",
            port=7003,
            keys=["sk-0123456789"],
            origins=["http://192.168.1.20:3000"],
            limits=ApiLimits(body_mb=1, max_tokens=500, n=2, stop=4, connections=9, stalled_s=5),
        ),
        security="none",
    )


@pytest.mark.parametrize(
    ("ssh", "host"),
    [
        ("pi@192.168.1.12", "192.168.1.12"),
        ("shelf.pi2", "shelf.pi2"),
        ("ssh://pi@pi2.local:2222", "pi2.local"),
        ("ssh://pi@[fd77::1]:2222", "fd77::1"),
        ("pi@fd77::1", "fd77::1"),
    ],
)
def test_a_worker_over_ssh_is_on_the_host_that_ssh_leads_to(ssh: str, host: str) -> None:
    worker = msgspec.convert({"name": "far", "ssh": ssh}, WorkerConfig)
    assert (worker.host, worker.ssh) == (host, ssh)
    assert msgspec.convert(msgspec.to_builtins(worker), WorkerConfig) == worker


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("auto", None), ("512MB", 512 * 10**6), ("1.5 GB", 15 * 10**8), ("2TB", 2 * 10**12)]
)
def test_memory_for_the_kv_cache_is_a_size_or_auto(text: str, n_bytes: int | None) -> None:
    assert parse_cluster(f"model: demo\nkv_memory: {text}\n").kv_bytes == n_bytes


@pytest.mark.parametrize(("text", "n_bytes"), [("auto", None), ("none", 0), ("20GB", 20 * 10**9)])
def test_disk_for_weights_of_earlier_starts_is_a_size_auto_or_none(text: str, n_bytes: int | None) -> None:
    assert parse_cluster(f"model: demo\nweight_cache: {text}\n").cache_bytes == n_bytes


def test_a_file_that_names_only_a_model_is_a_cluster_of_one_node() -> None:
    cluster = parse_cluster("model: demo")
    assert cluster == Cluster(name=default_name(Path("cluster.yaml")), model="demo")
    assert cluster.n_nodes == 1


def test_weights_name_the_type_in_which_they_are_read() -> None:
    assert parse_cluster("model: demo").weight_type is None
    assert parse_cluster("model: demo\nweights: q80").weight_type is FloatType.Q80


def test_a_model_may_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    assert ClusterFile(tmp_path / "cluster.yaml", Cluster(model="llama")).model_path() == tmp_path / "llama"


def test_keys_without_a_value_count_as_not_given() -> None:
    assert parse_cluster("model: demo\nname:\nworkers:\nroot:\n  host:\n") == parse_cluster("model: demo")


def test_the_shipped_file_is_one_root_and_three_workers_on_this_host() -> None:
    cluster = load_cluster(SHIPPED).cluster
    assert (cluster.model, cluster.sync, cluster.secured) == ("demo", "f32", False)
    assert cluster.name == default_name(SHIPPED)
    assert [worker.name for worker in cluster.workers] == ["worker1", "worker2", "worker3"]
    assert all(is_loopback(host) for host in [cluster.root.host, *(worker.host for worker in cluster.workers)])


def test_the_shipped_file_shows_every_key_and_its_default() -> None:
    first, *lines = SHIPPED.read_text().splitlines()[2:]
    shown = "\n".join([first, *(line.replace("# ", "", 1) if line.lstrip()[:1] == "#" else line for line in lines)])
    data = yaml.safe_load(shown)
    assert set(data) == set(Cluster.__struct_fields__)
    assert set(data["root"]) == set(RootConfig.__struct_fields__)
    assert set(data["workers"][0]) == set(WorkerConfig.__struct_fields__)
    cluster = parse_cluster(shown)
    assert (cluster.root, cluster.limits, cluster.kernels) == (RootConfig(ports=Ports()), Limits(), "auto")
    assert set(data["api"]) == set(ApiConfig.__struct_fields__)
    assert set(data["api"]["limits"]) == set(ApiLimits.__struct_fields__)
    assert cluster.api == ApiConfig(port=9990, limits=ApiLimits(max_tokens=4096))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("llm", "llm"),
        ("My models (2)", "My-models-2"),
        ("été", "ete"),
        (".config", "config"),
        ("-x_", "x_"),
        ("日本", "home"),
        ("a" * 40, "a" * 32),
        ("v1.2", "v1-2"),
    ],
)
def test_a_file_without_a_name_gets_its_folders(folder: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / folder / "cluster.yaml"
    path.parent.mkdir()
    path.write_text("model: demo")
    (tmp_path / "link.yaml").symlink_to(path)
    assert load_cluster(path).cluster.name == load_cluster(tmp_path / "link.yaml").cluster.name == name
    assert parse_cluster(f"model: demo\nname: {name}").name == name  # it is one that may be written


@pytest.mark.parametrize(
    ("file", "name"),
    [("home.yaml", "home"), ("My shelf.yml", "My-shelf"), ("日本.yaml", "home"), ("cluster.yml", "folder")],
)
def test_another_file_than_cluster_yaml_is_a_cluster_of_its_own_name(file: str, name: str, tmp_path: Path) -> None:
    """Two files of one folder can run at once."""
    (tmp_path / "folder").mkdir()
    path = tmp_path / "folder" / file
    path.write_text("model: demo")
    assert load_cluster(path).cluster.name == name


def test_a_cluster_without_a_file_is_its_folders_or_one_calls(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    here = without_file("demo", 4, tmp_path / "models")
    assert (here.cluster.name, here.cluster.n_nodes, here.private) == ("models", 4, False)
    assert here.identity == tmp_path / "models" / "cluster.yaml"
    mine = [without_file("demo", folder=tmp_path, private=True) for _ in range(2)]
    assert mine[0].cluster.name != mine[1].cluster.name
    assert all(re.search(NAME_PATTERN, file.cluster.name) for file in mine)
    for n_nodes in (0, 3, -2):
        with pytest.raises(UsageError, match="use 1, 2, 4, 8"):
            without_file("demo", n_nodes)


def test_tcp_is_for_clusters_of_several_computers_and_where_ports_are_given() -> None:
    assert parse_cluster("model: demo\nworkers: [{name: a}]").tcp_ports is None
    assert parse_cluster("model: demo\nroot: {ports: {clients: 99}}").tcp_ports == Ports(clients=99)
    assert parse_cluster("model: demo\nroot: {host: 10.0.0.1}\nsecurity: none").tcp_ports == Ports()


def test_two_files_run_the_same_where_model_weights_and_tokenizer_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.m").touch()
    (tmp_path / "link.m").symlink_to("a.m")

    def file(path: str = "cluster.yaml", **keys: str) -> ClusterFile:
        return ClusterFile(tmp_path / path, parse_cluster(json.dumps({"model": "a.m", "tokenizer": "a.t", **keys})))

    assert file().runs_the_same(file(sync="q80"))
    assert file().runs_the_same(file(model=str(tmp_path / "x" / ".." / "a.m")))
    assert file().runs_the_same(file(model="link.m"))
    assert not file().runs_the_same(file(model="b.m"))
    assert not file().runs_the_same(file(weights="q40"))
    assert not file().runs_the_same(file(tokenizer="b.t"))
    assert not file().runs_the_same(file("sub/cluster.yaml"))
