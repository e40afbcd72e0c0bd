"""How workers come in: what the root answers to those that ask, and what it says of those that cannot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq
from command_line import until
from contexts import a_context
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.bus import sockets
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.bus.messages import (
    TO_WORKER,
    Bye,
    Credit,
    Fault,
    Join,
    Loaded,
    Message,
    Need,
    Offer,
    Ping,
    Plan,
    Preparing,
    Refuse,
    Weights,
    Welcome,
)
from dllama_zmq.bus.peers import PeerGone
from dllama_zmq.bus.roster import State
from dllama_zmq.errors import WorkerLost
from dllama_zmq.kernels import KV_PAGE
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sharding import DEFAULT_SEQ_LEN, node_memory


class Door:
    """A root whose workers' places (one: worker1) are open to anybody, and those who knock."""

    def __init__(self, folder: Path, cleanup: ExitStack, n_workers: int = 1, check_memory: bool = True) -> None:
        self._context = cleanup.enter_context(a_context())
        model = cleanup.enter_context(write_tiny_model(folder / "tiny.m", tiny_spec(seq_len=2 * DEFAULT_SEQ_LEN)))
        names = [f"worker{i + 1}" for i in range(n_workers)]
        settings = RootSettings(names=names, spin_s=0.0, check_memory=check_memory)
        endpoints = Endpoints(["inproc://steps"], ["inproc://replies"])
        self.model = model
        self.root = Root(self._context, model, settings, endpoints)
        cleanup.callback(self.root.close, "done")
        self._cleanup = cleanup

    def stranger(self, identity: bytes) -> zmq.Socket[bytes]:
        """A raw socket where a worker's would be."""
        socket = sockets.connect(self._context, zmq.DEALER, "inproc://replies", identity)
        self._cleanup.callback(socket.close)
        return socket

    def ask(self, socket: zmq.Socket[bytes], message: Message) -> list[Message]:
        """Everything the root answers but its pings."""
        socket.send_multipart(encode(message))
        self.root.serve_bus(time.monotonic() + 0.05)
        answers = []
        while (frames := sockets.receive_now(socket)) is not None:
            answers.append(decode(frames, TO_WORKER)[0])
        return [answer for answer in answers if isinstance(answer, Welcome | Plan | Refuse | Bye | Offer)]


def a_join(host: str = "", pid: int = 1, host_name: str = "pi3", free_bytes: int | None = None) -> Join:
    return Join("", host, pid, "0", host_name, 1, free_bytes)


def offered(door: Door, worker: zmq.Socket[bytes]) -> list[str]:
    """The tensors whose slices a worker is offered, once all of them are hashed."""
    n_slices, until = len(door.root.plan.shard_tensors()), time.monotonic() + 20
    names: list[str] = []
    while len(names) < n_slices:
        assert time.monotonic() < until
        for answer in door.ask(worker, Credit(0)):
            assert isinstance(answer, Offer)
            names += [name for name, _ in answer.slices]
    return names


def need_all(door: Door, worker: zmq.Socket[bytes]) -> None:
    door.ask(worker, Need([(name, 0) for name in offered(door, worker)]))


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    with ExitStack() as cleanup:
        yield Door(tmp_path, cleanup)


def test_a_worker_is_welcomed_with_a_plan_of_bounded_context(door: Door) -> None:
    welcome, plan = door.ask(door.stranger(b"a"), a_join(host="elsewhere"))
    assert isinstance(welcome, Welcome)
    assert welcome.name == "worker1"
    assert isinstance(plan, Plan)
    of_one = DEFAULT_SEQ_LEN // KV_PAGE  # not the model's 8192: nobody asked for that much memory
    assert of_one <= plan.pages <= RootSettings().max_sequences * of_one


def test_a_second_worker_hears_that_all_places_are_taken(door: Door) -> None:
    door.ask(door.stranger(b"a"), a_join())
    (refusal,) = door.ask(door.stranger(b"b"), a_join(pid=2))
    assert refusal == Refuse("all places of this cluster are taken: worker1", retry=True)


def test_the_reason_why_a_worker_cannot_load_is_shown_where_people_look(door: Door) -> None:
    worker = door.stranger(b"a")
    door.ask(worker, a_join())
    door.ask(worker, Fault(0, 0, "not enough memory"))
    with pytest.raises(WorkerLost, match="worker1 could not load: not enough memory"):
        door.root.wait_ready(time.monotonic())


def test_that_reason_is_shown_where_the_worker_has_gone_before_it_is_read(tmp_path: Path) -> None:
    """A root that is left out for a while on a busy computer finds the word and the broken connection at once."""
    with ExitStack() as cleanup:
        door = Door(tmp_path, cleanup, n_workers=3)
        identities = [b"a", b"b", b"c"]
        workers = [door.stranger(identity) for identity in identities]
        for pid, worker in enumerate(workers):
            door.ask(worker, a_join(pid=pid + 1))
        for worker in workers:
            worker.send_multipart(encode(Fault(0, 0, "not enough memory")))
            worker.close(linger=1000)
        link = door.root.link
        assert link is not None

        def gone(identity: bytes) -> bool:
            try:
                link.send(identity, "", Ping(0, 0, 0))
            except PeerGone:
                return True
            return False

        ping_is_due = time.monotonic() + 0.2
        until(lambda: all(map(gone, identities)) and time.monotonic() > ping_is_due, 20, "the connections' end")
        door.root.serve_bus(time.monotonic())
        whole = "could not load: not enough memory"
        assert door.root.missing_sentence() == f"worker1 {whole}; worker2 {whole}; worker3 {whole}"


def test_a_worker_with_too_little_memory_gets_no_place_and_both_sides_say_why(door: Door) -> None:
    needed = door.root.memory(1).model
    (refusal,) = door.ask(door.stranger(b"a"), a_join(free_bytes=needed - 1))
    assert isinstance(refusal, Refuse)
    assert not refusal.retry
    assert "pi3 has " in refusal.reason
    assert "--force" in refusal.reason
    with pytest.raises(WorkerLost, match=r"worker1 is not there: pi3 has .* of memory free, and this node needs"):
        door.root.wait_ready(time.monotonic())
    assert isinstance(door.ask(door.stranger(b"b"), a_join(free_bytes=needed))[0], Welcome)


def test_two_workers_of_one_computer_do_not_get_the_same_memory(tmp_path: Path) -> None:
    with ExitStack() as cleanup:
        door = Door(tmp_path, cleanup, n_workers=3)
        free_bytes = 2 * door.root.memory(1).model
        join = a_join(host="pi", free_bytes=free_bytes)
        assert isinstance(door.ask(door.stranger(b"a"), join)[0], Welcome)
        assert isinstance(door.ask(door.stranger(b"b"), join)[0], Welcome)
        assert isinstance(door.ask(door.stranger(b"c"), join)[0], Refuse)
        other = a_join(host="another", free_bytes=free_bytes)
        assert isinstance(door.ask(door.stranger(b"d"), other)[0], Welcome)


def pages_in_plan(door: Door, name: bytes, join: Join) -> int:
    """Pages in the plan that a worker gets."""
    (plan,) = (answer for answer in door.ask(door.stranger(name), join) if isinstance(answer, Plan))
    return plan.pages


def test_the_node_with_the_least_memory_decides_how_many_pages_there_are(tmp_path: Path) -> None:
    with ExitStack() as cleanup:
        door = Door(tmp_path, cleanup, n_workers=3)
        root = door.root
        all_pages = root.n_pages
        assert all_pages > 300
        alone = node_memory(root.plan, 1, 0)
        page_bytes = root.plan.kv_bytes(1, KV_PAGE)
        free_bytes = (alone.total + 300 * page_bytes) / 0.9 - alone.program  # its own program is running already
        assert pages_in_plan(door, b"a", a_join(host="large", free_bytes=1 << 50)) == all_pages
        assert root.n_pages == all_pages
        assert pages_in_plan(door, b"b", a_join(host="small", free_bytes=round(free_bytes))) == pytest.approx(
            300, abs=1
        )
        assert pages_in_plan(door, b"c", a_join(host="unknown")) == all_pages
        assert root.n_pages == pytest.approx(300, abs=1)


def test_workers_of_one_computer_share_its_memory_for_pages(tmp_path: Path) -> None:
    with ExitStack() as cleanup:
        door = Door(tmp_path, cleanup, n_workers=3)
        plan = door.root.plan
        alone = node_memory(plan, 1, 0)
        free_bytes = round((2 * alone.total + 600 * plan.kv_bytes(1, KV_PAGE)) / 0.9) - alone.program
        first = pages_in_plan(door, b"a", a_join(host="pi", free_bytes=free_bytes))
        assert pages_in_plan(door, b"b", a_join(host="pi", free_bytes=free_bytes - alone.program)) == pytest.approx(
            300, 1
        )
        assert first > 300


def test_a_forced_root_does_not_compare_memory(tmp_path: Path) -> None:
    with ExitStack() as cleanup:
        door = Door(tmp_path, cleanup, check_memory=False)
        assert isinstance(door.ask(door.stranger(b"a"), a_join(free_bytes=1))[0], Welcome)


def test_a_worker_that_claims_to_be_loaded_too_early_is_given_up_and_hears_why(door: Door) -> None:
    worker = door.stranger(b"a")
    door.ask(worker, a_join())
    (bye,) = door.ask(worker, Loaded(1))
    assert isinstance(bye, Bye)
    assert bye.rejoin  # it may join again
    with pytest.raises(WorkerLost, match="worker1 reports 1 bytes of weights"):
        door.root.wait_ready(time.monotonic())


def test_a_workers_preparation_is_shown_until_it_is_ready_and_its_seconds_are_its_own(door: Door) -> None:
    worker = door.stranger(b"a")
    door.ask(worker, a_join())
    door.ask(worker, Preparing("compiles kernels", 40, 0))
    (row,) = door.root.progress()
    assert (row.doing, row.percent) == ("compiles kernels", 40)
    need_all(door, worker)
    while row.sent_bytes < row.total_bytes:
        door.ask(worker, Credit(64))
        (row,) = door.root.progress()
    door.ask(worker, Loaded(row.total_bytes))
    (loaded,) = door.root.progress()
    assert (loaded.state, loaded.doing, loaded.percent) == (State.LOADED, "", 0)
    door.root.serve_bus(time.monotonic() + 0.1)
    assert door.root.progress()[0].seconds == loaded.seconds  # what follows is waiting for others
    begun = time.monotonic()
    door.ask(worker, a_join())
    door.ask(worker, Preparing("lays out its weights", 3_000_000, 0))
    (again,) = door.root.progress()
    assert again.percent == 100
    assert again.seconds <= time.monotonic() - begun


def test_who_only_waits_for_others_is_not_said_to_be_missing(tmp_path: Path) -> None:
    with ExitStack() as cleanup:
        door = Door(tmp_path, cleanup, n_workers=3)
        worker = door.stranger(b"a")
        door.ask(worker, a_join())
        need_all(door, worker)
        until = time.monotonic() + 20
        while (row := door.root.progress()[0]).sent_bytes < row.total_bytes:
            assert time.monotonic() < until
            door.ask(worker, Credit(64))
        door.ask(worker, Loaded(row.total_bytes))
        assert door.root.progress()[0].state is State.LOADED
        assert door.root.missing_sentence() == "worker2 has not joined yet; worker3 has not joined yet"


@pytest.mark.parametrize(
    ("needs", "says"),
    [
        ([("layers.0.attention.q", 0), ("layers.0.attention.q", 0)], "layers.0.attention.q, which was not offered, or"),
        ([("no such tensor", 0)], "no such tensor, which was not offered"),
        ([("embedding", 0)], "embedding, which was not offered"),
        ([("layers.0.attention.q", 1 << 62)], f"layers.0.attention.q from byte {1 << 62}, beyond its end"),
        ([(f"tensor {i}", 0) for i in range(4096)], "tensor 0, which was not offered"),
    ],
    ids=["twice", "unknown", "the root's own", "beyond the end", "too many"],
)
def test_a_worker_that_asks_for_what_is_not_its_own_is_given_up(
    needs: list[tuple[str, int]], says: str, door: Door
) -> None:
    worker = door.stranger(b"a")
    door.ask(worker, a_join())
    offered(door, worker)
    (bye,) = door.ask(worker, Need(needs))
    assert isinstance(bye, Bye)
    assert says in bye.reason
    assert isinstance(door.ask(door.stranger(b"b"), a_join(pid=2))[0], Welcome)


def test_a_slice_that_was_not_offered_yet_is_not_sent(door: Door) -> None:
    worker = door.stranger(b"a")
    door.ask(worker, a_join())
    (bye,) = door.ask(worker, Need([("layers.0.attention.q", 0)]))
    assert isinstance(bye, Bye)


def test_a_worker_is_offered_nothing_before_its_first_credit(door: Door) -> None:
    """Its second join may be on its way, and what it gets before that is forgotten."""
    worker = door.stranger(b"a")
    assert len(door.ask(worker, a_join())) == 2  # welcome and plan
    door.root.serve_bus(time.monotonic() + 0.3)
    assert len(door.ask(worker, a_join())) == 2
    assert len(offered(door, worker)) == len(door.root.plan.shard_tensors())


def test_clients_have_their_turn_while_pieces_that_take_long_are_sent(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantizing on the way, or a slow disk, takes its time for each piece: some are sent, then others are heard."""
    worker, read = door.stranger(b"a"), door.model.read

    def slowly(*where: object) -> object:
        time.sleep(0.04)
        return read(*where)  # type: ignore[arg-type]

    door.ask(worker, a_join())
    need_all(door, worker)
    monkeypatch.setattr(door.model, "read", slowly)
    for _ in range(16):
        worker.send_multipart(encode(Credit(1)))
    n_pieces = []
    while sum(n_pieces) < 16:
        door.root.serve_bus(time.monotonic())
        sent = 0
        while (frames := sockets.receive_now(worker)) is not None:
            sent += isinstance(decode(frames, TO_WORKER)[0], Weights)
        n_pieces.append(sent)
    assert max(n_pieces) <= 4  # of 0.04 s, in 0.1 s
