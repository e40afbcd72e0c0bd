"""The ASGI application with all routes of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from dllama_zmq.gateway import about, chat, replies, texts
from dllama_zmq.gateway.completions import completions
from dllama_zmq.gateway.endpoint import OPENAI, Call, Endpoint, ErrorForm, Reply, Resource, error_reply
from dllama_zmq.gateway.gate import LOCAL_ORIGIN, REQUEST_ID, Gate
from dllama_zmq.gateway.messages.replies import CountReply, MessageReply
from dllama_zmq.gateway.messages.requests import CountRequest, MessagesRequest
from dllama_zmq.gateway.messages.route import ERRORS, count_tokens, messages
from dllama_zmq.gateway.openapi import openapi
from dllama_zmq.gateway.problems import Problem
from dllama_zmq.gateway.requests import ChatRequest, CompletionRequest
from dllama_zmq.gateway.responses.replies import ResponseReply
from dllama_zmq.gateway.responses.requests import ResponsesRequest
from dllama_zmq.gateway.responses.route import input_tokens, responses
from dllama_zmq.gateway.service import Service

PAGE = Path(__file__).parent / "page"
HEALTH = ["/health", "/v1/health"]
_PAGE_PATHS = {"/", *(f"/{path.relative_to(PAGE)}" for path in PAGE.rglob("*") if path.is_file())}

_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}

_CHAT = ["/v1/chat/completions", "/chat/completions"]
_CHAT_TOKENS = [f"{path}/input_tokens" for path in _CHAT]
_RESPONSES = ["/v1/responses", "/responses"]
_RESPONSES_TOKENS = [f"{path}/input_tokens" for path in _RESPONSES]
_COUNT = ["/v1/messages/count_tokens", "/messages/count_tokens"]
_TEXT = ["/v1/completions", "/completions"]

ROUTES = [
    Resource(HEALTH, about.health, gives=about.Health),
    Resource(["/v1/models", "/models"], about.models, gives=about.ModelList),
    Resource(["/v1/models/{name:path}", "/models/{name:path}"], about.one_model, gives=about.ModelEntry),
    Resource(["/v1/cluster"], about.cluster, gives=dict[str, Any], streams=dict[str, Any]),
    Resource(["/metrics"], about.metrics),
    Resource(_CHAT, chat.chat_completions, ChatRequest, replies.ChatReply, replies.ChatChunk),
    Resource(_CHAT_TOKENS, chat.input_tokens, ChatRequest, replies.InputTokens),
    Resource(_TEXT, completions, CompletionRequest, replies.CompletionReply, replies.CompletionReply),
    Resource(_RESPONSES, responses, ResponsesRequest, ResponseReply, dict[str, Any]),
    Resource(_RESPONSES_TOKENS, input_tokens, ResponsesRequest, replies.InputTokens),
    Resource(["/v1/messages", "/messages"], messages, MessagesRequest, MessageReply, dict[str, Any], ERRORS),
    Resource(_COUNT, count_tokens, CountRequest, CountReply, errors=ERRORS),
    Resource(["/v1/embeddings", "/embeddings"], texts.embeddings, texts.EmbeddingsRequest, texts.EmbeddingsReply),
    Resource(["/tokenize", "/v1/tokenize"], texts.tokenize, texts.TokenizeRequest, texts.TokenizeReply),
    Resource(["/detokenize", "/v1/detokenize"], texts.detokenize, texts.DetokenizeRequest, texts.DetokenizeReply),
    Resource(["/apply-template", "/v1/apply-template"], texts.apply_template, ChatRequest, texts.TemplateReply),
    Resource(["/props", "/v1/props"], texts.props, gives=texts.Props),
]


async def _document(call: Call[None]) -> Reply:
    """This document."""
    return Reply(openapi(ROUTES))


ROUTES.append(Resource(["/openapi.json"], _document, gives=dict[str, Any]))


def errors_at(path: str) -> ErrorForm:
    """The form of errors at `path`: that of the route at `path` or above it."""
    forms = {one: each.errors for each in ROUTES for one in each.paths}
    return next((form for one, form in forms.items() if path == one or path.startswith(f"{one}/")), OPENAI)


def application(service: Service) -> Starlette:
    """The application for `service`."""
    routes: list[BaseRoute] = [
        Route(path, Endpoint(service, one), methods=[one.method]) for one in ROUTES for path in one.paths
    ]
    routes.append(Mount("/", _Page(directory=PAGE, html=True, check_dir=False)))
    settings = service.settings
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_origin_regex=LOCAL_ORIGIN,
        allow_methods=["*"],
        allow_headers=["*"],
        allow_credentials=True,
        expose_headers=[*REQUEST_ID, "retry-after"],
    )
    gate = Middleware(
        Gate,
        keys=settings.keys,
        origins=settings.origins,
        open_paths={*HEALTH, *_PAGE_PATHS},
        errors_at=errors_at,
    )
    return Starlette(routes=routes, middleware=[cors, gate], exception_handlers={HTTPException: _refused})


class _Page(StaticFiles):
    """The files of the web page, with a policy that lets it run only its own scripts."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(_PAGE_HEADERS)
        return response


async def _refused(request: Request, error: Exception) -> Response:
    """The answer for an unknown path or a wrong method."""
    assert isinstance(error, HTTPException)
    path, status = request.url.path, error.status_code
    methods = {"GET", "HEAD"} if path in _PAGE_PATHS else set[str]()
    for route in request.app.routes:
        if isinstance(route, Route) and route.path_regex.match(path):
            methods |= route.methods or set()
    allowed = ", ".join(sorted(methods))
    if status in (404, 405):  # the page's files lie below every path, so only here are they told apart from routes
        status = 405 if methods else 404
    if status == 405:
        problem = Problem(405, f"{path:.200} is used with {allowed}, not {request.method:.20}")
    else:
        problem = Problem(status, f"there is no {path:.200} here" if status == 404 else error.detail)
    return error_reply(errors_at(path), problem, {"allow": allowed} if status == 405 else {})
