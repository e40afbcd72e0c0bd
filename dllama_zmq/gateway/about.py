"""Routes about the server itself: its health, its model, its cluster, its metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any

from msgspec import Struct

from dllama_zmq.bus.client_messages import Status
from dllama_zmq.bus.text_messages import Model
from dllama_zmq.errors import DllamaError
from dllama_zmq.gateway.endpoint import Call, Reply, Stream, event
from dllama_zmq.gateway.problems import ErrorBody, Problem

_EVERY_S = 1.0
_HEALTH_S = 2.0


class NodeHealth(Struct):
    """state: absent, loading, loaded or ready. reason: why it is not ready."""

    name: str
    state: str
    reason: str


class Health(Struct):
    """Every node is ready. security: curve, none (an open bus), or local (no network reaches the bus)."""

    nodes: list[NodeHealth]
    security: str
    status: str = "ok"


class Unhealthy(Struct):
    """Some node is not ready; the error names it. security: as in Health; empty if it is not known."""

    error: ErrorBody
    nodes: list[NodeHealth]
    security: str
    status: str = "error"


class ModelMeta(Struct):
    """llama-server's numbers of a model, and whether it has a chat template; without one it only continues texts."""

    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    n_embd: int
    n_params: int
    size: int
    has_chat_template: bool


class ModelEntry(Struct):
    id: str
    created: int
    meta: ModelMeta
    object: str = "model"
    owned_by: str = "dllama-zmq"


class ModelList(Struct):
    data: list[ModelEntry]
    object: str = "list"


async def health(call: Call[None]) -> Reply:
    """200 if every node is ready and the root is not stuck in a step; else 503 with the nodes that are not ready.

    The root writes to each idle worker twice a second, and an unanswered connection ends after 1.5 s.
    """
    try:
        status = await call.service.recent_status(_HEALTH_S)
    except DllamaError as error:
        problem = Problem(503, str(error), retry_s=2)
        return Reply(Unhealthy(problem.reply().error, [], ""), 503, headers=problem.headers)
    nodes = [NodeHealth(node.name, node.state, node.reason) for node in status.nodes]
    silence = call.service.silence
    if status.state == "ready" and not silence:
        return Reply(Health(nodes, status.security))
    problem = Problem(503, status.note or silence or "Loading model", retry_s=2)
    return Reply(Unhealthy(problem.reply().error, nodes, status.security), 503, headers=problem.headers)


def entry_of(model: Model) -> ModelEntry:
    """A model as /v1/models lists it."""
    numbers = (model.vocab_size, model.seq_len, model.context, model.dim, model.n_params, model.size_bytes)
    meta = ModelMeta(*numbers, has_chat_template=model.template != "")
    return ModelEntry(model.name, model.created, meta)


async def models(call: Call[None]) -> Reply:
    """The one model of this cluster."""
    return Reply(ModelList([entry_of(await call.service.model())]))


async def one_model(call: Call[None]) -> Reply:
    """The model if its name is the one in the path; else Problem 404."""
    model, name = await call.service.model(), call.request.path_params["name"]
    if name != model.name:
        raise Problem(404, f"this server has no model {name:.200}; it has {model.name}", "model")
    return Reply(entry_of(model))


async def cluster(call: Call[None]) -> Reply | Stream:
    """The content of `dllama-zmq status --json`; with ?stream=true once a second, as events."""
    if call.request.query_params.get("stream") in ("true", "1"):
        return Stream(_statuses(call))
    return Reply(_shown(await call.service.status()))


async def metrics(call: Call[None]) -> Reply:
    """Counters and gauges of this server and of the cluster's nodes, for Prometheus."""
    try:
        status = await call.service.status(_HEALTH_S)
    except DllamaError:
        status = None  # this server's own counters are reported nevertheless
    return Reply(call.service.metrics.text(status), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _statuses(call: Call[None]) -> AsyncGenerator[bytes, None]:
    due = time.monotonic()
    while True:
        try:
            yield event(_shown(await call.service.status()))
        except DllamaError as error:
            yield event(Problem.of(error).reply())
        due = max(due + _EVERY_S, time.monotonic())
        await asyncio.sleep(due - time.monotonic())


def _shown(status: Status) -> dict[str, Any]:
    """A status as a JSON object; on the bus it is a list."""
    return {name: getattr(status, name) for name in status.__struct_fields__ if name != "id"}
