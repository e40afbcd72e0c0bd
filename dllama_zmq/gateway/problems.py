"""Errors for clients of the API: a status and a body in OpenAI's form."""

from __future__ import annotations

import logging

import msgspec

from dllama_zmq.errors import (
    BusError,
    ClusterError,
    ContextExceeded,
    DllamaError,
    ProtocolError,
    QueueFull,
    RemoteError,
    RequestError,
)

logger = logging.getLogger(__name__)

RETRY_S = 2
"""Seconds after which a request may be tried again that came while nodes were missing or loading."""
_BUSY_S = 1
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
}
"""The type of an error by its status."""


class ErrorBody(msgspec.Struct):
    """n_prompt_tokens, n_ctx: only if the prompt is longer than the context."""

    message: str
    type: str
    param: str | None
    code: int | str
    n_prompt_tokens: int | msgspec.UnsetType = msgspec.UNSET
    n_ctx: int | msgspec.UnsetType = msgspec.UNSET


class ErrorReply(msgspec.Struct):
    """The body of every error."""

    error: ErrorBody


class Problem(Exception):
    """An error that ends a request with `status`. param: the field of the request that is wrong."""

    def __init__(
        self, status: int, message: str, param: str | None = None, kind: str = "", retry_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param = status, param
        self.kind = kind or TYPES[status]
        self.retry_s = retry_s
        self.numbers: tuple[int, int] | None = None

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """The problem for `error`. An unexpected error is a defect, and is logged."""
        if isinstance(error, Problem):
            return error
        text = str(error)
        if isinstance(error, ContextExceeded):
            # LangChain and LiteLLM recognize this error by Anthropic's words at its beginning.
            problem = cls(400, f"prompt is too long: {text}", kind="exceed_context_size_error")
            problem.numbers = error.numbers
            return problem
        if isinstance(error, QueueFull):
            return cls(429, text, retry_s=_BUSY_S)
        if isinstance(error, RequestError | ProtocolError):
            return cls(400, text)
        if isinstance(error, ClusterError) or (isinstance(error, BusError) and not isinstance(error, RemoteError)):
            return cls(503, text, retry_s=RETRY_S)
        if isinstance(error, DllamaError):
            return cls(500, text)
        logger.error("a request failed", exc_info=error)
        return cls(500, f"{type(error).__name__}; the log of the API server (`dllama-zmq logs gateway`) has more")

    @property
    def headers(self) -> dict[str, str]:
        """Additional headers of the answer."""
        headers = {} if self.retry_s is None else {"retry-after": str(self.retry_s)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def reply(self) -> ErrorReply:
        """The body."""
        n_prompt, n_ctx = self.numbers or (msgspec.UNSET, msgspec.UNSET)
        return ErrorReply(ErrorBody(str(self), self.kind, self.param, self.status, n_prompt, n_ctx))
