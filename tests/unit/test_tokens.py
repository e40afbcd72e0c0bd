"""The line that admits one new key: whole or refused, used once, for ten minutes, at one cluster."""

from __future__ import annotations

import base64
import hashlib
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllama_zmq.cluster import ClusterFile, load_cluster
from dllama_zmq.errors import DllamaError, TokenError, TrustError
from dllama_zmq.trust import Entry, Invitation, KeyPair, Ring, Role, Token
from dllama_zmq.trust.files import HOME_VARIABLE
from dllama_zmq.trust.tokens import clock_now, issue, read_tokens, tokens_path

ROOT, ONE_TIME = KeyPair.of_secret("9nr!:Z%ujOO.NnVB/^.a!1Ga9Yx3h.sn!QLBnm]^"), KeyPair.new()
ADDRESSES = (("tcp://192.168.1.10:5570",), ("tcp://192.168.1.10:5572",))
INVITATION = Invitation(Role.worker, "pi2", *ADDRESSES, ROOT.public, ONE_TIME)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> ClusterFile:
    path = tmp_path / "home.yaml"
    path.write_text("model: demo\nworkers: [{name: pi2}, {name: pi3}, {name: pi4}]\n")
    return load_cluster(path)


def token(keys: KeyPair, name: str = "pi2", seconds: float = 60.0, role: Role = Role.worker) -> Token:
    return Token.lasting(role, name, keys.public, seconds)


def test_a_token_reads_as_it_was_written_even_if_a_terminal_broke_its_line() -> None:
    text = INVITATION.text
    assert Invitation.read(text) == INVITATION
    assert Invitation.read(f"  {text[:40]}\r\n   {text[40:]}\n") == INVITATION


def test_a_token_is_one_word_that_no_shell_changes() -> None:
    assert INVITATION.text.replace("-", "").replace("_", "").isalnum()
    assert len(INVITATION.text) < 256
    assert INVITATION.text.startswith("dz")  # a - would be a flag


def test_the_root_keeps_no_secret_of_a_token() -> None:
    keys = issue("small", Role.worker, "pi2")
    assert keys.public in tokens_path("small").read_text()
    assert keys.secret not in tokens_path("small").read_text()
    assert ONE_TIME.secret not in repr(INVITATION)


@given(at=st.integers(0, 10_000), letter=st.sampled_from("ABCDwxyz0189-_"))
def test_an_altered_token_is_refused_as_one_that_is_not_whole(at: int, letter: str) -> None:
    text = INVITATION.text
    at %= len(text)
    altered = text[:at] + letter + text[at + 1 :]
    if altered == text:
        return
    with pytest.raises(TokenError, match="paste the whole line"):
        Invitation.read(altered)


@given(st.integers(0, 200))
def test_a_token_that_was_cut_is_refused(length: int) -> None:
    text = INVITATION.text
    with pytest.raises(TokenError, match="paste the whole line"):
        Invitation.read(text[: length % len(text)])


@given(st.text(max_size=400) | st.binary(max_size=400).map(lambda data: data.hex()))
def test_garbage_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(TokenError, match="not a whole token"):
        Invitation.read(text)


def test_a_line_of_a_megabyte_is_refused_at_once() -> None:
    with pytest.raises(TokenError):
        Invitation.read("A" * 1_000_000)


@pytest.mark.parametrize("data", [[2, "another", "version"], [1], [], {"a": 1}, 7])
def test_a_token_of_another_form_is_refused(data: object) -> None:
    packed = msgspec.msgpack.encode(data)
    text = "dz" + base64.urlsafe_b64encode(hashlib.sha256(packed).digest()[:4] + packed).decode().rstrip("=")
    with pytest.raises(TokenError, match="version" if isinstance(data, list) and data[:1] == [2] else "whole"):
        Invitation.read(text)


def test_a_token_admits_one_key_under_its_name_and_is_used_up(file: ClusterFile) -> None:
    keys, new = issue(file.cluster.name, Role.worker, "pi2"), KeyPair.new()
    ring = Ring.of(file)
    found = ring.token(keys.public)
    assert found is not None
    assert not ring.admits(new.public, Role.worker)
    assert ring.use(found, new.public) == Entry(Role.worker, "pi2", new.public)
    assert ring.admits(new.public, Role.worker) == {"pi2"}
    assert not ring.admits(new.public, Role.client)
    assert ring.token(keys.public) is None
    with pytest.raises(TokenError, match="has been used"):
        ring.use(found, KeyPair.new().public)
    assert Ring.of(file).admits(new.public, Role.worker) == {"pi2"}  # a root that starts later knows it too


def test_a_token_of_a_ring_without_files_is_used_up_too() -> None:
    keys, new = KeyPair.new(), KeyPair.new()
    one = token(keys)
    ring = Ring(tokens=[one])
    ring.use(one, new.public)
    with pytest.raises(TokenError, match="has been used"):
        ring.use(one, KeyPair.new().public)
    assert ring.admits(new.public, Role.worker) == {"pi2"}


def test_a_token_that_two_roots_have_read_admits_one_key(file: ClusterFile) -> None:
    keys = issue(file.cluster.name, Role.worker, "pi2")
    first, second = Ring.of(file), Ring.of(file)
    found = second.token(keys.public)
    assert found is not None
    first.use(found, KeyPair.new().public)
    with pytest.raises(TokenError, match="has been used"):
        second.use(found, KeyPair.new().public)


def test_an_expired_token_admits_nobody(file: ClusterFile) -> None:
    keys = issue(file.cluster.name, Role.worker, "pi2", lifetime_s=-1.0)
    (found,) = read_tokens(file.cluster.name)
    ring = Ring.of(file)
    assert ring.token(keys.public) is None
    with pytest.raises(TokenError, match="has expired"):
        ring.use(found, KeyPair.new().public)


def test_a_token_that_expires_while_the_root_runs_admits_nobody() -> None:
    keys = KeyPair.new()
    ring = Ring(tokens=[token(keys, seconds=-0.001)])
    assert ring.token(keys.public) is None


def test_a_token_lives_as_long_whatever_the_clock_is_set_to(monkeypatch: pytest.MonkeyPatch) -> None:
    keys, real = KeyPair.new(), time.time
    ring = Ring(tokens=[token(keys)])
    for days in (1, -1):
        monkeypatch.setattr(time, "time", lambda days=days: real() + days * 86400)
        (found,) = [ring.token(keys.public)]
        assert found is not None
        assert 0 < found.left_s <= 60.0


def test_a_token_from_before_the_computer_was_started_again_has_expired() -> None:
    keys = issue("small", Role.worker, "pi2")
    path = tokens_path("small")
    first = path.read_text().split()
    path.write_text(" ".join([*first[:4], "9f4d4a47-6b0e-4a3e-9d4b-2f1e1c7f0a11"]) + "\n")
    (found,) = read_tokens("small")
    assert found.public == keys.public
    assert found.expired


def test_a_token_of_another_cluster_is_unknown(file: ClusterFile) -> None:
    keys = issue("another", Role.worker, "pi2")
    assert Ring.of(file).token(keys.public) is None


def test_a_token_does_not_change_a_key_that_the_file_lists(file: ClusterFile) -> None:
    listed = KeyPair.new().public
    file.path.write_text(f'model: demo\nworkers: [{{name: pi2, key: "{listed}"}}]\n')
    keys = issue("home", Role.worker, "pi2")
    ring = Ring.of(load_cluster(file.path))
    found = ring.token(keys.public)
    assert found is not None
    with pytest.raises(TokenError, match="pi2 has its key in the cluster's file"):
        ring.use(found, KeyPair.new().public)
    assert ring.admits(listed, Role.worker) == {"pi2"}


def test_a_new_token_for_a_name_replaces_its_key(file: ClusterFile) -> None:
    before, after = KeyPair.new().public, KeyPair.new().public
    ring = Ring.of(file)
    for public in (before, after):
        keys = issue(file.cluster.name, Role.worker, "pi2")
        ring.reload()
        found = ring.token(keys.public)
        assert found is not None
        ring.use(found, public)
    assert ring.admits(after, Role.worker) == {"pi2"}
    assert not ring.admits(before, Role.worker)


def test_a_damaged_file_of_tokens_is_refused_with_its_line() -> None:
    issue("small", Role.worker, "pi2")
    path = tokens_path("small")
    for line in ("worker pi3", f"king pi3 {ROOT.public} 1 -", f"worker pi3 {ROOT.public} nan -", "worker a b 5 -"):
        path.write_text(path.read_text().splitlines()[0] + f"\n{line}\n")
        with pytest.raises(TrustError, match=f"{path}:2: is no token; remove this line"):
            read_tokens("small")


def test_tokens_are_bounded() -> None:
    clock, now = clock_now()
    tokens = "".join(f"worker - {KeyPair.new().public} {now + 500:.0f} {clock}\n" for _ in range(256))
    issue("small", Role.worker, "")
    tokens_path("small").write_text(tokens)
    with pytest.raises(DllamaError, match="256 unused tokens"):
        issue("small", Role.worker, "")
