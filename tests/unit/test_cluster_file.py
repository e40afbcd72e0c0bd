"""cluster.yaml: what it may say, and which files it means."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
import yaml

import dllama_zmq
from dllama_zmq.api_config import ApiConfig, ApiLimits
from dllama_zmq.cluster import (
    MAX_FILE_BYTES,
    Cluster,
    ClusterFile,
    Limits,
    default_name,
    is_loopback,
    load_cluster,
    parse_cluster,
)
from dllama_zmq.errors import ConfigError, UsageError
from dllama_zmq.launch.registry import without_file
from dllama_zmq.node_config import NAME_PATTERN, Ports, RootConfig, WorkerConfig
from dllama_zmq.sources import absolute_model
from dllama_zmq.spec import FloatType

PACKAGE_DATA = Path(dllama_zmq.__file__).parent / "data"
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


# --- files ------------------------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> ClusterFile:
    """`text` as a cluster file in `folder`, loaded."""
    path = folder / "cluster.yaml"
    path.write_text(text)
    return load_cluster(path)


def test_a_missing_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such file; go to the folder"):
        load_cluster(tmp_path / "none.yaml")


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_cluster(tmp_path)


def test_a_file_of_more_than_a_mebibyte_is_refused_unread(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        write(tmp_path, "#" * (MAX_FILE_BYTES + 1))


def test_a_file_that_is_no_utf8_is_refused_at_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(b"model: demo\nname: \xff\n")
    with pytest.raises(ConfigError, match=r"cluster\.yaml:2:7: not UTF-8"):
        load_cluster(path)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b" <!DOCTYPE html>\n<html><body>root: x</body></html>", "a web page"),
        (b"GGUF\x03\0\0\0" + bytes(100), "a GGUF model"),
        (b"\xcd\xab\x00\x0a" + bytes(100), "a .m model"),
        (b"PK\x03\x04" + bytes(100), "a zip archive"),
        (b'{"architectures": ["LlamaForCausalLM"]}', "a JSON file"),
        (b"[1, 2]", "a JSON file"),
        (b"Dear all,\nthis is: a note: with colons\n", "a text file"),
        (b"demo\n", "a text file"),
        (b"# My model\nIt is a *story*.\n\nYou write:\n```yaml\nmodel: demo\n```\n", "a text file"),
        (bytes(range(200)), "a file of binary data"),
    ],
)
def test_a_file_of_another_kind_is_called_what_it_is(tmp_path: Path, data: bytes, kind: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"cluster\.yaml is {kind}, not a cluster's file: that is YAML with"):
        load_cluster(path)
    path.write_bytes(data + b" " * MAX_FILE_BYTES)
    with pytest.raises(ConfigError, match=rf"cluster\.yaml is ({kind}|larger than 1048576 bytes), not a cluster's"):
        load_cluster(path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("model: [demo\n", r":2:1: not valid YAML"),
        ('{"model": "demo", "sync": 3}', r":1:27: sync: expected "),
        ("services: {}\n", r":1:1: unknown key 'services'"),
        ("# nothing\n", ": the file is empty"),
        ("\ufeffmodel: demo\nname: \u00e9\n", r":2:7: name: expected"),
    ],
)
def test_a_mistake_in_a_clusters_file_is_told_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=rf"cluster\.yaml{says}"):
        write(tmp_path, text)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: demo\n")
    assert load_cluster(path).cluster.model == "demo"


def test_paths_are_relative_to_the_file_and_the_tokenizer_lies_beside_the_model(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for name in ("story.m", "story.t"):
        (tmp_path / "models" / name).touch()
    file = write(tmp_path, "model: models/story.m")
    assert file.model_path() == tmp_path / "models" / "story.m"
    assert file.tokenizer_path() == tmp_path / "models" / "story.t"


def test_a_path_is_shown_without_dots_and_the_link_before_them_is_followed(tmp_path: Path) -> None:
    for folder in ("clusters", "models", "far/away"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "blob").touch()
    for model in (tmp_path / "models" / "a.gguf", tmp_path / "far" / "b.gguf"):
        model.symlink_to(tmp_path / "blob")  # as in the cache of a hub: the name is the link's
    (tmp_path / "clusters" / "link").symlink_to(tmp_path / "far" / "away")
    for text, model in (("../models/a.gguf", "models/a.gguf"), ("link/../b.gguf", "far/b.gguf")):
        assert write(tmp_path / "clusters", f"model: {text}").unchecked_model_path() == tmp_path.resolve() / model
        assert absolute_model(str(tmp_path / "clusters" / text)) == str(tmp_path.resolve() / model)


def test_a_tilde_means_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "story.m").touch()
    assert write(tmp_path, "model: ~/story.m").model_path() == tmp_path / "story.m"


def test_the_home_folder_of_nobody_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model: ~no-such-user/story.m: no such home folder"):
        write(tmp_path, "model: ~no-such-user/story.m").model_path()


def test_a_missing_model_is_refused_with_its_path_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"model: there is no {tmp_path}/story\.m; write .* demo for the shipped one"
    ):
        write(tmp_path, "model: story.m").model_path()


def test_a_missing_tokenizer_is_refused_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "story.m").touch()
    with pytest.raises(ConfigError, match=rf"tokenizer: there is no {tmp_path}/story\.t; .*--tokenizer"):
        write(tmp_path, "model: story.m").tokenizer_path()


def test_a_gguf_file_and_a_folder_bring_their_tokenizers_with_them(tmp_path: Path) -> None:
    (tmp_path / "story.gguf").touch()
    (tmp_path / "story").mkdir()
    for name in ("story.gguf", "story"):
        file = write(tmp_path, f"model: {name}")
        assert file.model_path() == file.tokenizer_path() == tmp_path / name


def test_the_tokenizer_of_a_safetensors_file_is_that_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "story").mkdir()
    (tmp_path / "story" / "model.safetensors").touch()
    assert write(tmp_path, "model: story/model.safetensors").tokenizer_path() == tmp_path / "story"


def test_demo_means_the_files_shipped_in_the_package(tmp_path: Path) -> None:
    file = write(tmp_path, "model: demo")
    if not (PACKAGE_DATA / "demo.m").exists():
        pytest.skip("the demo model is not built yet")
    assert file.model_path() == PACKAGE_DATA / "demo.m"
    assert file.tokenizer_path() == PACKAGE_DATA / "demo.t"
