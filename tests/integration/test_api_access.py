"""Who may use the API: keys, web pages of other servers, and the names by which it is called."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from integration.api import NO_TLS, Api, error_of, running_api

from dllama_zmq.gateway.app import HEALTH, PAGE, ROUTES, errors_at
from dllama_zmq.gateway.gate import Gate

KEY, OTHER = "sk-first-0001", "sk-second-0002"
PAGES = "http://192.168.1.20:3000"

TYPES = {".html": "html", ".js": "javascript", ".css": "css", ".svg": "svg+xml"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Api]:
    """With two keys, in a file beside that of the cluster."""
    folder = tmp_path_factory.mktemp("api")
    (folder / "keys.txt").write_text(f"# of two people\n{KEY}\n\n {OTHER} \n")
    with running_api(folder, small_model, keys="keys.txt") as api:
        yield api


@pytest.fixture(scope="module")
def open_api(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Api]:
    """Without a key, for this computer and the pages of another."""
    with running_api(tmp_path_factory.mktemp("api"), small_model, origins=[PAGES]) as api:
        yield api


def every_route() -> list[tuple[str, str]]:
    return [(one.method, path.replace("{name:path}", "small")) for one in ROUTES for path in one.paths]


@pytest.mark.parametrize(("method", "path"), every_route())
def test_every_route_but_health_needs_a_key(guarded: Api, method: str, path: str) -> None:
    reply = guarded.http.request(method, path, json=None if method == "GET" else {})
    if path in HEALTH:
        assert reply.status_code == 200
        return
    assert reply.status_code == 401
    assert error_of(reply)["type"] == "authentication_error"
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {OTHER}"},
        {"x-api-key": KEY},
    ],
)
def test_either_key_opens_it_in_either_header(guarded: Api, headers: dict[str, str]) -> None:
    assert guarded.http.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize("given", ["x", KEY[:-1], KEY + "x", KEY.upper(), "none", "\u00e9" * 9, f"{KEY},{OTHER}"])
def test_any_other_key_does_not(guarded: Api, given: str) -> None:
    headers = {"authorization": f"Bearer {given}".encode()}
    assert guarded.http.get("/v1/models", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_the_page_needs_no_key_and_may_run_only_its_own_scripts(guarded: Api) -> None:
    assert guarded.http.get("/").status_code == 200
    for path in PAGE.iterdir():
        reply = guarded.http.get(f"/{path.name}")
        assert reply.status_code == 200, path
        assert reply.content == path.read_bytes()
        assert reply.headers["content-type"].split(";")[0].split("/")[1] == TYPES[path.suffix]
        policy = reply.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "style-src 'self'"} <= set(policy)
        assert "require-trusted-types-for 'script'" in policy
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/../app.py", "/%2e%2e/app.py", "/..%2fapp.py", "//etc/passwd", "/%00"])
def test_no_other_file_is_served(open_api: Api, path: str) -> None:
    reply = httpx.Client(base_url=open_api.url, verify=NO_TLS).build_request("GET", "/")
    reply.url = reply.url.copy_with(raw_path=path.encode())
    with httpx.Client(verify=NO_TLS) as client:
        found = client.send(reply)
    assert found.status_code == 404, found.text


def preflight(api: Api, origin: str) -> httpx.Response:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    return api.http.options("/v1/chat/completions", headers={"origin": origin, **asked})


@pytest.mark.parametrize("origin", ["http://localhost:5173", "https://127.0.0.1", "http://[::1]:80", PAGES])
def test_pages_of_this_computer_and_of_those_that_are_written_may_use_it(open_api: Api, origin: str) -> None:
    reply = preflight(open_api, origin)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == origin
    assert "authorization" in reply.headers["access-control-allow-headers"].lower()
    found = open_api.http.get("/v1/models", headers={"origin": origin})
    assert (found.status_code, found.headers["access-control-allow-origin"]) == (200, origin)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example", "null"]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages"])
def test_pages_of_other_servers_may_not(open_api: Api, origin: str, path: str) -> None:
    assert preflight(open_api, origin).status_code == 400
    reply = open_api.http.post(path, content=b'{"prompt": "x"}', headers={"origin": origin})
    assert reply.status_code == 403
    assert "access-control-allow-origin" not in reply.headers
    error = error_of(reply)
    assert error["type"] == "permission_error"
    assert "origins:" in error["message"]


LOCAL = ["localhost", "[::1]:9990", "192.168.1.5"]


@pytest.mark.parametrize("host", [*LOCAL, "evil.example", ""])
def test_without_a_key_a_name_that_leads_here_is_not_enough(open_api: Api, host: str) -> None:
    status = 200 if host in LOCAL else 403
    assert open_api.http.get("/v1/models", headers={"host": host}).status_code == status


def test_every_key_is_compared_whatever_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    from starlette.datastructures import Headers

    compared: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, two: bytes) -> bool:
        compared.append((one, two))
        return one == two

    monkeypatch.setattr("dllama_zmq.gateway.gate.hmac.compare_digest", compare)

    async def app(*args: Any) -> None:
        """Answers nothing."""

    gate = Gate(app, [KEY, OTHER], [], [], errors_at)
    for given in (KEY, OTHER, "wrong"):
        gate._key(Headers({"authorization": f"Bearer {given}"}))
    assert [one for one, _ in compared] == [KEY.encode(), OTHER.encode()] * 3
