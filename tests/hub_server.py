"""A Hugging Face hub on this computer: repositories, a store on an address of its own, gates, and faults on request.

What it answers is what huggingface.co does (https://huggingface.co/docs/hub/api), so far as huggingface_hub looks.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_TestTokenThatNobodyMaySee"


@dataclass
class Repo:
    """Files by name. Those in `stored` lie in the large-file store, whose hash is SHA-256; the others are Git's own."""

    files: dict[str, bytes]
    stored: set[str] = field(default_factory=set)
    gated: bool = False
    private: bool = False
    listed_bytes: dict[str, int] = field(default_factory=dict)
    """Sizes that the listing says in place of the true ones."""

    def sha256(self, name: str) -> str:
        return hashlib.sha256(self.files[name]).hexdigest()

    def git_id(self, name: str) -> str:
        data = self.files[name]
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def siblings(self) -> list[dict[str, object]]:
        entries = []
        for name, data in self.files.items():
            n_bytes = self.listed_bytes.get(name, len(data))
            entry: dict[str, object] = {"rfilename": name, "size": n_bytes, "blobId": self.git_id(name)}
            if name in self.stored:
                entry["lfs"] = {"sha256": self.sha256(name), "size": n_bytes, "pointerSize": 130}
            entries.append(entry)
        return entries


@dataclass
class Faults:
    """What goes wrong, and how often it still does."""

    status: dict[str, list[int]] = field(default_factory=dict)
    """HTTP statuses that the next requests whose path contains a word get; 0: what they ask for."""
    headers: dict[str, str] = field(default_factory=dict)
    """What those answers have in their headers."""
    cut_after: list[int] = field(default_factory=list)
    """After how many bytes of the next bodies from the store the connection ends."""
    hold_after: int | None = None
    """After how many bytes of a body the store says nothing more, until `let_go`."""
    hold_all: bool = False
    """Requests to the hub are not answered until `let_go`."""
    corrupt: bool = False
    no_ranges: bool = False
    let_go: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Request:
    """What somebody asked."""

    method: str
    path: str
    headers: dict[str, str]


class Hub:
    """The hub at `url` and its store at `store_url`, an address of its own as a CDN has."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.requests: list[Request] = []
        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), self._handler(serve)) for serve in (_hub, _store)]
        self.url, self.store_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def start(self) -> None:
        for server in self._servers:
            server.daemon_threads = True
            server.block_on_close = False
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        self.faults.let_go.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def fetched(self) -> list[str]:
        """Ranges ("" for all) of the files that were asked for with GET, in order, each with its file's name."""
        return [
            f"{unquote(request.path).split('/resolve/')[1].split('/', 1)[1]} {request.headers.get('range', '')}".strip()
            for request in self.requests
            if request.method == "GET" and "/resolve/" in request.path
        ]

    def _handler(self, serve: object) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                hub.requests.append(Request(self.command, self.path, headers))
                try:
                    serve(hub, self, headers)  # type: ignore[operator]
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            do_GET = do_HEAD = _answer

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def _hub(hub: Hub, request: BaseHTTPRequestHandler, headers: dict[str, str]) -> None:
    path = unquote(urlsplit(request.path).path)
    if hub.faults.hold_all:
        hub.faults.held.set()
        hub.faults.let_go.wait(60)
    for word, statuses in hub.faults.status.items():
        if word in path and statuses and (status := statuses.pop(0)):
            return _send(request, status, b"<html>fault</html>", hub.faults.headers)
    if listing := re.fullmatch(r"/api/models/(.+?)/revision/(.+)", path):
        repo = _seen(hub, listing[1], headers)
        if repo is None:
            return _send(
                request, 401, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            )
        if listing[2] not in ("main", COMMIT, "refs/pr/1"):
            return _send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        model = {"id": listing[1], "sha": COMMIT, "siblings": repo.siblings(), "gated": repo.gated, "tags": []}
        return _send(request, 200, json.dumps(model).encode(), {"Content-Type": "application/json"})
    if file := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
        repo = _seen(hub, file[1], headers)
        if repo is None:
            return _send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        if repo.gated and headers.get("authorization") != f"Bearer {TOKEN}":
            status = 403 if "authorization" in headers else 401
            return _send(
                request, status, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
            )
        if file[3] not in repo.files:
            return _send(request, 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        known = {"X-Repo-Commit": COMMIT}
        if file[3] in repo.stored:
            known |= {"X-Linked-ETag": f'"{repo.sha256(file[3])}"', "X-Linked-Size": str(len(repo.files[file[3]]))}
            return _send(
                request, 302, b"", known | {"Location": f"{hub.store_url}/{file[1]}!{file[3]}?signature=secret"}
            )
        known |= {"ETag": f'"{repo.git_id(file[3])}"'}
        return _send(request, 200, _damaged(hub, repo.files[file[3]]), known)
    return _send(request, 404, b"{}")


def _store(hub: Hub, request: BaseHTTPRequestHandler, headers: dict[str, str]) -> None:
    repo, _, name = unquote(urlsplit(request.path).path)[1:].partition("!")
    data, faults = hub.repos[repo].files[name], hub.faults
    data = _damaged(hub, data)
    status, known = 200, {}
    if (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))) and not faults.no_ranges:
        first, last = int(asked[1]), int(asked[2] or len(data) - 1)
        known = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        status, data = 206, data[first : last + 1]
    _head(request, status, len(data), known)
    if faults.cut_after:
        request.wfile.write(data[: faults.cut_after.pop(0)])
        request.close_connection = True
        return
    if faults.hold_after is not None and len(data) > faults.hold_after:
        request.wfile.write(data[: faults.hold_after])
        request.wfile.flush()
        faults.held.set()
        faults.let_go.wait(60)
        data = data[faults.hold_after :]
    request.wfile.write(data)


def _damaged(hub: Hub, data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:] if hub.faults.corrupt else data


def _seen(hub: Hub, name: str, headers: dict[str, str]) -> Repo | None:
    """A repository, where whoever asks may know of it."""
    repo = hub.repos.get(name)
    hidden = repo is not None and repo.private and headers.get("authorization") != f"Bearer {TOKEN}"
    return None if hidden else repo


def _send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    _head(request, status, len(body), headers or {})
    if request.command != "HEAD":
        request.wfile.write(body)


def _head(request: BaseHTTPRequestHandler, status: int, n_bytes: int, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in ({"Content-Length": str(n_bytes), "Accept-Ranges": "bytes"} | headers).items():
        request.send_header(name, value)
    request.end_headers()


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that is up, without repositories; down at the end."""
    hub = Hub()
    hub.start()
    try:
        yield hub
    finally:
        hub.stop()
