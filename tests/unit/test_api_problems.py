"""Which error of this package is which status of the API."""

from __future__ import annotations

import msgspec
import pytest

from dllama_zmq import errors
from dllama_zmq.gateway.problems import Problem


@pytest.mark.parametrize(
    ("error", "status", "kind", "retry"),
    [
        (errors.RequestError("x"), 400, "invalid_request_error", False),
        (errors.ProtocolError("x"), 400, "invalid_request_error", False),
        (errors.ContextExceeded.of(900, 512, 512), 400, "exceed_context_size_error", False),
        (errors.QueueFull("x"), 429, "rate_limit_error", True),
        (errors.NotReady("x"), 503, "unavailable_error", True),
        (errors.ClusterError("x"), 503, "unavailable_error", True),
        (errors.RootLost("x"), 503, "unavailable_error", True),
        (errors.WorkerLost("x"), 503, "unavailable_error", True),
        (errors.RemoteError("worker1", "x"), 500, "server_error", False),
        (errors.ClusterDefect("x"), 500, "server_error", False),
        (ValueError("secret"), 500, "server_error", False),
    ],
)
def test_an_error_has_its_status_and_says_whether_to_try_again(
    error: Exception, status: int, kind: str, retry: bool
) -> None:
    problem = Problem.of(error)
    body = msgspec.to_builtins(problem.reply())["error"]
    assert (problem.status, body["code"], body["type"]) == (status, status, kind)
    assert ("retry-after" in problem.headers) == retry
    assert "secret" not in body["message"]
    assert ("n_ctx" in body) == isinstance(error, errors.ContextExceeded)


def test_too_long_a_prompt_is_refused_with_numbers() -> None:
    body = msgspec.to_builtins(Problem.of(errors.ContextExceeded.of(900, 512, 512)).reply())["error"]
    assert (body["n_prompt_tokens"], body["n_ctx"]) == (900, 512)
