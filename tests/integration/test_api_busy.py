"""The answers of the API while a request has no room in the queue, or the nodes are not there."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import httpx2
import msgspec
import pytest
import zmq
from integration.api import CHATML, NO_TLS, SOON_S, error_of
from integration.front_alone import PLACES, Engine, front_alone
from integration.nodes import Context
from msgspec.structs import replace
from tiny import tiny_tokenizer_data
from tokenizers_of import of_t
from when_used import anthropic, openai

from dllama_zmq.api_config import ApiLimits, GatewaySettings
from dllama_zmq.bus.client_messages import FROM_CLIENT, Error
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.engine_messages import Readiness
from dllama_zmq.bus.messages import Message
from dllama_zmq.bus.text_messages import Model, ModelRequest
from dllama_zmq.front.fair_queue import MAX_REQUESTS
from dllama_zmq.gateway.app import ROUTES
from dllama_zmq.own_code import own_code

SAYS = [{"role": "user", "content": "once"}]
QUEUED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": SAYS},
    "/v1/completions": {"prompt": "once"},
    "/v1/responses": {"input": "once"},
    "/v1/messages": {"messages": SAYS, "max_tokens": 5},
    "/v1/embeddings": {"input": "once"},
}
"""Routes whose requests wait for a place among the answers that run."""

ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions/input_tokens": {"messages": SAYS},
    "/v1/responses/input_tokens": {"input": "once"},
    "/v1/messages/count_tokens": {"messages": SAYS},
    "/tokenize": {"content": "once"},
    "/detokenize": {"tokens": [40]},
    "/apply-template": {"messages": SAYS},
}
"""Routes whose requests wait for a thread that tokenizes."""

STREAMS = [path for path in QUEUED if path != "/v1/embeddings"]
WAYS = [*QUEUED.items(), *((path, QUEUED[path] | {"stream": True}) for path in STREAMS)]
FACTS = ("tiny", "/tiny.m", "llama", 1, 1, 64, 64, 288, 64, "", [], CHATML, {}, 1)
MAX_PROMPTS = 64
ALL_OF_ONE = PLACES - 1
"""The last place is for a client that runs nothing."""


@contextmanager
def gateway_to(front: str) -> Iterator[str]:
    """The URL of an API server whose front is at that address."""
    settings = GatewaySettings(
        front=front, version="0", keys=[], origins=[], limits=ApiLimits(stalled_s=3600.0), step_s=60.0
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [sys.executable, "-m", "dllama_zmq", "gateway", "--listener", str(listener.fileno())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], env=own_code()) as process:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(settings) + b"\n")
            process.stdin.flush()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            process.stdin.close()  # it ends with that
            process.wait(SOON_S)


def client_of(url: str) -> httpx.Client:
    """Nothing stays open between two requests."""
    return httpx.Client(base_url=url, timeout=SOON_S, verify=NO_TLS, limits=httpx.Limits(max_keepalive_connections=0))


@contextmanager
def played(context: Context) -> Iterator[tuple[Engine, str]]:
    """A front whose engine is played by the test, and the URL of its API."""
    tokenizer = of_t(replace(tiny_tokenizer_data(), chat_template=CHATML))
    with front_alone(context, tokenizer) as engine, gateway_to(engine.address) as url:
        yield engine, url


@contextmanager
def full(context: Context) -> Iterator[str]:
    """The URL of an API whose queue has no room: all places are taken, and as many requests wait as may."""
    with ExitStack() as opened:
        engine, url = opened.enter_context(played(context))
        engine.tell(Readiness(True, "", 60.0))
        client = opened.enter_context(client_of(url))
        streams: list[Iterator[str]] = []  # who drops one closes it

        def fill(n: int, **more: Any) -> Iterator[str]:
            body = {"prompt": [[40, 41]] * n, "max_tokens": 5, "stream": True, **more}
            reply = opened.enter_context(client.stream("POST", "/v1/completions", json=body))
            streams.append(reply.iter_lines())
            return streams[-1]

        fill(ALL_OF_ONE, echo=True)  # a stream that has something to say at once
        for _ in range(ALL_OF_ONE):
            engine.submitted()
        for n_waiting in range(MAX_PROMPTS, MAX_REQUESTS + 1, MAX_PROMPTS):
            last = f'"ahead":{ALL_OF_ONE + n_waiting - 1}'
            lines = fill(MAX_PROMPTS, return_progress=True)
            while last not in next(lines):
                pass
        yield url


@contextmanager
def loading(context: Context) -> Iterator[str]:
    """The URL of an API whose nodes are not there."""
    with played(context) as (engine, url):
        engine.tell(Readiness(False, "worker1 loads", 600.0))
        yield url


@contextmanager
def refusing(context: Context) -> Iterator[str]:
    """The URL of an API whose front has no room for any question; this plays it."""
    stopped = threading.Event()
    with context.socket(zmq.ROUTER) as router:
        router.set(zmq.LINGER, 0)
        port = router.bind_to_random_port("tcp://127.0.0.1")

        def answer() -> None:
            while not stopped.is_set():
                if router.poll(50):
                    identity, *frames = router.recv_multipart()
                    asked, _ = decode(frames, FROM_CLIENT)
                    said: Message = Error(asked.id, "QueueFull", "512 questions wait already; try again later")
                    if isinstance(asked, ModelRequest):
                        said = Model(asked.id, *FACTS)
                    router.send_multipart([identity, *encode(said)])

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            with gateway_to(f"tcp://127.0.0.1:{port}") as url:
                yield url
        finally:
            stopped.set()
            thread.join(SOON_S)


def refusals(url: str, ways: Iterable[tuple[str, dict[str, Any]]], status: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """The path and the error of each request, which must have this status and a time to come again."""
    with client_of(url) as client:
        for path, body in ways:
            reply = client.post(path, json=body)
            assert reply.status_code == status, f"{path}: {reply.text}"
            assert int(reply.headers["retry-after"]) >= 1, path
            yield path, error_of(reply)


def test_these_are_all_routes_that_wait() -> None:
    assert {*QUEUED, *ASKED} == {one.paths[0] for one in ROUTES if one.takes is not None}


def test_a_full_queue_is_429_on_every_route_and_a_rate_limit_error_of_every_client(context: Context) -> None:
    with full(context) as url:
        for path, error in refusals(url, WAYS, 429):
            assert error["type"] == "rate_limit_error", path
            assert error["message"] == "512 requests wait already; try again later"
        for ask in OPENAI_ASKS:
            with pytest.raises(openai.RateLimitError):
                openai_asks(url, ask)
        for stream in (False, True):
            with pytest.raises(anthropic.RateLimitError):
                anthropic_asks(url, stream)


def test_too_many_questions_are_429_too(context: Context) -> None:
    with refusing(context) as url:
        for path, error in refusals(url, ASKED.items(), 429):
            assert error["type"] == "rate_limit_error", path


def test_while_nodes_load_it_is_503_with_a_time_to_come_again_but_questions_are_answered(context: Context) -> None:
    with loading(context) as url:
        for path, error in refusals(url, WAYS, 503):
            assert error["type"] == ("overloaded_error" if path == "/v1/messages" else "unavailable_error"), path
            assert "worker1 loads" in error["message"]
        for ask in OPENAI_ASKS:
            with pytest.raises(openai.InternalServerError):
                openai_asks(url, ask)
        for stream in (False, True):
            with pytest.raises(anthropic.InternalServerError):
                anthropic_asks(url, stream)
        with client_of(url) as client:
            for path, body in ASKED.items():
                assert client.post(path, json=body).status_code == 200, path


NO_REUSE = httpx2.Limits(max_keepalive_connections=0)
OPENAI_ASKS: list[Callable[[openai.OpenAI], object]] = [
    lambda client: client.chat.completions.create(model="any", messages=SAYS),  # type: ignore[arg-type]
    lambda client: client.completions.create(model="any", prompt="once"),
    lambda client: client.responses.create(model="any", input="once"),
    lambda client: client.embeddings.create(model="any", input="once"),
]


def openai_asks(url: str, ask: Callable[[openai.OpenAI], object]) -> None:
    """OpenAI's client asks once."""
    with (
        httpx2.Client(verify=NO_TLS, limits=NO_REUSE) as connections,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0, http_client=connections) as client,
    ):
        ask(client)


def anthropic_asks(url: str, stream: bool) -> None:
    """Anthropic's client asks once."""
    with (
        httpx2.Client(verify=NO_TLS, limits=NO_REUSE) as connections,
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0, http_client=connections) as client,
    ):
        client.messages.create(model="any", max_tokens=5, messages=SAYS, stream=stream)  # type: ignore[call-overload]
