"""What clients may ask of a root at the same time, and for how long each side waits."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from integration.nodes import Context, Start, inproc
from integration.services import SOON_S, a_service, serving
from integration.stranger import Stranger
from tiny import tiny_spec, write_tiny_pair

from dllama_zmq import Client
from dllama_zmq.bus import sockets
from dllama_zmq.bus.client_messages import FROM_CLIENT, TO_CLIENT, Error, Generate, Queued, Started, TokenText
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.messages import Message
from dllama_zmq.cli import answer_flags, flags
from dllama_zmq.cli.cluster import down
from dllama_zmq.cli.generate import generate
from dllama_zmq.errors import BusError, ClusterError, NotReady, RootLost
from dllama_zmq.formats import ModelFile
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.sampling import GREEDY
from dllama_zmq.spec import FloatType
from dllama_zmq.worker import Worker, WorkerSettings

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    with write_tiny_pair(tmp_path_factory.mktemp("model"), SPEC) as file:
        yield file


def next_message(client: zmq.Socket[bytes], wait_s: float = SOON_S) -> Message:
    frames = sockets.receive(client, time.monotonic() + wait_s)
    assert frames is not None
    return decode(frames, TO_CLIENT)[0]


def ask(request_id: int, max_tokens: int = 20) -> Generate:
    return Generate(request_id, "once upon a time", max_tokens, GREEDY, True, [])


def test_a_second_request_with_an_open_id_is_refused_and_the_first_continues(
    context: Context, model: ModelFile
) -> None:
    with serving(context, model, []) as address:
        client = sockets.connect(context, zmq.DEALER, address)
        for _ in range(2):
            client.send_multipart(encode(ask(7)))
        answers = []
        while not answers or type(answers[-1]).__name__ != "Done":
            answers.append(next_message(client))
        errors = [answer for answer in answers if isinstance(answer, Error)]
        assert [(error.id, error.kind) for error in errors] == [(0, "RequestError")]
        assert "id 7 is open already" in errors[0].text
        assert sum(isinstance(answer, TokenText) for answer in answers) == 20
        client.close()


def test_an_id_of_zero_is_no_request(context: Context, model: ModelFile) -> None:
    with serving(context, model, []) as address:
        client = sockets.connect(context, zmq.DEALER, address)
        client.send_multipart(encode(ask(0)))
        answer = next_message(client)
        assert isinstance(answer, Error)
        assert answer.id == 0
        assert "not as agreed" in answer.text
        client.close()


def test_a_request_waits_for_workers_from_its_own_beginning(context: Context, model: ModelFile) -> None:
    with serving(context, model, ["worker1"], join_s=1.5) as address, Client(address) as client:
        for _ in range(2):  # the second comes when the cluster has been incomplete for longer than join_s
            begun = time.monotonic()
            with pytest.raises(NotReady, match="worker1 has not joined yet"):
                client.text("once")
            assert time.monotonic() - begun >= 1.5


def test_a_client_that_leaves_with_two_requests_waiting_takes_nothing_down(context: Context, model: ModelFile) -> None:
    with serving(context, model, ["worker1"], join_s=0.5) as address:  # both are given up before they are reminded of
        leaver = sockets.connect(context, zmq.DEALER, address)
        for request_id in (1, 2):
            leaver.send_multipart(encode(ask(request_id)))
        assert all(isinstance(next_message(leaver), Queued) for _ in range(2))
        leaver.close()
        with Client(address) as client:
            until = time.monotonic() + SOON_S
            while client.status().queued:
                assert time.monotonic() < until


def silent_s(client: Client) -> float:
    """After how long without a word a client gives up a request."""
    begun = time.monotonic()
    with pytest.raises(RootLost, match="no answer"):
        list(client.generate("once"))
    return time.monotonic() - begun


def test_a_client_waits_as_long_as_the_root_says_that_a_step_may_take(
    context: Context, model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dllama_zmq.client.SILENCE_S", 0.5)
    monkeypatch.setattr("dllama_zmq.client.SAY_EVERY_S", 0.1)
    router = context.socket(zmq.ROUTER)
    address = f"ipc:///tmp/dz-{secrets.token_hex(6)}"
    router.bind(address)

    def answer() -> None:
        for silence_s in (2.0, 60.0, None):
            client, *frames = router.recv_multipart()
            request, _ = decode(frames, FROM_CLIENT)
            while not isinstance(request, Generate):  # the cancelling of the one before
                client, *frames = router.recv_multipart()
                request, _ = decode(frames, FROM_CLIENT)
            if silence_s is not None:
                router.send_multipart([client, *encode(Queued(request.id, 1, "", silence_s))])

    thread = threading.Thread(target=answer)
    thread.start()
    with Client(address) as client:
        assert silent_s(client) > 2.0
        with contextlib.closing(client.generate("once")) as answers:
            assert isinstance(next(answers), Queued)  # which says 60 s, of this request alone
        assert 0.5 < silent_s(client) < 30.0
    thread.join(SOON_S)
    router.close(linger=0)
    Path(address.removeprefix("ipc://")).unlink(missing_ok=True)


def test_the_root_says_how_long_a_step_may_take(context: Context, model: ModelFile) -> None:
    with serving(context, model, [], step_s=100) as address, Client(address) as client:
        [started] = [answer for answer in client.generate("once", max_tokens=1) if isinstance(answer, Started)]
        assert started.silence_s == 300


class StopsTheRoot(Stranger):
    """Loads, is ready, and where a step asks for its part ends this process's root instead."""

    def send_part(self, kind: str, *fields: object, arrays: tuple[bytes, ...]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_client_whose_step_a_signal_breaks_off_hears_that_the_cluster_ends(
    context: Context, model: ModelFile, start: Start
) -> None:
    places, interrupts, said = inproc(), Interrupts(), list[str]()
    start(StopsTheRoot(context, places.replies[0]))

    def ask_and_end(address: str) -> None:
        with Client(address) as client:
            try:
                client.text("once upon a time")
            except ClusterError as error:
                said.append(str(error))

    with a_service(context, model, ["worker1"], places) as (service, address):
        asker = threading.Thread(target=ask_and_end, args=[address])
        asker.start()
        with pytest.raises(SystemExit), interrupts.caught(), interrupts.then(service.stop, after_s=0.1):
            service.run()
        asker.join(SOON_S)
    assert said == ["the cluster is going down"]


def test_a_name_that_this_computer_does_not_know_ends_a_client_and_a_worker_at_once(context: Context) -> None:
    begun = time.monotonic()
    with pytest.raises(BusError, match="knows no host of that name"):
        Client("no-such-host.invalid")
    with pytest.raises(ClusterError, match="knows no host of that name"):
        Worker(context, WorkerSettings("tcp://no-such-host.invalid:5570")).run()
    assert time.monotonic() - begun < SOON_S


def test_a_client_that_was_closed_says_so(context: Context, model: ModelFile) -> None:
    with serving(context, model, []) as address:
        with Client(address) as client:
            open_one, cancelled = (client.generate("once upon a time") for _ in range(2))
            next(open_one)
            next(cancelled)
        client.close()
        cancelled.close()
        with pytest.raises(ClusterError, match="has been closed"):
            list(open_one)
        with pytest.raises(ClusterError, match="has been closed"):
            client.status()


@pytest.mark.parametrize("left", ["client", "answers = client.generate('once'); next(answers)"])
def test_a_program_ends_that_never_closes_its_client(left: str, context: Context, model: ModelFile) -> None:
    with serving(context, model, []) as address:
        code = f"import dllama_zmq; client = dllama_zmq.Client({address!r}); print(client.status().name); {left}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SOON_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "tests\n", "")


def test_a_signal_while_a_worker_makes_its_sockets_ends_it() -> None:
    code = """
import os, signal
from dllama_zmq.bus import sockets
from dllama_zmq.cli.worker import worker

def connect(*where):
    socket = made(*where)
    os.kill(os.getpid(), signal.SIGTERM)
    return socket

made, sockets.connect = sockets.connect, connect
worker(host="127.0.0.1:9", threads=1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SOON_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_root_in_a_long_step_is_waited_for_by_generate_and_down(
    context: Context, model: ModelFile, capfd: pytest.CaptureFixture[str]
) -> None:
    busy_s = 6.0  # longer than a client waits for a status of itself
    answer, overrides = answer_flags.Answer(steps=4, temperature=0.0, stats="answer"), flags.Overrides()
    prompt = answer_flags.PromptFlags(prompt="once")
    with serving(context, model, [], busy_s=busy_s) as address:
        generate(prompt=prompt, overrides=overrides, answer=answer, there=flags.There(connect=address))
        assert capfd.readouterr().out.startswith("once")
    with serving(context, model, [], busy_s=busy_s) as address:
        down(which=flags.AnyCluster(), there=flags.There(connect=address))
        assert f"the cluster at {address} is down" in capfd.readouterr().err


def test_a_root_that_agrees_to_stop_and_does_not_end_is_an_error(context: Context, model: ModelFile) -> None:
    with a_service(context, model, [], inproc()) as (service, address):  # its sockets are closed after the block
        thread = threading.Thread(target=service.run)
        thread.start()
        with (
            Client(address) as client,
            pytest.raises(ClusterError, match="has agreed to stop, and is still there after"),
        ):
            client.stop(SOON_S, end_s=0.1)
        thread.join(SOON_S)


def test_a_web_server_is_no_root_that_went_away() -> None:
    """Its answer looks like that of a peer of ZMTP 1.0, which needs no handshake, so that messages can be sent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stopped = threading.Event()

        def refuse_each() -> None:
            while not stopped.is_set():
                with contextlib.suppress(TimeoutError, ConnectionError), server.accept()[0] as peer:
                    peer.settimeout(0.5)
                    peer.recv(10)
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")

        server.settimeout(0.1)
        refusing = threading.Thread(target=refuse_each)
        refusing.start()
        try:
            for _ in range(5):
                with (
                    Client(f"127.0.0.1:{server.getsockname()[1]}") as client,
                    pytest.raises(RootLost, match="nobody answers at tcp://"),
                ):
                    client.status(wait_s=1.0)
        finally:
            stopped.set()
            refusing.join()
