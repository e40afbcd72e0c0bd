"""The OpenAPI document, made from the types that check requests and form answers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from dllama_zmq import __version__
from dllama_zmq.gateway.endpoint import EVENT_STREAM, JSON, Resource

_TEMPLATE = "#/components/schemas/{name}"


def openapi(resources: Sequence[Resource]) -> dict[str, Any]:
    """The document. Each route is described under its first path; the other paths are aliases."""
    used = {one for each in resources for one in (each.takes, each.gives, each.streams, each.errors.gives)}
    ordered = sorted(used - {None}, key=lambda one: (str(one.__name__), str(one.__module__)))
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_TEMPLATE)
    schema_of = dict(zip(ordered, schemas, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "dllama-zmq", "version": __version__},
        "paths": {re.sub(":path}", "}", one.paths[0]): _path(one, schema_of) for one in resources},
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _event(schema: Any) -> dict[str, Any]:
    """The schema of one event of a stream, as tools read OpenAPI 3.1: its data is JSON of `schema`, or [DONE]."""
    data = {"anyOf": [{"contentMediaType": JSON, "contentSchema": schema}, {"const": "[DONE]"}], "type": "string"}
    return {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}


def _path(resource: Resource, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    contents = {JSON: {"schema": schema_of[resource.gives]}} if resource.gives is not None else {"text/plain": {}}
    if resource.streams is not None:
        contents[EVENT_STREAM] = {"schema": _event(schema_of[resource.streams])}
    error = {"description": "An error", "content": {JSON: {"schema": schema_of[resource.errors.gives]}}}
    described: dict[str, Any] = {
        "summary": (inspect.getdoc(resource.handler) or "").partition("\n")[0],
        "responses": {"200": {"description": "The answer", "content": contents}, "default": error},
    }
    if resource.takes is not None:
        body = {JSON: {"schema": schema_of[resource.takes]}}
        described["requestBody"] = {"required": True, "content": body}
    names = re.findall(r"{(\w+)(?::path)?}", resource.paths[0])
    if names:
        text = {"type": "string"}
        described["parameters"] = [{"name": name, "in": "path", "required": True, "schema": text} for name in names]
    return {"get" if resource.takes is None else "post": described}
