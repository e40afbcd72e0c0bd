"""The links between root and workers, measured by real messages over real sockets."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest
import zmq
from command_line import Cli
from integration.front_alone import SOON_S, front_alone, next_message, raw
from integration.nodes import (
    Context,
    Start,
    a_root,
    a_worker,
    assert_are,
    count,
    form,
    inproc,
    logits,
    pieces_of,
    plan_of,
    pump_until,
    tcp,
)
from integration.raw_root import RawRoot
from integration.stranger import Stranger
from tiny import tiny_tokenizer_data
from tokenizers_of import of_t

from dllama_zmq.bus.codec import encode
from dllama_zmq.bus.messages import MAX_PROBE_BYTES
from dllama_zmq.bus.text_messages import Links, LinksRequest, LinkStatus, Model, ModelRequest
from dllama_zmq.formats import ModelFile
from dllama_zmq.quants import F32
from dllama_zmq.root.link_speeds import LinkSpeeds
from dllama_zmq.root.root import Root


def measured(root: Root) -> list[LinkStatus]:
    """Of all links of a root, as its process measures them: one at a time."""
    speeds = LinkSpeeds(root)
    speeds.begin()
    while speeds.unfinished:
        found = speeds.next()
    assert found is not None
    return found


def test_a_link_has_a_round_trip_a_speed_in_each_direction_and_a_clock(
    context: Context, model: ModelFile, start: Start
) -> None:
    places = tcp()
    with a_root(context, model, places) as root:
        start(a_worker(context, places))
        form(root)
        (link,) = measured(root)
        assert (link.name, link.note) == ("worker1", "")
        assert link.round_trip_s is not None
        assert 1e-6 < link.round_trip_s < 1
        for rate in (link.to_bytes_per_s, link.from_bytes_per_s):
            assert rate is not None
            assert rate > 1e6
        assert link.clock_s is not None
        assert abs(link.clock_s) < 1
        assert root.link is not None
        idle = {tally.kind for tally in root.link.meter.tallies() if tally.phase == "idle"}
        assert {"probe", "probed"} <= idle


class FastForward(Stranger):
    """Its clock is an hour ahead."""

    def send(self, kind: str, *fields: Any, arrays: tuple[bytes, ...] = ()) -> None:
        if kind == "probed":
            fields = (fields[0], fields[1] + 3_600_000_000, *fields[2:])
        super().send(kind, *fields, arrays=arrays)


def test_a_worker_of_another_program_is_measured_and_its_clock_is_reported(
    context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    with a_root(context, model, places) as root:
        start(FastForward(context, places.replies[0]))
        form(root)
        (link,) = measured(root)
        assert link.clock_s == pytest.approx(3600, abs=10)
        assert None not in (link.round_trip_s, link.to_bytes_per_s, link.from_bytes_per_s)


class Mute(Stranger):
    """Does not answer probes, or only the first few."""

    n_answers = 0

    def _answer_probe(self, number: int, answer_bytes: int, heads: list[Any]) -> None:
        if self.n_answers > 0:
            self.n_answers -= 1
            super()._answer_probe(number, answer_bytes, heads)


@pytest.mark.parametrize("n_answers", [0, 12])
def test_a_worker_that_does_not_answer_costs_three_seconds_and_the_cluster_continues(
    context: Context, model: ModelFile, expected: F32, start: Start, n_answers: int
) -> None:
    places = inproc()
    with a_root(context, model, places, n_workers=3) as root:
        mute = Mute(context, places.replies[0])
        mute.n_answers = n_answers
        for worker in (mute, a_worker(context, places), a_worker(context, places)):
            start(worker)
        form(root)
        links = {link.note: link for link in measured(root)}
        silent = links.pop("it did not answer everything within 3 s")
        assert (silent.round_trip_s is not None) == (n_answers > 0)
        assert silent.from_bytes_per_s is None
        assert set(links) == {""}
        assert_are(logits(root), expected, "numpy")


def test_who_is_absent_is_not_measured(context: Context, model: ModelFile, start: Start) -> None:
    places = tcp()
    with a_root(context, model, places, n_workers=3) as root:
        start(a_worker(context, places))
        pump_until(root, lambda: count(root, "loaded") == 1)
        first, *others = measured(root)
        assert first.note == ""
        assert [link.note for link in others] == ["it is absent"] * 2


def test_a_probe_for_more_than_16_MiB_is_not_answered_and_the_worker_lives(
    context: Context, model: ModelFile, start: Start
) -> None:
    places = inproc()
    with RawRoot(context, places.replies[0], places.steps[0]) as root:
        start(a_worker(context, places))
        worker = root.take_in(plan_of(model.spec), pieces_of(model))
        for number, n_bytes in ((1, MAX_PROBE_BYTES + 1), (2, 1 << 31), (3, 5)):
            root.say(worker, "probe", number, n_bytes, [])
        _, (number, _, heads), arrays = root.hear("probed")
        assert (number, heads, arrays) == (3, [["u8", 1, 5]], [bytes(5)])
        root.say(worker, "bye", False, "done")


# --- clients who ask --------------------------------------------------------------------------------------------------


def test_all_who_ask_meanwhile_are_answered_by_one_measuring(context: Context) -> None:
    with (
        front_alone(context, of_t(tiny_tokenizer_data())) as engine,
        raw(context, engine.address) as first,
        raw(context, engine.address) as second,
    ):
        for client, number in ((first, 1), (second, 2), (second, 3)):
            assert client.poll(round(SOON_S * 1000), zmq.POLLOUT)
            client.send_multipart(encode(LinksRequest(number)))
            client.send_multipart(encode(ModelRequest(9)))
            assert isinstance(next_message(client), Model)  # so the front has heard what came before
        assert engine.heard() == [LinksRequest(1)]
        links = [LinkStatus("worker1", 1e-3, 1e8, 2e8, 0.5), LinkStatus("worker2", note="it is absent")]
        engine.tell(Links(0, 7, links))
        assert next_message(first) == Links(1, 7, links)
        assert next_message(second) == Links(3, 7, links)


def test_a_client_of_a_running_cluster_measures_its_links_while_an_answer_is_generated(running: Cli) -> None:
    with running.client() as client, running.client() as other:
        answer = other.generate("once upon a time", max_tokens=200)
        next(answer)
        found = client.links()
        answer.close()
    assert [link.name for link in found.links] == [node.name for node in running.status().nodes[1:]]
    assert statistics.fmean([link.round_trip_s or np.inf for link in found.links]) < 10
    assert all(node.version for node in running.status().nodes)
