"""The sentence that each mistake in a cluster.yaml ends in; any text ends in a cluster or in one such sentence."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dllama_zmq.cluster import Cluster, parse_cluster
from dllama_zmq.errors import ConfigError
from dllama_zmq.node_config import RootConfig, WorkerConfig
from dllama_zmq.trust import KeyPair


def refusal(text: str) -> str:
    """The one sentence in which `text` is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_cluster(text, "home.yaml")
    return str(caught.value)


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
        ("model: demo\nsecurity: no\n", "home.yaml:2:11: security: ", ["curve or none"]),
        ("model: demo\nopen_bus: true\n", "home.yaml:2:1: open_bus: ", ["encrypted now", "write `security: none`"]),
        ("model: demo\nworkers: [{name: a, key: abc}]", "home.yaml:2:26: workers[0].key: ", ["40 characters", "'abc'"]),
        ("model: demo\nclients: [{name: a}]", "home.yaml:2:11: clients[0].key: ", ["is missing", "40 characters"]),
        ("model: demo\nclients: 3", "home.yaml:2:10: clients: ", ["- {name: laptop, key:", "'3'"]),
        ("model: demo\nworkers: [{name: a, ssh: -oProxyCommand=id}]\n", "home.yaml:2:26: workers[0].ssh: ", ["pi@192"]),
        ("model: demo\nworkers: [{name: a, ssh: 'pi@a;id'}]\n", "home.yaml:2:26: workers[0].ssh: ", ["pi@192"]),
        ("model: demo\nworkers: [{name: a, ssh: me@localhost}]\n", "home.yaml:2:26: workers[0].ssh: ", ["`ports:`"]),
        ("model: demo\nworkers: [{name: a, ssh: pi@pi2}]\n", "home.yaml:2:26: workers[0].ssh: ", ["could never"]),
        ("model: demo\nname: on\n", "home.yaml:2:7: name: ", ["true or false", "quotes"]),
        ("model: demo\nname: 2024-01-01\n", "home.yaml:2:7: name: ", ["timestamp", "quotes"]),
        ("model: demo\nname: ../etc\n", "home.yaml:2:7: name: ", ["letters, digits", "'../etc'"]),
        ("model: demo\nname: " + "a" * 33 + "\n", "home.yaml:2:7: name: ", ["32"]),
        ("model: demo\nsync: f8\n", "home.yaml:2:7: sync: ", ["f32, f16 or q80", "'f8'"]),
        ("model: demo\nweights: q5\n", "home.yaml:2:10: weights: ", ["q40, q80, f16 or f32", "'q5'"]),
        ("model: demo\nkernels: no\n", "home.yaml:2:10: kernels: ", ["auto, simd or numpy"]),
        ("model: demo\nmax_seq_len: 0\n", "home.yaml:2:14: max_seq_len: ", ["tokens", "'0'"]),
        ("model: demo\nkv_memory: 2\n", "home.yaml:2:12: kv_memory: ", ["auto, or a size such as 512MB", "'2'"]),
        ("model: demo\nweight_cache: 0\n", "home.yaml:2:15: weight_cache: ", ["auto, none, or a size", "'0'"]),
        ("model: demo\nkv_memory: 2 gigs\n", "home.yaml:2:12: kv_memory: ", ["auto, or a size", "'2 gigs'"]),
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
def test_a_root_on_a_network_is_secured_unless_its_file_says_otherwise(host: str) -> None:
    text = f"model: demo\nroot: {{host: {host}}}\n"
    assert parse_cluster(text).secured
    assert parse_cluster(text).warning == ""
    is_open = parse_cluster(text + "security: none\n")
    assert not is_open.secured
    assert is_open.warning.startswith("security: none: everybody in the network can use and read this cluster")


@pytest.mark.parametrize("security", ["curve", "none"])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "localhost", "'::1'"])
def test_a_root_on_loopback_needs_no_keys(host: str, security: str) -> None:
    cluster = parse_cluster(f"model: demo\nsecurity: {security}\nroot: {{host: {host}}}")
    assert (cluster.secured, cluster.warning, cluster.tcp_ports) == (False, "", None)


@pytest.mark.parametrize("security", ["curve", "none"])
def test_a_worker_elsewhere_is_refused_while_the_root_listens_on_loopback(security: str) -> None:
    message = refusal(f"model: demo\nsecurity: {security}\nworkers: [{{name: a, host: 10.0.0.7}}]\n")
    assert message.startswith("home.yaml:3:27: workers[0].host: ")
    assert "could never reach a root on 127.0.0.1" in message


def test_two_clients_of_one_name_are_refused_at_the_second() -> None:
    keys = [f"{{name: a, key: '{KeyPair.new().public}'}}" for _ in range(2)]
    message = refusal(f"model: demo\nclients:\n  - {keys[0]}\n  - {keys[1]}\n")
    assert message.startswith("home.yaml:4:12: clients[1].name: 2 clients are named a")


def test_an_ipv6_host_is_put_in_brackets_in_its_endpoint() -> None:
    assert RootConfig(host="::1").endpoint(5570) == "tcp://[::1]:5570"
    assert RootConfig().endpoint(5570) == "tcp://127.0.0.1:5570"


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
    [
        "model: demo",
        "name: x",
        "root:",
        "  host: 127.0.0.1",
        "  ports: {steps: 1}",
        "workers:",
        "  - name: a",
        "\t",
        "- a",
        "workers: [{name: a}]",
        "limits: {join_s: 1e3}",
        "? [a]",
        "<<: {model: demo}",
        "&a",
        "*a",
        "!!int x",
    ]
)


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
