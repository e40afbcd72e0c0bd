"""Weights travel once: what a worker has from an earlier start, or in a file of its own, is not sent again."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from integration.nodes import SPEC, Context, Start, a_root, a_worker, form, inproc, logits, tcp
from tiny import write_tiny_model

from dllama_zmq.bus.links import Endpoints
from dllama_zmq.formats import ModelFile, open_m
from dllama_zmq.quants import F32
from dllama_zmq.root.root import Root
from dllama_zmq.sharding import Plan


def sent_bytes(root: Root) -> int:
    """Payload of the weights that the root has sent, to all workers together."""
    assert root.link is not None
    return sum(tally.payload_bytes for tally in root.link.meter.tallies() if tally.kind == "weights")


def all_bytes(root: Root) -> int:
    return sum(root.plan.weight_bytes(node) for node in range(1, root.plan.n_nodes))


def a_start(
    context: Context,
    model: ModelFile,
    start: Start,
    /,
    n_workers: int = 1,
    expected: F32 | None = None,
    hashes: Path | None = None,
    **of_workers: Any,
) -> int:
    """Bring a cluster up, compare its logits with those of one node, bring it down. Returns `sent_bytes`."""
    places = inproc()
    workers = [start(a_worker(context, places, **of_workers)) for _ in range(n_workers)]
    with a_root(context, model, places, n_workers=n_workers, hashes=hashes) as root:
        form(root)
        if expected is not None:
            np.testing.assert_array_equal(logits(root), expected)
        sent = sent_bytes(root)
    for worker in workers:
        worker.join()
    return sent


@pytest.mark.parametrize("n_workers", [1, 3])
def test_the_second_start_sends_no_weights(
    n_workers: int, context: Context, model: ModelFile, expected: F32, start: Start, tmp_path: Path
) -> None:
    first = a_start(context, model, start, n_workers, expected, cache=tmp_path)
    assert first > 0
    assert a_start(context, model, start, n_workers, expected, cache=tmp_path) == 0


def test_only_what_was_damaged_is_sent_again(
    context: Context, model: ModelFile, expected: F32, start: Start, tmp_path: Path
) -> None:
    a_start(context, model, start, cache=tmp_path)
    altered, cut, gone, linked = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_size)[-4:]
    sizes = [path.stat().st_size for path in (altered, cut, gone, linked)]
    altered.write_bytes(bytes(sizes[0]))
    with cut.open("r+b") as file:
        file.truncate(sizes[1] - 1)
    gone.unlink()
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    assert a_start(context, model, start, expected=expected, cache=tmp_path) == sum(sizes)
    assert a_start(context, model, start, expected=expected, cache=tmp_path) == 0


def test_only_the_change_of_a_changed_model_is_sent(context: Context, start: Start, tmp_path: Path) -> None:
    folders = {"cache": tmp_path / "slices", "hashes": tmp_path / "hashes"}
    path = tmp_path / "tiny.m"
    with write_tiny_model(path, SPEC) as model:
        a_start(context, model, start, **folders)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # in the head of node 1
    path.write_bytes(data)
    with open_m(path) as model:
        plan = Plan.make(model.spec, 2)
        assert a_start(context, model, start, **folders) == plan.region_bytes(plan.shard_tensors()[-1], 1)


def test_two_clusters_share_a_cache_and_one_model_is_no_other(
    context: Context, model: ModelFile, expected: F32, start: Start, tmp_path: Path
) -> None:
    cache = tmp_path / "slices"
    with write_tiny_model(tmp_path / "other.m", SPEC, seed=99) as other:
        first = [a_start(context, of, start, cache=cache) for of in (model, other)]
        assert min(first) > 0
        threads = []
        for of, right in ((model, expected), (other, None)):
            places = inproc()
            threads.append((start(a_worker(context, places, cache=cache)), of, places, right))
        for worker, of, places, right in threads:
            with a_root(context, of, places) as root:
                form(root)
                if right is not None:
                    np.testing.assert_array_equal(logits(root), right)
                assert sent_bytes(root) == 0
            worker.join()


def test_a_cache_without_room_for_all_keeps_what_it_can(
    context: Context, model: ModelFile, expected: F32, start: Start, tmp_path: Path
) -> None:
    first = a_start(context, model, start, cache=tmp_path, cache_bytes=100_000)
    second = a_start(context, model, start, expected=expected, cache=tmp_path, cache_bytes=100_000)
    assert 0 < first - second <= 100_000
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 100_000


def test_a_worker_with_the_model_itself_is_sent_nothing(
    context: Context, model: ModelFile, expected: F32, start: Start, tmp_path: Path
) -> None:
    copy = shutil.copy(model.path, tmp_path / "copy.m")
    assert a_start(context, model, start, 3, expected, model=copy, cache=tmp_path / "slices") == 0
    assert not list((tmp_path / "slices").iterdir())


@pytest.mark.parametrize("wrong", ["other weights", "another end", "no model", "nothing"])
def test_a_worker_with_a_wrong_model_gets_what_it_lacks(
    wrong: str,
    context: Context,
    model: ModelFile,
    expected: F32,
    start: Start,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "wrong.m"
    if wrong == "other weights":
        write_tiny_model(path, SPEC, seed=99).close()
    elif wrong == "another end":
        data = bytearray(model.path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif wrong == "no model":
        path.write_bytes(bytes(1000))
    sent = a_start(context, model, start, 1, expected, model=path)
    assert sent > 0
    assert caplog.text.count("the weights come over the bus") == 1


# --- real processes and connections -----------------------------------------------------------------------------------


class CutOff:
    """Passes TCP connections on to a port, and breaks them all once a number of bytes has come back from there."""

    def __init__(self, to_port: int, most_bytes: int) -> None:
        self._to_port, self._left = to_port, most_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.cut = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to_port))
                self._sockets += [near, far]
                for source, sink, counted in ((near, far, False), (far, near, True)):
                    thread = threading.Thread(target=self._pass_on, args=(source, sink, counted), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(4096):
                if counted and not self.cut.is_set():
                    self._left -= len(data)
                    if self._left < 0:
                        self.cut.set()
                        self._break()
                        return
                sink.sendall(data)
        self._shut(source, sink)

    def _break(self) -> None:
        self._shut(*self._sockets)

    def _shut(self, *sockets: socket.socket) -> None:
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._shut(self._listener)
        self._listener.close()
        self._break()
        for thread in self._threads:
            thread.join(5.0)
        for each in self._sockets:
            each.close()


class Through(Endpoints, frozen=True):
    """Workers are sent to `through` for their replies."""

    through: str = ""

    def for_worker(self, same_host: bool) -> tuple[str, str]:
        return Endpoints.for_worker(self, same_host)[0], self.through


def test_a_transfer_that_breaks_at_half_resumes_there(
    context: Context, model: ModelFile, expected: F32, start: Start, tmp_path: Path
) -> None:
    at = tcp()
    whole = Plan.make(model.spec, 2).weight_bytes(1)
    between = CutOff(int(at.replies[0].rpartition(":")[2]), whole // 2)
    try:
        places = Through(at.steps, at.replies, through=f"tcp://127.0.0.1:{between.port}")
        with a_root(context, model, places) as root:
            start(a_worker(context, Endpoints(at.steps, [places.through]), watch=True, cache=tmp_path))
            form(root)
            np.testing.assert_array_equal(logits(root), expected)
            assert between.cut.is_set()
            (row,) = root.progress()
            assert row.sent_bytes + row.kept_bytes == whole
            assert whole // 4 < row.kept_bytes  # what was still on its way has been lost
    finally:
        between.close()


@contextmanager
def a_process(*words: str, limit: str = "") -> Iterator[subprocess.Popen[str]]:
    """`dllama-zmq worker WORDS`, ended after the block."""
    command = [sys.executable, "-m", "dllama_zmq", "worker", *words, "--threads", "1"]
    if limit:
        command = ["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_a_worker_whose_disk_is_full_serves_and_says_once_that_nothing_is_kept(
    context: Context, model: ModelFile, expected: F32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(tmp_path))
    places = tcp()
    with a_process("--root", places.replies[0], limit="-f 1") as process:
        with a_root(context, model, places) as root:
            form(root)
            np.testing.assert_array_equal(logits(root), expected)
            assert sent_bytes(root) == all_bytes(root)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(20) == 0
    assert len(re.findall(r"no more weights are kept in .*/slices for the next start: File too large", said)) == 1


def test_a_worker_that_starts_anew_reads_what_it_kept(
    context: Context, model: ModelFile, expected: F32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(tmp_path))
    sent = []
    for _ in range(2):
        places = tcp()
        with a_process("--root", places.replies[0]), a_root(context, model, places) as root:
            form(root)
            np.testing.assert_array_equal(logits(root), expected)
            sent.append(sent_bytes(root))
    assert sent == [all_bytes(root), 0]
    assert {path.name for path in tmp_path.iterdir()} == {"slices"}
