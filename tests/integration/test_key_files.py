"""Files of keys as other users, other processes and people leave them: each refused with the command that mends it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dllama_zmq.errors import TrustError
from dllama_zmq.trust import Entry, KeyPair, Role, own_key
from dllama_zmq.trust.files import HOME_VARIABLE
from dllama_zmq.trust.keys import own_key_path
from dllama_zmq.trust.known import known_roots_path
from dllama_zmq.trust.learned import keep, learned_path, read_learned

N_EACH = 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


def mend(error: TrustError) -> None:
    """Run the command at the end of the sentence."""
    command = str(error).rpartition(": ")[2].replace("sudo ", "")
    subprocess.run(command, shell=True, check=True)


def test_the_own_key_is_made_once_for_this_user_alone(home: Path) -> None:
    with pytest.raises(TrustError, match="dllama-zmq keygen"):
        own_key(create=False)
    keys = own_key()
    assert own_key() == own_key(create=False) == keys
    assert stat.S_IMODE(own_key_path().stat().st_mode) == 0o600
    assert stat.S_IMODE(own_key_path().parent.stat().st_mode) == 0o700
    assert keys.secret in own_key_path().read_text()
    assert keys.secret not in repr(keys)


def widen(key: Path) -> None:
    key.chmod(0o644)


def link(key: Path) -> None:
    key.rename(key.with_name("elsewhere"))
    key.symlink_to(key.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("spoil", "words"), [(widen, ["other users can read this secret", "0644"]), (link, ["is a symbolic link"])]
)
def test_a_key_that_others_could_read_or_replace_is_refused_until_the_command_mends_it(
    spoil: Callable[[Path], None], words: list[str]
) -> None:
    keys = own_key()
    spoil(own_key_path())
    with pytest.raises(TrustError) as refused:
        own_key()
    for word in [str(own_key_path()), *words]:
        assert word in str(refused.value)
    mend(refused.value)
    assert own_key() == keys
    assert stat.S_IMODE(own_key_path().lstat().st_mode) == 0o600


def folder(key: Path) -> None:
    key.mkdir()


def fifo(key: Path) -> None:
    os.mkfifo(key, 0o600)


def dangling(key: Path) -> None:
    key.symlink_to("nowhere")


@pytest.mark.parametrize("spoil", [folder, fifo, dangling])
def test_a_key_that_is_no_file_is_refused_at_once_and_after_the_command_there_is_a_new_key(
    spoil: Callable[[Path], None],
) -> None:
    own_key_path().parent.mkdir(parents=True, mode=0o700)
    spoil(own_key_path())
    with pytest.raises(TrustError, match=str(own_key_path())) as refused:
        own_key()
    mend(refused.value)
    assert own_key() == own_key()


def test_a_key_of_another_user_is_refused_by_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    own_key()
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(TrustError, match=f"belongs to user {owner}, not to you .{owner + 1}.; take it: sudo chown"):
        own_key()


@pytest.mark.parametrize("text", ["", "short\n", "é" * 40, "#" * 40])
def test_a_key_file_with_something_else_in_it_is_refused(text: str) -> None:
    own_key()
    own_key_path().write_text(text)
    with pytest.raises(TrustError, match=f"{own_key_path()}: not a secret key"):
        own_key()


def test_a_key_file_of_random_bytes_or_without_end_is_refused() -> None:
    own_key()
    for data in (b"\xff" * 40, b"a" * (2 << 20)):
        own_key_path().write_bytes(data)
        with pytest.raises(TrustError, match="move it away"):
            own_key()


def test_a_list_of_keys_may_be_read_by_others_and_not_written() -> None:
    keep("small", Entry(Role.worker, "pi2", KeyPair.new().public))
    path = learned_path("small")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert len(read_learned("small")) == 1
    path.chmod(0o666)
    with pytest.raises(TrustError, match="other users can write this file") as refused:
        read_learned("small")
    mend(refused.value)
    assert len(read_learned("small")) == 1


def test_a_folder_in_which_others_can_write_is_refused_until_the_command_mends_it() -> None:
    keys = own_key()
    own_key_path().parent.chmod(0o777)
    own_key_path().unlink()
    with pytest.raises(TrustError, match="other users can write in this folder") as refused:
        own_key()
    mend(refused.value)
    assert own_key() != keys


def test_where_nothing_can_be_written_the_sentence_names_the_folder(tmp_path: Path, home: Path) -> None:
    home.write_text("a file where the folder should be")
    with pytest.raises(TrustError, match=f"set {HOME_VARIABLE} to a folder of your own"):
        own_key()


def both(code: str) -> None:
    """Run two processes at the same time, each with its number as N."""
    running = [
        subprocess.Popen([sys.executable, "-c", f"N = {number}\n{code}"], stderr=subprocess.PIPE) for number in (1, 2)
    ]
    for process in running:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()


def test_two_processes_that_write_one_list_lose_no_key() -> None:
    both(
        "from dllama_zmq.trust import Entry, KeyPair, Role\n"
        "from dllama_zmq.trust.learned import keep, read_learned\n"
        f"for i in range({N_EACH}):\n"
        "    keep('small', Entry(Role.client, f'c{N}-{i}', KeyPair.new().public))\n"
        "    assert len(read_learned('small')) > i\n"
    )
    assert {entry.name for entry in read_learned("small")} == {f"c{n}-{i}" for n in (1, 2) for i in range(N_EACH)}
    assert {path.name for path in learned_path("small").parent.iterdir()} == {"small.keys"}  # and no draft is left


def test_two_processes_that_write_known_roots_lose_none() -> None:
    both(
        "from dllama_zmq.trust import KeyPair, remember\n"
        f"for i in range({N_EACH}):\n"
        "    remember([f'tcp://host{N}:{1000 + i}'], KeyPair.new().public)\n"
    )
    assert len(known_roots_path().read_text().splitlines()) == 2 * N_EACH


def test_two_processes_that_want_the_first_key_get_the_same(tmp_path: Path, home: Path) -> None:
    for i in range(5):
        shutil.rmtree(home, ignore_errors=True)
        out = tmp_path / f"out{i}"
        both(
            "from pathlib import Path\n"
            "from dllama_zmq.trust import own_key\n"
            f"with Path({str(out)!r}).open('a') as file:\n"
            "    file.write(own_key().public + '\\n')\n"
        )
        assert len(set(out.read_text().splitlines())) == 1


def test_a_killed_writer_blocks_nobody() -> None:
    ready = (
        "from dllama_zmq.trust.files import locked\n"
        "from dllama_zmq.trust.learned import learned_path\n"
        "with locked(learned_path('small')):\n"
        "    print('held', flush=True)\n"
        "    import time; time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", ready], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
        holder.wait()
    keep("small", Entry(Role.worker, "pi2", KeyPair.new().public))
    assert len(read_learned("small")) == 1
