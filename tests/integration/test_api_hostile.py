"""What must not harm the API: bodies that are no requests, clients that hang, go, or read nothing."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from command_line import until
from integration.api import SOON_S, Api, chatty, error_of, running_api

STALLED_S = 1.0
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USER = {"messages": [{"role": "user", "content": "x"}]}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    limits = {"body_mb": 2, "n": 4, "stop": 3, "max_tokens": 2000, "stalled_s": STALLED_S, "connections": 40}
    slow = "numpy"  # so that a long answer takes some seconds
    with running_api(folder, chatty(small_model, folder), kernels=slow, limits=limits) as api:
        yield api


@pytest.fixture(autouse=True)
def _still_answers(api: Api) -> Iterator[None]:
    """After each test the server answers, nothing runs, and it has had no defect."""
    yield
    assert api.post(TEXT, prompt="once", max_tokens=1)["choices"]
    until(lambda: api.cli.status().active == 0, SOON_S, "every request to end")
    assert "Traceback" not in (api.cli.log_folder / "gateway.log").read_text()


DEEP = "[" * 100_000 + "]" * 100_000
BODIES: dict[str, tuple[str, str | bytes]] = {
    "nothing": (CHAT, ""),
    "no JSON": (CHAT, "{"),
    "no object": (CHAT, "[]"),
    "a text": (CHAT, '"x"'),
    "no UTF-8": (CHAT, b'{"messages": [{"role": "user", "content": "\xff"}]}'),
    "a lone surrogate": (TEXT, '{"prompt": "\\ud800", "temperature": "x"}'),
    "deep": (CHAT, '{"messages": ' + DEEP + "}"),
    "deep where anything may be": (CHAT, '{"chat_template_kwargs": {"a": ' + DEEP + "}, " + json.dumps(USER)[1:]),
    "deep and unknown": (CHAT, '{"x": ' + DEEP + ', "messages": []}'),
    "no messages": (CHAT, "{}"),
    "empty messages": (CHAT, '{"messages": []}'),
    "a message that is a text": (CHAT, '{"messages": ["x"]}'),
    "a role that is none": (CHAT, '{"messages": [{"role": "king", "content": "x"}]}'),
    "a user without content": (CHAT, '{"messages": [{"role": "user"}]}'),
    "a call without a function": (CHAT, '{"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}'),
    "a tool that is a text": (CHAT, '{"messages": [{"role": "user", "content": "x"}], "tools": ["x"]}'),
    "an empty list of prompts": (TEXT, '{"prompt": []}'),
    "ids and texts": (TEXT, '{"prompt": [1, "x"]}'),
    "a token that is none": (TEXT, '{"prompt": [99999]}'),
    "a negative token": (TEXT, '{"prompt": [-1]}'),
    "a huge token": (TEXT, '{"prompt": [9999999999999999999999]}'),
    "many prompts": (TEXT, json.dumps({"prompt": ["x"] * 65})),
    "an empty prompt of ids": (TEXT, '{"prompt": [[]]}'),
    "a suffix": (TEXT, '{"prompt": "x", "suffix": "y"}'),
}


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_is_refused(api: Api, name: str) -> None:
    path, body = BODIES[name]
    reply = api.http.post(path, content=body.encode() if isinstance(body, str) else body)
    assert 400 <= reply.status_code < 500, reply.text
    assert reply.status_code != 500, reply.text
    assert error_of(reply)["message"]


FIELDS: list[tuple[str, str]] = [
    ("temperature", "NaN"), ("temperature", "-1"), ("temperature", "1e999"), ("temperature", "101"),
    ("temperature", '"hot"'), ("temperature", "true"), ("top_p", "2"), ("top_p", "-0.1"), ("top_p", "Infinity"),
    ("top_k", "1.5"), ("top_k", "99999999999999999999"), ("min_p", "-1"), ("max_tokens", "-2"), ("max_tokens", "1e30"),
    ("max_tokens", '"5"'), ("seed", "1e99"), ("seed", '"a"'), ("n", "0"), ("n", "5"), ("n", "-1"), ("n", "1e12"),
    ("stop", "5"), ("stop", '["a","b","c","d"]'), ("stop", json.dumps(["x" * 257])), ("stop", '[["a"]]'),
    ("logit_bias", '{"x": 1}'), ("logit_bias", '{"1": 101}'), ("logit_bias", '{"-1": 1}'), ("logit_bias", "5"),
    ("logit_bias", '{"99999": 1}'), ("presence_penalty", "3"), ("frequency_penalty", "-3"), ("repeat_penalty", "0"),
    ("stream", '"yes"'), ("stream_options", "1"), ("top_logprobs", "21"), ("logprobs", "5"),
    ("response_format", '"json"'), ("response_format", "{}"), ("response_format", '{"type": "json_schema"}'),
    ("grammar", "5"), ("chat_template_kwargs", "[]"), ("ignore_eos", "2"), ("tool_choice", '"maybe"'), ("user", "5"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), FIELDS)
def test_a_value_that_is_none_is_refused(api: Api, field: str, value: str) -> None:
    body = '{"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, ' + f'"{field}": {value}' + "}"
    reply = api.http.post(CHAT, content=body.replace('"max_tokens": 2, "max_tokens"', '"max_tokens"'))
    assert reply.status_code == 400, reply.text
    assert error_of(reply)["type"] == "invalid_request_error"


@pytest.mark.parametrize("says_how_long", [True, False])
def test_a_body_beyond_the_limit_is_refused(api: Api, says_how_long: bool) -> None:
    body = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'
    pieces = (body[start : start + 65536] for start in range(0, len(body), 65536))
    reply = api.http.post(TEXT, content=body if says_how_long else pieces)
    assert reply.status_code == 413
    assert "body_mb" in error_of(reply)["message"]


def test_a_prompt_beyond_what_the_bus_carries_is_refused(api: Api) -> None:
    assert api.refused(TEXT, prompt="x" * 1_500_000)["type"] == "invalid_request_error"
    assert api.refused(CHAT, messages=[{"role": "user", "content": "é" * 600_000}])["type"] == "invalid_request_error"
    assert api.refused(TEXT, prompt=[5] * 200_000)["type"] == "invalid_request_error"


def connected(api: Api) -> socket.socket:
    return socket.create_connection(("127.0.0.1", api.port), SOON_S)


def head(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    data = b""
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    return data


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", b"POST / HTTP/1.1\r\nHost: x\r\n"])
def test_who_sends_no_request_is_cut_off(api: Api, sent: bytes) -> None:
    with closing(connected(api)) as connection:
        connection.sendall(sent)
        assert all_of(connection) == b""


def test_who_sends_a_byte_a_second_is_cut_off(api: Api) -> None:
    with closing(connected(api)) as connection:
        connection.settimeout(0.2)
        begun, answer, is_open = time.monotonic(), b"", True
        connection.sendall(head(TEXT, 1000))
        while is_open and time.monotonic() < begun + SOON_S:
            try:
                connection.sendall(b"{")
                piece = connection.recv(65536)
                answer, is_open = answer + piece, bool(piece)
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):  # of the byte: the answer came before it
                answer, is_open = answer + all_of(connection), False
        assert b" 408 " in answer
        assert b"stalled_s" in answer
        assert not is_open


def test_bytes_that_are_no_http_are_refused(api: Api) -> None:
    length = b"POST /x HTTP/1.1\r\nContent-Length: -5\r\n\r\n"
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", length, b"x" * 200_000):
        with closing(connected(api)) as connection:
            with suppress(ConnectionError):  # who has heard enough may close before all is sent
                connection.sendall(sent)
            assert all_of(connection).startswith(b"HTTP/1.1 400 ")


def test_headers_without_end_are_refused(api: Api) -> None:
    with closing(connected(api)) as connection:
        with suppress(ConnectionError):
            connection.sendall(b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 40_000)
        assert all_of(connection)[:13] in (b"HTTP/1.1 400 ", b"")


def long_request(stream: bool, **more: Any) -> bytes:
    body = json.dumps({"prompt": "once", "max_tokens": 1900, "ignore_eos": True, "stream": stream, **more}).encode()
    return head(TEXT, len(body)) + body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_a_request_ends_when_its_client_goes(api: Api, stream: bool, half: bool) -> None:
    with closing(connected(api)) as connection:
        connection.sendall(long_request(stream))
        until(lambda: api.cli.status().active == 1, SOON_S, "the request to run")
        if half:
            connection.shutdown(socket.SHUT_WR)
        else:
            connection.close()
        until(lambda: api.cli.status().active == 0, SOON_S, "the request to be withdrawn")
    done = [line for line in (api.cli.log_folder / "root.log").read_text().splitlines() if " request done " in line]
    assert "reason=cancelled" in done[-1]


def test_a_body_that_will_be_too_long_is_refused_before_it_comes(api: Api) -> None:
    with closing(connected(api)) as connection:
        connection.sendall(head(TEXT, 10_000_000))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def server_of(api: Api) -> psutil.Process:
    (server,) = api.cli.processes_of("gateway")
    return server


def test_a_client_that_reads_nothing_is_cut_off(api: Api) -> None:
    server = server_of(api)
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(SOON_S)
        connection.connect(("127.0.0.1", api.port))
        connection.sendall(long_request(True, n=4, logprobs=20))
        mine = connection.getsockname()[1]

        def is_open() -> bool:
            return any(one.raddr and one.raddr.port == mine for one in server.net_connections("tcp"))

        until(is_open, SOON_S, "the request to be taken")
        until(lambda: not is_open(), SOON_S, "the connection to be cut off")
        assert not all_of(connection).endswith(b"0\r\n\r\n")


def test_two_requests_at_once_on_a_connection_are_answered_in_turn(api: Api) -> None:
    with closing(connected(api)) as connection:
        body = b'{"prompt": "once", "max_tokens": 2}'
        connection.sendall((head(TEXT, len(body)) + body) * 2)
        data = b""
        while data.count(b"text_completion") < 2:
            piece = connection.recv(65536)
            assert piece, data
            data += piece
        assert data.count(b"HTTP/1.1 200 OK") == 2


def test_connections_beyond_the_limit_are_refused_and_room_is_made_again(api: Api) -> None:
    with ExitStack() as cleanup:
        for _ in range(40):
            cleanup.enter_context(closing(connected(api)))
        with closing(connected(api)) as one_more:
            answer = all_of(one_more)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "unavailable_error"

    def answered() -> bool:
        with suppress(httpx.TransportError):
            return api.http.get("/health").status_code == 200
        return False

    until(answered, SOON_S, "room for another connection")
