"""A cluster is the one of its file: whichever name it has, from wherever it is asked for, another's is never used."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from command_line import HOME_VARIABLE, Cli, finish, json_object, until, write_small_model

import dllama_zmq
from dllama_zmq.cluster import parse_cluster
from dllama_zmq.errors import ClusterError
from dllama_zmq.launch.lifecycle import Listener, bring_up, for_one_call, take_down
from dllama_zmq.launch.paths import ClusterPaths
from dllama_zmq.launch.registry import address_elsewhere, running_clusters, without_file

PROMPT = "once upon a time"


@pytest.fixture
def other(cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The same user in another folder, whose file has the same name and another model."""
    folder = tmp_path_factory.mktemp("other")
    cli_there = Cli(cli.home, folder, write_small_model(folder / "other.m"))
    cli_there.write()
    return cli_there


@pytest.fixture
def here(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """What this process starts is in the home of `cli` too."""
    monkeypatch.setenv(HOME_VARIABLE, str(cli.home))
    return cli


# --- another file's cluster ---------------------------------------------------------------------------------------


def test_a_cluster_of_another_file_is_refused_with_both_names_and_the_cure(cli: Cli, other: Cli) -> None:
    cli.up(1)
    pid, cures = cli.status().pid, list[str]()
    for words in (["logs"], ["generate", "hi"], ["status"], ["status", "--json"], ["down"], ["up"]):
        sentence = other.run_here(*words).error()
        assert str(cli.folder / "cluster.yaml") in sentence
        assert str(other.folder / "cluster.yaml") in sentence
        cures.append(f"dllama-zmq {'logs' if words == ['logs'] else 'down'} --cluster {cli.folder / 'cluster.yaml'}")
        assert cures[-1] in sentence
        assert cli.status().pid == pid
    for cure in (cures[0], cures[-1]):
        assert other.run(*cure.split()[1:]).code == 0
    cli.down()


def test_the_same_file_is_found_by_any_path_and_from_any_folder(cli: Cli, tmp_path: Path) -> None:
    cli.up(1)
    link = tmp_path / "elsewhere" / "link.yaml"
    link.parent.mkdir()
    link.symlink_to(cli.folder / "cluster.yaml")
    (tmp_path / "folder").symlink_to(cli.folder)
    for path in (link, tmp_path / "folder" / "cluster.yaml", tmp_path / "elsewhere" / ".." / "cluster.yaml"):
        assert json_object(cli.run("status", "--json", "--cluster", str(path)).out)["pid"] == cli.status().pid
    assert "is down" in cli.run("down", str(link)).err


def test_a_file_whose_name_is_changed_still_has_its_cluster(cli: Cli) -> None:
    cli.up(1)
    path = cli.folder / "cluster.yaml"
    path.write_text(path.read_text().replace("name: small", "name: renamed"))
    assert cli.run("status").out.startswith("small: ready")
    assert "'small' is running already" in cli.run_here("up").error()
    cli.down()
    assert cli.processes() == []


def test_two_folders_without_names_are_two_clusters(cli: Cli, other: Cli) -> None:
    for one in (cli, other):
        (one.folder / "cluster.yaml").write_text(f"model: {one.model}\nworkers: [{{name: w}}]\napi: off\n")
        assert one.run("up").code == 0
    models = [json_object(one.run("status", "--json").out)["model"] for one in (cli, other)]
    assert models == [str(cli.model), str(other.model)]
    listening = [c for p in cli.processes() for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert listening == []  # whoever else is on this computer must not reach them
    for one in (cli, other):
        one.down()


# --- another model ------------------------------------------------------------------------------------------------


def test_a_running_cluster_is_not_asked_for_another_model(cli: Cli, other: Cli) -> None:
    cli.up(1)
    assert "nowhere.gguf cannot be opened" in cli.run_here("generate", PROMPT, "-m", "nowhere.gguf").error()
    for words in (["-m", str(other.model)], ["--weights", "q80"]):
        sentence = cli.run_here("generate", PROMPT, *words).error()
        assert f"small runs {cli.model}, and the command asks for " in sentence
        assert words[1] in sentence
        assert f"dllama-zmq down --cluster {cli.folder / 'cluster.yaml'}), or leave -m, --weights and" in sentence
    same = cli.run("generate", PROMPT, "-n", "3", "--temp", "0", "-m", str(cli.model))
    assert (same.code, same.err) == (0, "")
    cli.down()


def test_a_file_that_says_another_model_by_now_is_not_answered_by_the_old_one(cli: Cli, other: Cli) -> None:
    cli.up(1)
    path = cli.folder / "cluster.yaml"
    path.write_text(path.read_text().replace(str(cli.model), str(other.model)))
    sentence = cli.run_here("generate", PROMPT).error()
    assert f"small runs {cli.model}, and cluster.yaml asks for {other.model}: take it down first" in sentence
    cli.down()


# --- logs ---------------------------------------------------------------------------------------------------------


def test_logs_are_those_of_the_last_start_of_this_file(cli: Cli, other: Cli) -> None:
    cli.up(1)
    cli.down()
    first = cli.run("logs").out
    assert f"model={cli.model}" in first
    assert f"belong to {cli.folder / 'cluster.yaml'}" in other.run_here("logs").error()

    assert other.run("up").code == 0
    assert f"model={cli.model}" not in other.run("logs", "-n", "1000").out
    assert f"belong to {other.folder / 'cluster.yaml'}" in cli.run_here("logs").error()
    other.down()

    cli.up(1)
    cli.down()
    again = cli.run("logs", "-n", "1000").out
    assert again.count("up name=small") == 1
    assert (cli.log_folder / "root.log.1").exists()


# --- without a file -----------------------------------------------------------------------------------------------


def test_a_folder_without_a_file_has_a_cluster_that_every_command_finds(here: Cli) -> None:
    cli = here
    file = without_file(str(cli.model), 2, cli.folder)
    status = bring_up(file, Listener())
    assert (status.name, len(status.nodes)) == (file.cluster.name, 2)
    assert not (cli.folder / "cluster.yaml").exists()
    assert cli.run("status").out.startswith(f"{status.name}: ready")
    assert cli.generate("-n", "5").out.startswith(PROMPT)
    assert "another file" not in cli.run("logs", "worker1").out
    with dllama_zmq.connect(cli.folder / "cluster.yaml") as client:
        assert client.status().pid == status.pid
    assert take_down(file)
    assert "there is no such file" in cli.run_here("generate", PROMPT).error()
    assert "up name=" in cli.run("logs").out  # what was, can be read


def test_clusters_of_one_call_live_side_by_side_and_leave_nothing(here: Cli) -> None:
    cli = here
    cli.up(1)
    with ExitStack() as stack:
        calls = []
        for n_nodes in (1, 2):
            file = without_file(str(cli.model), n_nodes, cli.folder, private=True)
            calls.append(stack.enter_context(for_one_call(file, Listener(), lambda: None)))
        everything = running_clusters()
        assert sorted(one.name for one in everything) == sorted(["small", *(call.name for call in calls)])
        assert {one.model for one in everything} == {str(cli.model)}
        assert all(psutil.pid_exists(one.pid) and abs(one.since - time.time()) < 60 for one in everything)
        assert cli.run("status").out.startswith("small: ready")  # those of calls are nobody else's
        with dllama_zmq.Client(calls[1].clients) as client:
            assert client.text(PROMPT, max_tokens=3)
    assert [one.name for one in running_clusters()] == ["small"]
    cli.down()
    assert [path.name for base in ("run", "logs") for path in (cli.home / base).iterdir()] == ["small", "small"]


def test_a_call_whose_model_is_not_there_leaves_nothing(here: Cli) -> None:
    file = without_file(str(here.folder / "none.m"), folder=here.folder, private=True)
    with (
        pytest.raises(dllama_zmq.errors.ConfigError, match=r"there is no .*none\.m"),
        for_one_call(file, Listener(), lambda: None),
    ):
        pass
    assert running_clusters() == []
    assert [path for base in ("run", "logs") for path in (here.home / base).iterdir()] == []


def test_folders_of_killed_calls_are_removed_after_a_day(here: Cli) -> None:
    left = [ClusterPaths.of(name) for name in ("call-1-old", "call-2-new", "other")]
    for places in left:
        places.lock_file.touch()
    for places in (left[0], left[2]):
        os.utime(places.run, (time.time() - 90000,) * 2)
    with for_one_call(without_file(str(here.model), folder=here.folder, private=True), Listener(), lambda: None):
        pass
    assert [places.run.exists() for places in left] == [places.logs.exists() for places in left] == [False, True, True]


# --- at once ------------------------------------------------------------------------------------------------------


def test_one_of_several_ups_at_once_brings_it_up_and_the_others_say_that_it_runs(cli: Cli) -> None:
    cli.write(1)
    with ExitStack() as stack:
        start = time.monotonic()
        processes = [stack.enter_context(cli.started("up")) for _ in range(3)]
        results = [finish(process, 60, start) for process in processes]
    assert sorted(result.code for result in results) == [0, 1, 1], results
    for result in results:
        if result.code:
            assert result.error() == "cluster 'small' is running already; `dllama-zmq down` stops it"
    cli.down()


@pytest.mark.few(1)
@pytest.mark.parametrize("attempt", range(3))
def test_several_calls_at_once_with_no_cluster_running_are_all_answered(cli: Cli, attempt: int) -> None:
    cli.write(1)
    with ExitStack() as stack:
        start = time.monotonic()
        words = ["generate", PROMPT, "--temp", "0", "-n"]
        processes = [stack.enter_context(cli.started(*words, str(20 * n))) for n in (1, 2, 3)]
        results = [finish(process, 60, start) for process in processes]
    assert [result.code for result in results] == [0, 0, 0], results
    assert not any("error" in result.err for result in results)
    until(lambda: not cli.processes(), 20, "the cluster to end after its last user")


# --- ports --------------------------------------------------------------------------------------------------------


def test_a_port_that_a_cluster_has_is_named_with_its_cluster(cli: Cli, other: Cli) -> None:
    cli.up(2)
    path = other.write(2, name="other")
    for key, port in cli.ports.items():
        path.write_text(path.read_text().replace(f"{key}: {other.ports[key]}", f"{key}: {port}"))
        other.ports[key] = port
    sentence = other.run_here("up").error()
    assert sentence.startswith(
        f"tcp://127.0.0.1:{cli.ports['replies']} is in use by the cluster 'small' of {cli.folder}"
    )
    assert f"(dllama-zmq down --cluster {cli.folder / 'cluster.yaml'})" in sentence
    cli.down()


def test_connect_finds_a_cluster_by_its_file_and_says_where_it_is_not_running(here: Cli) -> None:
    cli = here
    cli.write(1)
    path = cli.folder / "cluster.yaml"
    with pytest.raises(ClusterError, match=f"'small' is not running; `dllama-zmq up --cluster {path}` starts it"):
        dllama_zmq.connect(path)
    cli.run("up")
    with dllama_zmq.connect(str(path)) as client:
        assert client.status().name == "small"
    shutil.copy(path, cli.folder / "copy.yaml")
    with pytest.raises(ClusterError, match="is another file"):
        dllama_zmq.connect(cli.folder / "copy.yaml")
    assert take_down(dllama_zmq.cluster.load_cluster(path))
    assert not take_down(dllama_zmq.cluster.load_cluster(path))


def test_a_root_on_another_computer_is_where_clients_are_sent() -> None:
    def address(host: str) -> str | None:
        return address_elsewhere(parse_cluster(f"model: demo\nsecurity: none\nroot: {{host: '{host}'}}"))

    assert address("192.0.2.7") == "tcp://192.0.2.7:5572"
    assert address("2001:db8::7") == "tcp://[2001:db8::7]:5572"
    assert [address(host) for host in ("0.0.0.0", "::", "127.0.0.1", "localhost", "no-such-host.invalid")] == [None] * 5


def test_a_record_of_a_dead_cluster_says_only_that_it_was_killed(here: Cli) -> None:
    cli = here
    cli.up(1)
    cli.down()
    places = ClusterPaths.of("small")
    left = json.loads(places.started_file.read_text())
    places.cluster_file.write_text(json.dumps({**left, "clients": "ipc:///nowhere"}))
    assert running_clusters() == []
    assert "'small' ended unexpectedly (`dllama-zmq logs root` shows its log)" in cli.run_here("status").error()
    assert "was not running" in cli.run("down").err
    assert not places.cluster_file.exists()


@pytest.mark.parametrize("command", ["up", "restart"])
def test_a_cluster_whose_root_is_another_computer_is_brought_up_there(cli: Cli, command: str) -> None:
    text = "model: demo\nsecurity: none\nroot: {host: 192.0.2.7}\nworkers:\n  - {name: pi2, host: 192.0.2.8}\n"
    (cli.folder / "cluster.yaml").write_text(text)
    assert cli.run_here(command).error() == (
        f"cluster.yaml: root.host: 192.0.2.7 is not an address of this computer; run `dllama-zmq {command}` on the "
        "computer that has it"
    )
