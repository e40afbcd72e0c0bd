"""Workers join, and join again: after their root's restart, before its start, under a name that is taken or unknown."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from contexts import a_context
from integration.nodes import Context, Start, Thread, a_root, a_worker, form, inproc, logits, pump_until, tcp
from integration.stranger import Stranger

from dllama_zmq.errors import ClusterError
from dllama_zmq.formats import ModelFile
from dllama_zmq.quants import F32
from dllama_zmq.worker import Worker, WorkerSettings


@pytest.mark.parametrize("says_bye", [True, False], ids=["it says bye", "it is gone at once"])
def test_a_worker_survives_its_roots_restart(
    says_bye: bool, context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = tcp()
    start(a_worker(context, places, watch=True))
    for last in (False, True):
        with a_context() as roots_context, a_root(roots_context, model, places, stay=not last) as root:
            form(root)
            np.testing.assert_array_equal(logits(root), expected)
            if not (says_bye or last):
                root.roster.lose(root.roster.members[0], "so that it hears nothing")


def test_every_worker_hears_the_last_word_of_a_root_that_leaves(context: Context, model: ModelFile) -> None:
    for _ in range(8):  # one of two was cut off before it had read the bye
        places = tcp()
        worker = a_worker(context, places, watch=True)
        thread = Thread(worker.run, worker.stop)
        with a_context() as roots_context, a_root(roots_context, model, places) as root:
            form(root)
        thread.join()


def test_a_worker_that_starts_first_waits_for_its_root(
    context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = tcp()
    waits = threading.Event()
    settings = WorkerSettings(places.replies[0], spin_s=0.0)
    start(Worker(context, settings, on_state=lambda state: waits.set()))
    assert waits.wait(20)
    with a_root(context, model, places) as root:
        form(root)
        np.testing.assert_array_equal(logits(root), expected)


def test_a_second_worker_of_a_name_is_refused_with_the_reason_until_the_first_is_gone(
    context: Context, model: ModelFile, expected: F32, start: Start
) -> None:
    places = inproc()
    first, second = (Stranger(context, places.replies[0], "worker1") for _ in range(2))
    with a_root(context, model, places) as root:
        start(first)
        form(root)
        start(second)
        pump_until(root, lambda: second.refused != "")
        assert second.refused == "worker1 is already here (process 1)"
        np.testing.assert_array_equal(logits(root), expected)
        first.stop()
        pump_until(root, lambda: root.roster.members[0].identity == second.identity)
        form(root)
        np.testing.assert_array_equal(logits(root), expected)


def test_a_worker_of_a_foreign_name_ends_and_says_which_names_there_are(
    context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    thread = start(a_worker(context, places, "impostor"))
    thread.expected = True
    with a_root(context, model, places) as root:
        pump_until(root, lambda: thread.error != [])
    [error] = thread.error
    assert isinstance(error, ClusterError)
    assert "no worker of this cluster is called 'impostor'; its workers are worker1" in str(error)
