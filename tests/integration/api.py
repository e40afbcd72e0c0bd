"""A running cluster with an API server, and what a client of HTTP says to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
from command_line import SMALL, Cli, clean_cli
from msgspec.structs import replace
from surroundings import free_ports
from tiny import tiny_spec, tiny_tokenizer_data, write_tiny_model
from when_used import openai

from dllama_zmq.formats import write_t

SOON_S = 30.0
NO_TLS = False
"""`verify` of a client of HTTP without TLS: else it first reads all authorities' certificates, 20 ms of CPU or more."""


class Api:
    """The API of a cluster of `cli`, at `port`."""

    def __init__(self, cli: Cli, port: int, key: str = "") -> None:
        self.cli, self.port = cli, port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(
            base_url=self.url,
            timeout=SOON_S,
            verify=NO_TLS,
            headers={"authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_keepalive_connections=0),  # nothing stays open between tests
        )

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request that is answered."""
        reply = self.http.post(path, json=fields)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    def refused(self, path: str, status: int = 400, **fields: Any) -> dict[str, Any]:
        """The error of a request that is refused."""
        reply = self.http.post(path, json=fields)
        assert reply.status_code == status, reply.text
        return error_of(reply)

    def chunks(self, path: str, **fields: Any) -> list[dict[str, Any]]:
        """The chunks of a streamed answer, which ends with [DONE]."""
        with self.http.stream("POST", path, json={"stream": True, **fields}) as reply:
            assert reply.status_code == 200, reply.read()
            assert reply.headers["content-type"].startswith("text/event-stream")
            events = [line.removeprefix("data: ") for line in reply.iter_lines() if line.startswith("data: ")]
        assert events[-1] == "[DONE]"
        return [json.loads(event) for event in events[:-1]]


def error_of(reply: httpx.Response) -> dict[str, Any]:
    """The error that `reply` is, in the form of its route's dialect: OpenAI's, or Anthropic's."""
    body = reply.json()
    if reply.request.url.path.startswith(("/v1/messages", "/messages")):
        assert body.keys() == {"type", "error"}
        assert body["type"] == "error"
        assert body["error"].keys() == {"type", "message"}
        return dict(body["error"])
    assert set(body) == {"error"}
    error = dict(body["error"])
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["code"] == reply.status_code
    return error


@contextmanager
def openai_client(api: Api) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which refuses what is not of its types. Nothing stays open between tests."""
    no_reuse = httpx2.Client(verify=NO_TLS, limits=httpx2.Limits(max_keepalive_connections=0))
    with openai.OpenAI(
        base_url=f"{api.url}/v1",
        api_key="none",
        timeout=SOON_S,
        max_retries=0,
        http_client=no_reuse,
        _strict_response_validation=True,
    ) as client:
        yield client


@contextmanager
def running_api(folder: Path, model: Path, n_nodes: int = 1, kernels: str = "auto", **api: Any) -> Iterator[Api]:
    """The API of a cluster that runs until the end of the block."""
    with clean_cli(folder, model) as cli:
        (port,) = free_ports(1)
        cli.up(n_nodes, kernels=kernels, api={"port": port, **api})
        served = Api(cli, port)
        try:
            yield served
        finally:
            served.http.close()
            cli.down()


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if not loop.last or add_generation_prompt %}"
    "<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatty(model: Path, folder: Path) -> Path:
    """The small model with a chat template, in `folder`."""
    path = folder / "chatty.m"
    path.symlink_to(model)
    write_t(path.with_suffix(".t"), replace(tiny_tokenizer_data(SMALL.vocab_size), chat_template=CHATML))
    return path


def thoughtful(folder: Path, template: str = "qwen3", **spec: Any) -> Path:
    """A tiny random model with a published template, in `folder`. What it says is said under a grammar: `only`."""
    path = folder / "thoughtful.m"
    write_tiny_model(path, tiny_spec(seq_len=4096, **spec)).close()
    text = (Path(__file__).parents[1] / "golden" / "templates" / f"{template}.jinja").read_text("utf-8")
    write_t(path.with_suffix(".t"), replace(tiny_tokenizer_data(), chat_template=text))
    return path


def only(text: str) -> dict[str, Any]:
    """The field of a request that leaves the model this answer alone."""
    return {"structured_outputs": {"grammar": f"start: {json.dumps(text, ensure_ascii=False)}"}}


WEATHER = {
    "name": "weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
"""A function for the model to call."""
