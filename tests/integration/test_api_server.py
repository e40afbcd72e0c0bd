"""The life of the API server: its port, its start, its end, and what it says while the cluster forms."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from command_line import Cli, gone, kill, until
from integration.answers import NOTICE_S
from integration.api import NO_TLS, SOON_S, error_of
from surroundings import free_ports


def server_of(cli: Cli) -> psutil.Process:
    """The process of the API server."""
    (found,) = cli.processes_of("gateway")
    return found


def get(port: int, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=SOON_S, verify=NO_TLS)


def health(port: int) -> tuple[int, dict[str, Any]]:
    reply = get(port, "/health")
    return reply.status_code, dict(reply.json())


def post(port: int, **fields: Any) -> httpx.Response:
    return httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=fields, timeout=SOON_S, verify=NO_TLS)


def test_a_cluster_says_where_its_api_is_and_starts_it_again(cli: Cli) -> None:
    (port,) = free_ports(1)
    said = cli.up(2, api={"port": port}).err
    url = f"http://127.0.0.1:{port}"
    assert f"chat and API at {url}" in said
    assert url in cli.run("status").out
    assert f"127.0.0.1:{port}" in cli.run("ps").out
    assert json.loads(cli.run("ps", "--json").out)["clusters"][0]["api"] == url
    assert get(port, "/v1/cluster").json()["api"] == json.loads(cli.run("status", "--json").out)["api"] == url
    first = server_of(cli)
    assert "Started server process" in cli.run("logs", "gateway").out
    for number in range(2):  # at once, then after a second
        kill(server_of(cli).pid)
        assert post(port, prompt="once", max_tokens=2).status_code == 200, number  # it waits for the next
    assert server_of(cli).pid != first.pid
    assert "starting the API server again: it ended with signal 9" in cli.run("logs", "root").out
    cli.down()
    with pytest.raises(httpx.ConnectError):
        get(port, "/health")


def test_a_worker_that_is_gone_is_named_until_it_is_back(cli: Cli) -> None:
    (port,) = free_ports(1)
    cli.up(2, api={"port": port})
    assert health(port)[0] == 200
    worker = psutil.Process(cli.pid("worker1"))
    worker.suspend()  # frozen, in an idle cluster
    body: dict[str, Any] = {}

    def noticed() -> bool:
        nonlocal body
        status, body = health(port)
        return status == 503

    until(noticed, NOTICE_S, "the frozen worker to be noticed")
    assert "worker1" in body["error"]["message"]
    assert body["error"]["type"] == "unavailable_error"
    assert [node["name"] for node in body["nodes"] if node["state"] != "ready"] == ["worker1"]
    refused = post(port, prompt="once")
    if refused.status_code == 503:  # it may be back by now
        assert int(refused.headers["retry-after"]) >= 1
        assert error_of(refused)["type"] == "unavailable_error"
    with suppress(psutil.NoSuchProcess):  # its root kills it too, some seconds later
        worker.kill()
    until(lambda: health(port)[0] == 200, SOON_S, "the worker to be started again")
    assert post(port, prompt="once", max_tokens=2).status_code == 200
    cli.down()


def test_a_root_that_hangs_is_named(cli: Cli) -> None:
    (port,) = free_ports(1)
    cli.up(1, api={"port": port}, limits={"step_s": 1})
    root = psutil.Process(cli.pid("root"))
    root.suspend()
    until(lambda: health(port)[0] == 503, NOTICE_S, "the root's silence to be noticed")
    assert "the root has been in one step" in health(port)[1]["error"]["message"]
    root.resume()
    until(lambda: health(port)[0] == 200, SOON_S, "the root to be well again")
    cli.down()


def test_a_running_request_survives_a_worker_and_a_new_one_hears_when_to_retry(cli: Cli) -> None:
    (port,) = free_ports(1)
    cli.up(2, api={"port": port})
    expected = post(port, prompt="once", max_tokens=400, temperature=0).json()["choices"]
    body = {"prompt": "once", "max_tokens": 400, "temperature": 0, "stream": True}
    with httpx.stream(
        "POST", f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=SOON_S, verify=NO_TLS
    ) as reply:
        lines = reply.iter_lines()
        text = _text_of(next(lines))
        kill(cli.pid("worker1"))
        text += "".join(map(_text_of, lines))
    assert text == expected[0]["text"]
    cli.down()


def _text_of(line: str) -> str:
    if not line.startswith("data: {"):
        return ""
    return str(json.loads(line.removeprefix("data: "))["choices"][0]["text"])


def test_a_port_that_is_taken_is_named_before_anything_starts(cli: Cli) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as holder:
        port = holder.getsockname()[1]
        cli.write(1, api={"port": port})
        for words in (["up"], ["up", "--foreground"]):
            result = cli.run(*words)
            assert f"http://127.0.0.1:{port} is in use" in result.error(), result.said
    assert cli.processes() == []


def test_where_no_port_is_written_another_cluster_takes_the_next(cli: Cli, tmp_path: Path) -> None:
    cli.write(1, api=True)
    assert cli.run("up").code == 0
    (tmp_path / "other.yaml").write_text(f"name: other\nmodel: {cli.model}\n")
    assert cli.run("up", "other.yaml").code == 0
    found = {one["name"]: one["api"] for one in json.loads(cli.run("ps", "--json").out)["clusters"]}
    assert found["small"] != found["other"]
    for url in found.values():
        assert httpx.get(f"{url}/v1/models", timeout=SOON_S, verify=NO_TLS).json()["data"]
    assert cli.run("down", "other.yaml").code == 0
    cli.down()


def test_the_cluster_of_a_call_and_one_with_api_off_have_none(cli: Cli) -> None:
    cli.up(1, api=False)
    assert cli.processes_of("gateway") == []
    assert json.loads(cli.run("status", "--json").out)["api"] == ""
    cli.down()
    cli.write(1, api=True)
    cli.generate("-n", "2")
    assert not (cli.log_folder / "gateway.log").exists()


@pytest.mark.parametrize(
    ("api", "words"),
    [
        ({"host": "0.0.0.0"}, "can be reached from a network, and has no key"),
        ({"host": "0.0.0.0", "keys": ["short"]}, "8 to 256 letters"),
        ({"keys": "nowhere.txt"}, "nowhere.txt cannot be read"),
        ({"port": 0}, "a port number, 1 to 65535"),
    ],
)
def test_a_server_that_would_be_open_to_all_is_refused(cli: Cli, api: dict[str, Any], words: str) -> None:
    cli.write(1, api=api)
    assert words in cli.run_here("up").error()


def test_a_file_without_a_key_is_refused(cli: Cli) -> None:
    (cli.folder / "keys.txt").write_text("# none yet\n")
    cli.write(1, api={"keys": "keys.txt"})
    assert "has no key" in cli.run_here("up").error()


def test_serve_is_a_cluster_in_the_foreground_with_its_api(cli: Cli) -> None:
    (port,) = free_ports(1)
    with cli.started("serve", str(cli.model), "--port", str(port), "--api-key", "sk-mine-0001") as process:

        def answers() -> bool:
            with suppress(httpx.TransportError):
                return health(port)[0] == 200
            return False

        until(answers, SOON_S, "the API to be there")
        assert get(port, "/v1/models").status_code == 401
        key = {"authorization": "Bearer sk-mine-0001"}
        assert (
            httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=key, verify=NO_TLS).json()["data"][0]["id"]
            == "small"
        )
        assert "sk-mine" not in " ".join(server_of(cli).cmdline())
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON_S) == 0
    until(lambda: not cli.processes(), SOON_S, "all processes to end")
    assert "give --api-key KEY too" in cli.run_here("serve", str(cli.model), "--host", "0.0.0.0").error(2)


def test_the_server_ends_with_its_root_however_that_ends(cli: Cli) -> None:
    (port,) = free_ports(1)
    cli.up(1, api={"port": port})
    server, root = server_of(cli).pid, cli.pid("root")
    os.kill(root, signal.SIGKILL)
    until(lambda: gone(server), SOON_S, "the API server to end")
    with closing(socket.socket()) as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        until(lambda: again.connect_ex(("127.0.0.1", port)) != 0, SOON_S, "the port to be free")
    cli.run("down")


def test_while_it_loads_the_api_says_so(cli: Cli) -> None:
    (port,) = free_ports(1)
    cli.write(2, api={"port": port}, workers=[{"name": "worker1", "host": "127.0.0.2"}])
    with cli.started("up", "--foreground") as process:

        def forming() -> bool:
            with suppress(httpx.TransportError):
                return "worker1" in str(health(port)[1])
            return False

        until(forming, SOON_S, "the API to be there")
        assert health(port)[0] == 503
        assert health(port)[1]["nodes"]
        process.send_signal(signal.SIGINT)
        assert process.wait(SOON_S) == 0
