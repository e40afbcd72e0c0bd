"""Where a cluster keeps its things, and who else may reach them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import short_home

from dllama_zmq.errors import ClusterError, UsageError
from dllama_zmq.launch import paths
from dllama_zmq.launch.paths import MAX_SOCKET_PATH_BYTES, ClusterPaths


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a path that is short enough for sockets, whatever the user is called."""
    with short_home() as folder:
        yield folder


@pytest.fixture(autouse=True)
def _plain_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DLLAMA_ZMQ_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that DLLAMA_ZMQ_HOME names."""
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(tmp_path / "h"))
    return tmp_path / "h"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_dllama_zmq_home_holds_run_and_logs(home: Path) -> None:
    places = ClusterPaths.of("demo")
    assert (places.run, places.logs) == (home / "run" / "demo", home / "logs" / "demo")
    assert places.cluster_file == home / "run" / "demo" / "cluster.json"
    assert places.log("worker1") == home / "logs" / "demo" / "worker1.log"


def test_the_xdg_folders_are_used_where_they_are_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = tmp_path / "r"
    runtime.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "s"))
    places = ClusterPaths.of("demo")
    assert (places.run, places.logs) == (runtime / "dllama-zmq" / "demo", tmp_path / "s" / "dllama-zmq" / "demo")


def test_without_xdg_folders_sockets_lie_in_tmp_and_logs_at_home(tmp_path: Path) -> None:
    assert paths.folders() == (
        Path(f"/tmp/dllama-zmq-{os.getuid()}"),
        tmp_path / "home" / ".local" / "state" / "dllama-zmq",
    )


@pytest.mark.parametrize("runtime", ["/no/such/folder", "relative/folder", "/proc/1/no"])
def test_a_runtime_folder_that_cannot_be_used_is_passed_over(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    assert paths.folders()[0] == Path(f"/tmp/dllama-zmq-{os.getuid()}")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_runtime_folder_of_another_user_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    os.chown(tmp_path, 65534, -1)
    assert paths.folders()[0] == Path(f"/tmp/dllama-zmq-{os.getuid()}")


def test_nobody_else_can_enter_the_run_folder(home: Path) -> None:
    places = ClusterPaths.of("demo")
    assert (mode(home / "run"), mode(places.run)) == (0o700, 0o700)


def test_a_run_folder_left_open_to_others_is_closed(home: Path) -> None:
    (home / "run" / "demo").mkdir(parents=True)
    (home / "run" / "demo").chmod(0o777)
    assert mode(ClusterPaths.of("demo").run) == 0o700


def test_asking_twice_gives_the_same_places(home: Path) -> None:
    assert ClusterPaths.of("demo") == ClusterPaths.of("demo")


def test_a_link_planted_at_the_run_folder_is_refused(home: Path, tmp_path: Path) -> None:
    (home / "run").mkdir(parents=True)
    (home / "run" / "demo").symlink_to(tmp_path)
    with pytest.raises(ClusterError, match=r"run/demo: is a symbolic link; .*DLLAMA_ZMQ_HOME"):
        ClusterPaths.of("demo")


def test_a_file_at_the_run_folder_is_refused(home: Path) -> None:
    home.mkdir()
    (home / "run").touch()
    with pytest.raises(ClusterError, match="run: is not a folder"):
        ClusterPaths.of("demo")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_run_folder_of_somebody_else_is_refused(home: Path) -> None:
    (home / "run").mkdir(parents=True)
    os.chown(home / "run", 65534, -1)
    with pytest.raises(ClusterError, match=r"belongs to user 65534, not to you \(0\)"):
        ClusterPaths.of("demo")


def test_a_folder_that_cannot_be_made_is_one_sentence_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(tmp_path / "file" / "below"))
    with pytest.raises(ClusterError, match=r"cannot be made .*DLLAMA_ZMQ_HOME"):
        ClusterPaths.of("demo")


def test_the_three_sockets_are_ipc_endpoints_in_the_run_folder(home: Path) -> None:
    places = ClusterPaths.of("demo")
    endpoints = [places.ipc("steps"), places.ipc("replies"), places.ipc("clients")]
    assert [Path(endpoint.removeprefix("ipc://")).parent for endpoint in endpoints] == [places.run] * 3
    assert len(set(endpoints)) == 3


def test_a_path_of_too_many_bytes_for_a_socket_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    long = Path("/tmp") / ("é" * 40)  # 67 characters with the socket's name, 107 bytes
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(long))
    with pytest.raises(ClusterError, match=r"too long for a socket; at most 100; set DLLAMA_ZMQ_HOME"):
        ClusterPaths.of("demo")
    assert not long.exists()


def test_a_path_of_exactly_the_limit_is_accepted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = len(os.fsencode(home)) + len("/run/demo/replies.sock")
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(home / ("x" * (MAX_SOCKET_PATH_BYTES - rest - 1))))
    assert len(os.fsencode(ClusterPaths.of("demo").ipc("replies").removeprefix("ipc://"))) == MAX_SOCKET_PATH_BYTES


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "-rf", "a b", "a\n", "x" * 33])
def test_a_name_that_could_lead_elsewhere_is_no_cluster_name(name: str, home: Path) -> None:
    with pytest.raises(UsageError, match="is no valid cluster name"):
        ClusterPaths.of(name)
    assert not home.exists()
