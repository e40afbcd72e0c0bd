"""The threads of a node: every item of every job is done once, by whoever has time, before the job ends."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from dllama_zmq.kernels.simd import pool as module
from dllama_zmq.kernels.simd.library import library
from dllama_zmq.kernels.simd.pool import Pool

Kernel = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


@pytest.fixture(params=[1, 2, 3, 5])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    """More threads than cores, some of them: then they are put aside at any moment."""
    made = Pool(library(), request.param, oversubscribed=True)
    yield made
    made.close()


@pytest.mark.parametrize(("n_items", "chunk"), [(1, 1), (2, 1), (3, 2), (7, 1), (64, 5), (100, 100), (101, 3)])
def test_every_item_is_done_once_before_the_job_ends(pool: Pool, n_items: int, chunk: int) -> None:
    done: list[tuple[int, int, int]] = []
    kernel = Kernel(lambda job, first, last: done.append((job, first, last)))
    address = ctypes.cast(kernel, ctypes.c_void_p).value or 0
    for job in range(300):
        pool.run(address, job, n_items, chunk)
        ranges, done[:] = sorted(done), []
        assert {of for of, _, _ in ranges} == {job}, "a chunk of another job"
        assert [item for _, first, last in ranges for item in range(first, last)] == list(range(n_items))


def test_a_thread_that_is_done_takes_shares_of_the_others() -> None:
    pool = Pool(library(), 3, oversubscribed=False)
    caller, released, by = threading.get_ident(), threading.Event(), []

    def work(job: int, first: int, last: int) -> None:
        by.append((first, threading.get_ident()))
        if len(by) == 12:  # all are taken: at most one by each of the two others, who hold it
            released.set()
        if threading.get_ident() != caller:
            assert released.wait(20), "nobody took what this thread holds up"

    kernel = Kernel(work)
    try:
        pool.run(ctypes.cast(kernel, ctypes.c_void_p).value or 0, 0, 12)
        released.set()
    finally:
        pool.close()
    assert sorted(first for first, _ in by) == list(range(12))
    assert sum(thread == caller for _, thread in by) >= 12 - 2


def test_a_thread_takes_the_chunks_of_its_share_one_after_another() -> None:
    pool = Pool(library(), 2, oversubscribed=False)
    both, by = threading.Barrier(2), {}

    def work(job: int, first: int, last: int) -> None:
        mine = by.setdefault(threading.get_ident(), [])
        mine.append(first)
        if len(mine) <= 4:  # neither runs ahead into the other's share
            both.wait(20)

    kernel = Kernel(work)
    try:
        pool.run(ctypes.cast(kernel, ctypes.c_void_p).value or 0, 0, 8)
    finally:
        pool.close()
    assert sorted(by.values()) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_thread_still_at_work_when_its_pool_is_closed_keeps_the_file_that_it_will_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_JOIN_S", 0.1)
    gc.collect()  # what earlier tests left must not be closed from here on: a new file may get its number
    before = event_files()
    pool = Pool(library(), 2, oversubscribed=False)
    (file,) = event_files() - before
    at_work, released = threading.Semaphore(0), threading.Event()

    def work(job: int, first: int, last: int) -> None:
        at_work.release()
        assert released.wait(20)

    kernel = Kernel(work)
    address = ctypes.cast(kernel, ctypes.c_void_p).value or 0
    caller = threading.Thread(target=pool.run, args=(address, 0, 2), daemon=True)
    try:
        caller.start()
        assert all(at_work.acquire(timeout=20) for _ in range(2)), "one thread of the two has no work"
        pool.close()
        assert file in event_files()
    finally:
        released.set()
        caller.join(20)
    assert not caller.is_alive()


def event_files() -> set[str]:
    """The numbers of this process's eventfds."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the folder itself was open
            if "eventfd" in os.readlink(f"/proc/self/fd/{name}"):
                found.add(name)
    return found
