"""cluster.yaml: what it may say, and the sentence that each mistake ends in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import dllama_zmq
from dllama_zmq.cluster import (
    MAX_FILE_BYTES,
    NAME_PATTERN,
    Cluster,
    ClusterFile,
    Limits,
    Ports,
    RootConfig,
    WorkerConfig,
    default_name,
    is_loopback,
    load_cluster,
    parse_cluster,
)
from dllama_zmq.errors import ConfigError, UsageError
from dllama_zmq.launch.registry import without_file
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
root:
  host: 192.168.1.10
  ports: {replies: 7000, steps: 7001, clients: 7002}
  threads: 4
workers:
  - {name: pi-1, host: 192.168.1.11, threads: 2}
limits: {join_s: 5, load_s: 60.5, step_s: 2, stop_s: 1}
open_bus: true
"""


def refusal(text: str) -> str:
    """The one sentence in which `text` is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_cluster(text, "home.yaml")
    return str(caught.value)


def test_every_key_of_the_file_reaches_the_cluster() -> None:
    assert parse_cluster(FULL) == Cluster(
        name="shelf",
        model="models/story.m",
        tokenizer="models/other.t",
        weights="q40",
        sync="q80",
        kernels="numpy",
        max_seq_len=512,
        root=RootConfig(host="192.168.1.10", ports=Ports(replies=7000, steps=7001, clients=7002), threads=4),
        workers=[WorkerConfig(name="pi-1", host="192.168.1.11", threads=2)],
        limits=Limits(join_s=5, load_s=60.5, step_s=2, stop_s=1),
        open_bus=True,
    )


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
    assert (cluster.model, cluster.sync, cluster.open_bus) == ("demo", "f32", False)
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


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("llm", "llm"), ("My models (2)", "My-models-2"), ("été", "ete"), (".config", "config"), ("-x_", "x_"),
        ("日本", "home"), ("a" * 40, "a" * 32), ("v1.2", "v1-2"),
    ],
)  # fmt: skip
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
    assert parse_cluster("model: demo\nroot: {host: 10.0.0.1}\nopen_bus: true").tcp_ports == Ports()


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


@pytest.mark.parametrize(
    ("text", "begins", "says"),
    [
        ("model: demo\nroot:\n\thost: a\n", "home.yaml:3:1: ", ["tab", "spaces"]),
        ("model: demo\nroot:\n  host: a\n \tthreads: 1\n", "home.yaml:4:2: ", ["tab"]),
        ("model: [demo\nname: x\n", "home.yaml:2:5: ", ["not valid YAML"]),
        ("model: \x07\n", "home.yaml:1:8: ", ["character"]),
        ("", "home.yaml: ", ["empty", "model: demo"]),
        ("# only a comment\n", "home.yaml: ", ["empty"]),
        ("- demo\n", "home.yaml:1:1: ", ["expected keys and values"]),
        ("demo\n", "home.yaml:1:1: ", ["expected keys and values"]),
        ("name: x\n", "home.yaml:1:1: model: ", ["missing", ".m file"]),
        ("model: demo\nworkers:\n  - threads: 1\n", "home.yaml:3:5: workers[0].name: ", ["missing"]),
        ("model: demo\nmodle: x\n", "home.yaml:2:1: ", ["unknown key 'modle'", "did you mean model?"]),
        ("model: demo\nroot:\n  prots: {}\n", "home.yaml:3:3: root: ", ["'prots'", "did you mean ports?"]),
        ("model: demo\nworkers: [{nmae: a}]\n", "home.yaml:2:12: workers[0]: ", ["did you mean name?"]),
        ("model: demo\njoin_s: 5\n", "home.yaml:2:1: ", ["'join_s'", "did you mean limits.join_s?"]),
        ("model: demo\nzzz: 5\n", "home.yaml:2:1: ", ["'zzz'", "known keys: name, model"]),
        ("model: demo\nname: a\nname: b\n", "home.yaml:3:1: name: ", ["twice", "line 2"]),
        ("model: demo\n1: b\n", "home.yaml:2:1: ", ["key"]),
        ("model: demo\nroot:\n  ports:\n    steps: many\n", "home.yaml:4:12: root.ports.steps: ", ["port", "'many'"]),
        ("model: demo\nroot: {ports: {steps: 70000}}\n", "home.yaml:2:23: root.ports.steps: ", ["65535", "'70000'"]),
        ("model: demo\nroot: {ports: {steps: 0}}\n", "home.yaml:2:23: root.ports.steps: ", ["1 to 65535", "'0'"]),
        ("model: demo\nroot: {ports: {steps: 5570}}\n", "home.yaml:2:15: root.ports: ", ["5570", "different"]),
        ("model: demo\nroot: 5\n", "home.yaml:2:7: root: ", ["a mapping", "'5'"]),
        (
            "model: demo\nworkers: '3'\n",
            "home.yaml:2:10: workers: ",
            ["a number of workers", "- {name: pi2, host:", "'3'"],
        ),
        ("model: demo\nworkers: yes\n", "home.yaml:2:10: workers: ", ["a number of workers", "a list with a line"]),
        ("model: demo\nworkers: -1\n", "home.yaml:2:10: workers: ", ["0 to 1023", "got -1"]),
        ("model: demo\nworkers: 1024\n", "home.yaml:2:10: workers: ", ["0 to 1023", "got 1024"]),
        ("model: demo\nworkers: 2\n", "home.yaml:2:10: workers: ", ["1 root + 2 workers are 3 nodes"]),
        ("model: demo\nworkers: [a]\n", "home.yaml:2:11: workers[0]: ", ["such as `- {name: pi2", "'a'"]),
        ("model: demo\nopen_bus: 1\n", "home.yaml:2:11: open_bus: ", ["true or false", "'1'"]),
        ("model: demo\nname: on\n", "home.yaml:2:7: name: ", ["true or false", "quotes"]),
        ("model: demo\nname: 2024-01-01\n", "home.yaml:2:7: name: ", ["timestamp", "quotes"]),
        ("model: demo\nname: ../etc\n", "home.yaml:2:7: name: ", ["letters, digits", "'../etc'"]),
        ("model: demo\nname: " + "a" * 33 + "\n", "home.yaml:2:7: name: ", ["32"]),
        ("model: demo\nsync: f8\n", "home.yaml:2:7: sync: ", ["f32, f16 or q80", "'f8'"]),
        ("model: demo\nweights: q5\n", "home.yaml:2:10: weights: ", ["q40, q80, f16 or f32", "'q5'"]),
        ("model: demo\nkernels: no\n", "home.yaml:2:10: kernels: ", ["auto, simd or numpy"]),
        ("model: demo\nmax_seq_len: 0\n", "home.yaml:2:14: max_seq_len: ", ["tokens", "'0'"]),
        ("model: demo\nroot: {threads: 0}\n", "home.yaml:2:17: root.threads: ", ["1 to 1024"]),
        ("model: demo\nroot: {host: 'tcp://a:1'}\n", "home.yaml:2:14: root.host: ", ["without scheme or port"]),
        ("model: demo\nlimits: {step_s: 0}\n", "home.yaml:2:18: limits.step_s: ", ["more than 0", "'0'"]),
        ("model: demo\nlimits: {step_s: -1}\n", "home.yaml:2:18: limits.step_s: ", ["more than 0"]),
        ("model: demo\nlimits: {step_s: .nan}\n", "home.yaml:2:18: limits.step_s: ", ["'.nan'"]),
        ("model: demo\nlimits: {step_s: .inf}\n", "home.yaml:2:18: limits.step_s: ", ["86400", "'.inf'"]),
        ("model: !!python/object/apply:os.system [ls]\n", "home.yaml:1:8: model: ", ["os.system"]),
        ("model: !!int x\n", "home.yaml:1:8: model: ", ["'x'", "'int'"]),
        ("model: !!int ''\n", "home.yaml:1:8: model: ", ["''", "'int'"]),
        ("model: demo\n---\nmodel: demo\n", "home.yaml:2:1: ", ["single document"]),
    ],
)
def test_a_mistake_is_refused_at_its_place_with_what_was_expected(text: str, begins: str, says: list[str]) -> None:
    message = refusal(text)
    assert message.startswith(begins)
    assert [words for words in says if words not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(("n_workers", "n_nodes"), [(2, 3), (4, 5), (5, 6), (6, 7), (8, 9)])
def test_a_node_count_that_is_no_power_of_two_is_refused(n_workers: int, n_nodes: int) -> None:
    workers = "".join(f"  - name: w{i}\n" for i in range(n_workers))
    assert f"workers: 1 root + {n_workers} workers are {n_nodes} nodes; use 0, 1, 3, 7, ..." in refusal(
        f"model: demo\nworkers:\n{workers}"
    )


@pytest.mark.parametrize("n_workers", [0, 1, 3, 7, 15])
def test_a_node_count_that_is_a_power_of_two_is_accepted(n_workers: int) -> None:
    workers = ", ".join(f"{{name: w{i}}}" for i in range(n_workers))
    assert parse_cluster(f"model: demo\nworkers: [{workers}]").n_nodes == n_workers + 1


def test_a_number_of_workers_is_that_many_on_this_computer() -> None:
    workers = parse_cluster("model: demo\nworkers: 3\n").workers
    assert workers == [WorkerConfig(name=name) for name in ("worker1", "worker2", "worker3")]
    assert parse_cluster("model: demo\nworkers: 0\n").workers == []


def test_two_workers_of_one_name_are_refused_at_the_second() -> None:
    message = refusal("model: demo\nworkers:\n  - name: a\n  - name: b\n  - name: a\n")
    assert message.startswith("home.yaml:5:11: workers[2].name: 2 workers are named a")


def test_a_worker_named_root_is_refused() -> None:
    assert "workers[0].name: a worker cannot be named root" in refusal("model: demo\nworkers: [{name: root}]")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "'::'", "fe80::1", "pi.local", "127.evil.example"])
def test_a_root_on_a_network_must_be_asked_for_by_name(host: str) -> None:
    text = f"model: demo\nroot: {{host: {host}}}\n"
    message = refusal(text)
    assert "root.host" in message
    assert "neither encrypted nor authenticated" in message
    assert "open_bus: true" in message
    assert parse_cluster(text + "open_bus: true\n").root.host == host.strip("'")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "'::1'"])
def test_a_root_on_loopback_needs_no_open_bus(host: str) -> None:
    assert parse_cluster(f"model: demo\nroot: {{host: {host}}}").open_bus is False


@pytest.mark.parametrize("open_bus", ["false", "true"])
def test_a_worker_elsewhere_is_refused_while_the_root_listens_on_loopback(open_bus: str) -> None:
    message = refusal(f"model: demo\nopen_bus: {open_bus}\nworkers: [{{name: a, host: 10.0.0.7}}]\n")
    assert message.startswith("home.yaml:3:27: workers[0].host: ")
    assert "could never reach a root on 127.0.0.1" in message


def test_an_ipv6_host_is_put_in_brackets_in_its_endpoint() -> None:
    assert RootConfig(host="::1").endpoint(5570) == "tcp://[::1]:5570"
    assert RootConfig().endpoint(5570) == "tcp://127.0.0.1:5570"


# --- hostile text -----------------------------------------------------------------------------------------------------


def test_aliases_are_refused_so_that_no_alias_bomb_goes_off() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    assert refusal(bomb).startswith("home.yaml:2:8: aliases (*name) are not used here")


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_bottomless_nesting_is_refused(opening: str) -> None:
    assert "levels deep" in refusal(opening * 100_000)


@pytest.mark.parametrize("number", ["9" * 5000, "1" + ":1" * 500_000, "1" + ":1" * 3000 + ".5", "0x" + "f" * 5000])
def test_a_number_beyond_all_bounds_is_refused(number: str) -> None:
    message = refusal(f"model: demo\nmax_seq_len: !!int {number}\n")
    assert "max_seq_len" in message
    assert len(message) < 200


@pytest.mark.parametrize("text", ["workers:\n" + "- a\n" * 250_000, "a:\n" * 300_000, "model: [" + "a," * 500_000])
def test_more_values_than_any_cluster_has_are_refused_before_they_are_read(text: str) -> None:
    assert "more than 10000 keys and values" in refusal(text)


_LINES = st.sampled_from(
    ["model: demo", "name: x", "root:", "  host: 127.0.0.1", "  ports: {steps: 1}", "workers:", "  - name: a", "\t",
     "- a", "workers: [{name: a}]", "limits: {join_s: 1e3}", "? [a]", "<<: {model: demo}", "&a", "*a", "!!int x"]
)  # fmt: skip


@given(st.text() | st.lists(_LINES | st.text(alphabet="\t :-[]{}&*!|>%'\"#?,.\na0", max_size=12)).map("\n".join))
@example("%YAML 9.9\n---\nmodel: demo")
@example("model: !!timestamp x")
@example("model: !!binary x")
@example("=: 1")
@example('model: "\\ud800"')
@example("model: !!bool x")
def test_any_text_gives_a_cluster_or_a_config_error_that_begins_with_the_file(text: str) -> None:
    try:
        outcome: Cluster | str = parse_cluster(text, "home.yaml")
    except ConfigError as error:
        outcome = str(error)
    assert isinstance(outcome, Cluster) or outcome.startswith("home.yaml:")


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
