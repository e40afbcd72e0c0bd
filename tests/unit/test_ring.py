"""Who may connect: keys bound to names, read again while a root runs; and the roots that are known here."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dllama_zmq.cluster import ClusterFile, load_cluster
from dllama_zmq.errors import TrustError
from dllama_zmq.trust import Entry, KeyPair, Ring, Role, check_public, find, remember
from dllama_zmq.trust.files import HOME_VARIABLE
from dllama_zmq.trust.known import known_roots_path
from dllama_zmq.trust.learned import forget, keep, learned_path, read_learned

A, B, C = (KeyPair.new().public for _ in range(3))
WORKERS = ("pi2", "pi3", "pi4")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home.yaml"


def write(path: Path, pi2: str = "", laptop: str = "") -> ClusterFile:
    workers = "".join(f"  - {{name: {name}{f', key: {pi2!r}' if pi2 and name == 'pi2' else ''}}}\n" for name in WORKERS)
    clients = f"clients:\n  - {{name: laptop, key: {laptop!r}}}\n" if laptop else ""
    draft = path.with_name("draft")  # a new file, as editors make: in one tick of the kernel's clock times are equal
    draft.write_text(f"model: demo\nworkers:\n{workers}{clients}")
    draft.replace(path)
    return load_cluster(path)


def worker(name: str, public: str) -> Entry:
    return Entry(Role.worker, name, public)


def test_a_key_may_use_its_own_name_and_no_other() -> None:
    ring = Ring([worker("pi2", A), worker("pi3", B)], workers=WORKERS)
    assert ring.admits(A, Role.worker) == {"pi2"}
    assert ring.admits(C, Role.worker) == frozenset()
    assert ring.admits(A, Role.client) == frozenset()


def test_a_computer_with_one_key_may_have_several_workers() -> None:
    assert Ring([worker("pi2", A), worker("pi3", A)]).admits(A, Role.worker) == {"pi2", "pi3"}


def test_a_key_without_a_name_may_have_every_place_that_is_no_other_keys() -> None:
    ring = Ring([worker("pi2", A), worker("", B)], workers=WORKERS)
    assert ring.admits(B, Role.worker) == {"", "pi3", "pi4"}


def test_keys_of_the_file_and_learned_keys_count_and_the_file_decides_a_name(path: Path) -> None:
    file = write(path, pi2=A, laptop=C)
    keep("home", worker("pi2", B))
    keep("home", worker("pi3", B))
    ring = Ring.of(file)
    assert ring.admits(A, Role.worker) == {"pi2"}
    assert ring.admits(B, Role.worker) == {"pi3"}
    assert ring.admits(C, Role.client) == {"laptop"}


def test_a_key_that_is_removed_is_gone_at_the_next_look(path: Path) -> None:
    file = write(path, laptop=C)
    keep("home", worker("pi3", B))
    ring = Ring.of(file)
    assert not ring.reload()
    assert forget("home", "pi3") == [worker("pi3", B)]
    assert ring.reload()
    assert not ring.admits(B, Role.worker)
    assert not ring.reload()
    write(path)
    assert ring.reload()
    assert not ring.admits(C, Role.client)


def test_a_key_that_is_added_is_there_at_the_next_look(path: Path) -> None:
    ring = Ring.of(write(path))
    keep("home", worker("pi3", B))
    assert not ring.reload()
    assert ring.admits(B, Role.worker) == {"pi3"}
    write(path, pi2=A, laptop=C)
    assert not ring.reload()
    assert (ring.admits(A, Role.worker), ring.admits(C, Role.client)) == ({"pi2"}, {"laptop"})


def test_a_key_that_is_replaced_in_the_file_is_a_removal(path: Path) -> None:
    ring = Ring.of(write(path, pi2=A))
    write(path, pi2=B)
    assert ring.reload()
    assert not ring.admits(A, Role.worker)
    assert ring.admits(B, Role.worker) == {"pi2"}


def test_a_place_that_another_key_gets_is_taken_from_a_key_without_a_name(path: Path) -> None:
    file = write(path)
    keep("home", worker("", A))
    ring = Ring.of(file)
    assert "pi2" in ring.admits(A, Role.worker)
    keep("home", worker("pi2", B))
    assert ring.reload()
    assert "pi2" not in ring.admits(A, Role.worker)


@pytest.mark.parametrize("text", ["model: demo\nworkers: [\n", "nonsense", ""])
def test_a_file_in_the_middle_of_an_edit_leaves_the_keys_as_they_were(
    path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    ring = Ring.of(write(path, pi2=A))
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert not ring.reload()
        assert not ring.reload()
    assert ring.admits(A, Role.worker) == {"pi2"}
    assert caplog.text.count("the keys stay as they were") == 1
    write(path, pi2=B)
    assert ring.reload()


def test_a_file_that_is_gone_or_another_clusters_leaves_its_keys_as_they_were_read_last(path: Path) -> None:
    ring = Ring.of(write(path))
    write(path, pi2=A)
    ring.reload()
    path.write_text("name: other\nmodel: demo\n")
    assert not ring.reload()
    path.unlink()
    assert not ring.reload()
    assert ring.admits(A, Role.worker) == {"pi2"}


def test_a_damaged_file_of_keys_is_refused_with_its_line_and_changes_nothing_while_a_root_runs(path: Path) -> None:
    file = write(path)
    keep("home", worker("pi3", B))
    ring = Ring.of(file)
    learned_path("home").write_text(f"worker pi3 {B}\n\n# a comment\nworker pi4 too short\n")
    with pytest.raises(TrustError, match=f"{learned_path('home')}:4: is no `ROLE NAME KEY`; remove this line"):
        read_learned("home")
    assert not ring.reload()
    assert ring.admits(B, Role.worker) == {"pi3"}


@pytest.mark.parametrize("text", ["", "a" * 39, "a" * 41, "#" * 40, "~" * 40, "é" * 40, "a" * 35 + "\n" + "aaaa"])
def test_a_text_that_is_no_key_is_no_public_key(text: str) -> None:
    with pytest.raises(TrustError, match="is no public key"):
        check_public(text)


def test_a_root_is_found_at_each_of_its_addresses() -> None:
    remember(["tcp://192.168.1.10:5570", "tcp://PI1:5570"], A, "pi2")
    remember(["tcp://192.168.1.10:5572"], A)
    remember(["tcp://[FD00:0:0::2]:5570"], A, "pi2")
    for address in ("tcp://192.168.1.10:5570", "tcp://pi1:5570", "tcp://[fd00::2]:5570"):
        found = find(address)
        assert found is not None
        assert (found.public, found.name) == (A, "pi2")
    assert find("tcp://192.168.1.11:5570") is None
    assert find("tcp://192.168.1.10:5571") is None


def test_a_root_with_another_key_is_refused_with_the_line_to_remove() -> None:
    remember(["tcp://192.168.1.9:5570"], C)
    remember(["tcp://192.168.1.10:5570"], A, "pi2")
    before = known_roots_path().read_text()
    with pytest.raises(TrustError) as refused:
        remember(["tcp://192.168.1.11:5570", "tcp://192.168.1.10:5570"], B, "pi2")
    assert f"{known_roots_path()}:2" in str(refused.value)
    assert "remove that line" in str(refused.value)
    assert known_roots_path().read_text() == before
    lines = before.splitlines(keepends=True)
    known_roots_path().write_text("".join(lines[:1] + lines[2:]))
    remember(["tcp://192.168.1.10:5570"], B, "pi2")
    found = find("tcp://192.168.1.10:5570")
    assert found is not None
    assert found.public == B


def test_joining_again_keeps_one_line_of_a_root_and_all_others_and_comments() -> None:
    remember(["tcp://a:5570", "tcp://b:5570"], A, "pi2")
    remember(["tcp://c:5570"], B)
    known_roots_path().write_text("# mine\n" + known_roots_path().read_text())
    remember(["tcp://a:5570"], A, "pi3")
    assert known_roots_path().read_text().splitlines() == [
        "# mine",
        f"tcp://c:5570 {B}",
        f"tcp://a:5570,tcp://b:5570 {A} pi3",
    ]


def test_a_damaged_line_of_known_roots_is_refused_by_its_number() -> None:
    remember(["tcp://a:5570"], A)
    known_roots_path().write_text(known_roots_path().read_text() + "tcp://b:5570 nonsense\n")
    with pytest.raises(TrustError, match=f"{known_roots_path()}:2: is no `ADDRESS KEY \\[NAME\\]`; remove this line"):
        find("tcp://a:5570")
