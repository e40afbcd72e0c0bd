"""Access to the API: keys, web pages of other servers, names of this server. And an id for each request.

Without a key, only this computer can reach the server. But there a web page could, through the browser: a page of
another server (seen by Origin), or of a name that resolves to this computer, DNS rebinding (seen by Host).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
from collections.abc import Callable, Collection, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dllama_zmq.gateway.endpoint import ErrorForm, error_reply
from dllama_zmq.gateway.problems import Problem

LOCAL_ORIGIN = r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?"
REQUEST_ID = ("x-request-id", "request-id")
"""The headers in which OpenAI's and Anthropic's clients look for a request's id."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Gate:
    """Passes requests on to `app`, each with its user's name in `state`."""

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[str],
        origins: Sequence[str],
        open_paths: Collection[str],
        errors_at: Callable[[str], ErrorForm],
    ) -> None:
        """open_paths: paths that need no key. errors_at: the form of errors at a path."""
        self._app, self._errors_at = app, errors_at
        self._keys = [key.encode() for key in keys]
        self._origins = set(origins)
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                named_headers = MutableHeaders(scope=message)
                for name in REQUEST_ID:
                    named_headers[name] = request_id
            await send(message)

        problem = self._problem(scope, headers)
        if problem is None:
            scope.setdefault("state", {})["user"] = self._user(scope, headers)
            await self._app(scope, receive, named)
            return
        await error_reply(self._errors_at(scope["path"]), problem)(scope, receive, named)

    def _problem(self, scope: Scope, headers: Headers) -> Problem | None:
        """Why this request is refused; None if it is not."""
        if self._keys:
            if self._key(headers) is None and scope["path"] not in self._open_paths:
                return Problem(401, "the API key is missing or not known; send it as `Authorization: Bearer KEY`")
            return None
        host = headers.get("host", "")
        if not _is_local_name(urlsplit(f"//{host}").hostname or ""):
            return Problem(
                403, f"this server is not called {host:.100}; call it localhost, or write `keys:` under `api:`"
            )
        origin = headers.get("origin")
        if origin is None or {"*", origin} & self._origins or re.fullmatch(LOCAL_ORIGIN, origin):
            return None
        return Problem(
            403, f"pages of {origin:.100} may not use this server; write it as one of `origins:` under `api:`"
        )

    def _key(self, headers: Headers) -> int | None:
        """The index of the request's key. All keys are compared, in a time that does not depend on the request's."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = (token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")).encode()
        matches = [hmac.compare_digest(key, given) for key in self._keys]
        return matches.index(True) if any(matches) else None

    def _user(self, scope: Scope, headers: Headers) -> str:
        """The user's name: by key, else by address."""
        key = self._key(headers) if self._keys else None
        client = scope.get("client")
        return f"key {key}" if key is not None else f"at {client[0] if client else ''}"


def _is_local_name(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True  # DNS rebinding cannot give a page such a name
