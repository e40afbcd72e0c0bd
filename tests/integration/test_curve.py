"""Clusters whose bus is encrypted: the numbers of an open one, names that belong to keys, keys that come and go."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from command_line import until
from integration.nodes import (
    FAST_AND_SLOW,
    TOKENS,
    Context,
    Start,
    a_root,
    a_worker,
    assert_are,
    form,
    logits,
    pump_until,
    tcp,
)
from integration.stranger import Stranger
from msgspec.structs import replace
from secured import Secured
from served import served
from tiny import tiny_tokenizer_data
from wiretap import Wiretap

from dllama_zmq.bus.known_root import enrol
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.bus.security import Peer, Server
from dllama_zmq.client import Client
from dllama_zmq.cluster import ClusterFile, parse_cluster
from dllama_zmq.errors import ClusterError, RootLost
from dllama_zmq.formats import ModelFile, read_tokenizer, write_t
from dllama_zmq.kernels import Batch, KernelChoice
from dllama_zmq.quants import F32
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.sharding import Ask
from dllama_zmq.trust import Entry, KeyPair, Ring, Role
from dllama_zmq.trust.learned import forget, keep

SOON_S = 20.0


def places_of(secured: Secured) -> Endpoints:
    return replace(tcp(), security=secured.server())


def absent(root: Root, name: str) -> str:
    """Why that worker is not there; empty where it is."""
    row = next(row for row in root.progress() if row.name == name)
    return row.reason if row.state.value == "absent" else ""


@FAST_AND_SLOW
@pytest.mark.parametrize("n_workers", [1, 3])
def test_a_secured_cluster_computes_what_one_node_does(
    n_workers: int, kernels: KernelChoice, context: Context, start: Start, model: ModelFile, expected: F32
) -> None:
    names = [f"worker{i + 1}" for i in range(n_workers)]
    secured = Secured(names)
    places = places_of(secured)
    spin_s = 0.0 if kernels == "numpy" else 1e-3
    with a_root(context, model, places, n_workers=n_workers, kernels=kernels) as root:
        for name in names:
            start(a_worker(context, places, watch=True, spin_s=spin_s, security=secured.peer(name)))
        form(root)
        assert_are(logits(root), expected, kernels)
        assert [row.name for row in root.progress()] == names


def test_a_worker_written_from_the_protocols_page_has_keys_too(
    context: Context, start: Start, model: ModelFile, expected: F32
) -> None:
    secured = Secured()
    places, own = places_of(secured), secured.own["worker1"]
    with a_root(context, model, places) as root:
        start(Stranger(context, places.replies[0], keys=(own.public, own.secret, secured.root.public)))
        form(root)
        np.testing.assert_allclose(logits(root), expected, rtol=1e-4, atol=1e-5)


class Tapped(Endpoints, frozen=True):
    """Workers are sent to a relay for their replies."""

    tap: str = ""

    def for_worker(self, same_host: bool) -> tuple[str, str]:
        return Endpoints.for_worker(self, same_host)[0], self.tap


@pytest.mark.parametrize("is_secured", [False, True], ids=["open", "secured"])
def test_the_bytes_on_the_wire_are_those_measured_and_those_predicted(
    is_secured: bool, context: Context, start: Start, model: ModelFile
) -> None:
    secured, places = Secured(), tcp()
    security, peer = (secured.server(), secured.peer("worker1")) if is_secured else (None, None)
    with closing(Wiretap(places.replies[0])) as tap:
        tapped = Tapped(places.steps, places.replies, security=security, tap=tap.address)
        with a_root(context, model, tapped) as root:
            start(a_worker(context, replace(places, replies=[tap.address]), security=peer))
            form(root)
            assert root.link is not None
            meter, begun, n_sent = root.link.meter, time.monotonic(), len(tap.sent)
            before = meter.snapshot()
            for _ in range(100):
                root.evaluate(Batch.alone(0, 3), TOKENS[:3], {2: Ask(1)})
            received = sum(
                tally.wire_bytes - before.get((tally.node, tally.direction, tally.kind, tally.phase), (0, 0, 0))[2]
                for tally in meter.tallies()
                if tally.direction == "received"
            )
            heartbeats = 1000 + 400 * (time.monotonic() - begun)  # of both ends, with CURVE
            assert received <= len(tap.sent) - n_sent <= received * 1.01 + heartbeats
            rows = {row.kind: row for row in root.ledger.traffic()}
            for kind in ("step", "sum", "partial", "candidates"):
                assert abs(rows[kind].wire_bytes / rows[kind].predicted_wire_bytes - 1) < 0.01, kind


def test_a_listed_key_gets_no_other_workers_place(context: Context, start: Start, model: ModelFile) -> None:
    secured = Secured(["worker1", "worker2", "worker3"])
    places = places_of(secured)
    with a_root(context, model, places, n_workers=3) as root:
        impostor = start(a_worker(context, places, "worker1", security=secured.peer("worker2")))
        impostor.expected = True
        pump_until(root, lambda: impostor.error)
        assert isinstance(impostor.error[0], ClusterError)
        assert "its key is not that of 'worker1'; with its key it may be worker2" in str(impostor.error[0])
        assert absent(root, "worker1") == "has not joined yet"


def test_a_worker_that_is_not_let_in_says_why_and_comes_in_when_its_key_is_listed(
    context: Context, start: Start, model: ModelFile, caplog: pytest.LogCaptureFixture
) -> None:
    secured, keys = Secured([]), KeyPair.new()
    places = places_of(secured)
    with a_root(context, model, places) as root:
        start(a_worker(context, places, watch=True, security=Peer(keys, secured.root.public)))
        pump_until(root, lambda: f"does not admit the key of this computer, {keys.public}" in caplog.text)
        assert f"refused a connection from 127.0.0.1: its key is not known here: {keys.public}" in caplog.text
        secured.ring._state = Ring([Entry(Role.worker, "worker1", keys.public)])._state
        form(root)


def test_a_token_lets_a_worker_join_with_its_own_key(
    context: Context, start: Start, model: ModelFile, expected: F32
) -> None:
    secured, keys = Secured([]), KeyPair.new()
    secured.ring._state = replace(secured.ring._state, workers=frozenset(["worker1"]))
    places = places_of(secured)
    names: list[str] = []

    class Enrolling:
        def run(self) -> None:
            names.append(enrol(context, places.replies[0], secured.holder(), keys.public, SOON_S))

        def stop(self) -> None:
            pass

    with a_root(context, model, places) as root:
        start(Enrolling())  # type: ignore[arg-type]
        pump_until(root, lambda: names)
        start(a_worker(context, places, security=Peer(keys, secured.root.public)))
        form(root)
        np.testing.assert_array_equal(logits(root), expected)


def test_the_holder_of_a_token_gets_no_place(context: Context, start: Start, model: ModelFile) -> None:
    secured = Secured()
    places = places_of(secured)
    with a_root(context, model, places) as root:
        holder = start(a_worker(context, places, security=secured.holder()))
        holder.expected = True
        pump_until(root, lambda: holder.error)
        assert "has no place for this worker" in str(holder.error[0])


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterFile:
    """The file of a cluster of four nodes, whose keys are kept in a home of its own."""
    monkeypatch.setenv("DLLAMA_ZMQ_HOME", str(tmp_path / "home"))
    text = "model: demo\nname: small\nworkers: 3\n"
    (tmp_path / "cluster.yaml").write_text(text)
    return ClusterFile(tmp_path / "cluster.yaml", parse_cluster(text))


def test_a_key_that_is_removed_ends_its_worker_and_no_other(
    context: Context, start: Start, model: ModelFile, expected: F32, file: ClusterFile, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["worker1", "worker2", "worker3"]
    root_keys, own = KeyPair.new(), {name: KeyPair.new() for name in names}
    for name, keys in own.items():
        keep("small", Entry(Role.worker, name, keys.public))
    places = replace(tcp(), security=Server(root_keys, Ring.of(file), Role.worker, everywhere=True))
    with a_root(context, model, places, n_workers=3) as root:
        for keys in own.values():
            start(a_worker(context, places, watch=True, security=Peer(keys, root_keys.public)))
        form(root)
        before = root.cache_holders()
        forget("small", "worker2")
        pump_until(root, lambda: absent(root, "worker2"))
        pump_until(root, lambda: f"does not admit the key of this computer, {own['worker2'].public}" in caplog.text)
        keep("small", Entry(Role.worker, "worker2", own["worker2"].public))
        form(root)
        np.testing.assert_array_equal(logits(root), expected)
        after = root.cache_holders()
        assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_a_key_that_is_removed_ends_its_worker_on_the_roots_own_computer_too(
    context: Context,
    start: Start,
    model: ModelFile,
    expected: F32,
    file: ClusterFile,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    root_keys, own = KeyPair.new(), KeyPair.new()
    keep("small", Entry(Role.worker, "worker1", own.public))
    places = replace(
        tcp(),
        local_steps=f"ipc://{tmp_path}/s",
        local_replies=f"ipc://{tmp_path}/r",
        security=Server(root_keys, Ring.of(file), Role.worker, everywhere=True),
    )
    with a_root(context, model, places) as root:
        start(a_worker(context, places, watch=True, security=Peer(own, root_keys.public)))
        form(root)
        assert root.roster.members[0].address.startswith("localhost:")  # over ipc, where no connection has a key
        forget("small", "worker1")
        pump_until(root, lambda: "has lost its key" in absent(root, "worker1"))
        pump_until(root, lambda: f"does not admit the key of this computer, {own.public}" in caplog.text)
        keep("small", Entry(Role.worker, "worker1", own.public))
        form(root)
        np.testing.assert_array_equal(logits(root), expected)


def test_clients_need_keys_too_and_the_status_names_who_was_refused(
    context: Context, model: ModelFile, tmp_path: Path
) -> None:
    secured = Secured([])
    write_t(tmp_path / "tiny.t", tiny_tokenizer_data())
    tokenizer = read_tokenizer(tmp_path / "tiny.t")
    (address,) = tcp().replies
    root = Root(context, model, RootSettings(kernels="numpy"))
    with served(context, root, tokenizer, address, security=secured.server(Role.client)):
        unlisted = Peer(KeyPair.new(), secured.root.public)
        with Client(address, unlisted) as stranger, pytest.raises(RootLost, match="does not admit the key"):
            stranger.status()
        with Client(address) as stranger, pytest.raises(RootLost, match="wants an encrypted connection"):
            stranger.status()
        with Client(address, secured.holder(Role.client)) as holder, pytest.raises(ClusterError, match="only enrol"):
            holder.status()
        new = KeyPair.new()
        assert enrol(context, address, secured.holder(Role.client), new.public) == ""
        for keys in (secured.own["laptop"], new):
            with Client(address, Peer(keys, secured.root.public)) as client:
                assert client.text("once", max_tokens=2)
                until(lambda: sum(client.status().refused.values()) >= 2, SOON_S, "both refusals to be counted")
