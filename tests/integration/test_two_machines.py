"""Two computers, played by network namespaces: one command on each, and from the second all that the first can do.

Linux, root and iproute2 only; the same commands over loopback are in other tests.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from command_line import Process, await_words, json_object, short_home, until

ROOT, WORKER = "10.77.0.1", "10.77.0.2"

pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip"),
]


class Computer:
    """A network namespace with a home and a folder of its own."""

    def __init__(self, namespace: str, home: Path, folder: Path) -> None:
        self._prefix, self._home, self.folder = ["ip", "netns", "exec", namespace], home, folder

    def start(self, *words: str) -> Process:
        """A command that is running; it is ended by its root, by itself, or by the test."""
        command = [*self._prefix, sys.executable, "-m", "dllama_zmq", *words]
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env={**os.environ, "DLLAMA_ZMQ_HOME": str(self._home)},
        )

    def tcp_bytes(self) -> dict[str, int]:
        """What TCP has carried over the cable, "sent" and "received": what the interface counts, without headers.

        A packet has 14 bytes of Ethernet, 20 of IPv4, and 32 of TCP with its timestamps.
        """
        folder = "/sys/class/net/eth/statistics"
        names = [f"{way}_{what}" for way in ("tx", "rx") for what in ("bytes", "packets")]
        read = [*self._prefix, "cat", *(f"{folder}/{name}" for name in names)]
        done = subprocess.run(read, check=True, capture_output=True, text=True, timeout=60)
        sent, sent_packets, received, received_packets = map(int, done.stdout.split())
        return {"sent": sent - 66 * sent_packets, "received": received - 66 * received_packets}

    def run(self, *words: str, wait_s: float = 150.0) -> str:
        """What a command that must work prints to stdout."""
        with self.start(*words) as process:
            try:
                out, err = process.communicate(timeout=wait_s)
            finally:
                process.kill()
        assert process.returncode == 0, err.decode()
        return out.decode()


@pytest.fixture
def computers(tmp_path: Path) -> Iterator[tuple[Computer, Computer]]:
    """Two computers with a cable between them."""
    tag = secrets.token_hex(3)
    with ExitStack() as stack:
        found = []
        for end, address in (("a", ROOT), ("b", WORKER)):
            name = f"dz{tag}{end}"
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
            if end == "b":
                ip(
                    "link",
                    "add",
                    f"dz{tag}",
                    "netns",
                    f"dz{tag}a",
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth",
                    "netns",
                    name,
                )
                ip("-n", f"dz{tag}a", "link", "set", f"dz{tag}", "name", "eth")
            folder = tmp_path / end
            folder.mkdir()
            found.append((name, address, Computer(name, stack.enter_context(short_home()), folder)))
        for name, address, _ in found:
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth")
            ip("-n", name, "link", "set", "eth", "up")
        yield found[0][2], found[1][2]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def running(process: Process) -> Iterator[Process]:
    """A process that goes on until the end of the block: a worker outlives its root."""
    try:
        yield process
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=15)


@contextmanager
def joined(first: Computer, second: Computer, model: Path) -> Iterator[None]:
    """The cluster of both, up, with the worker that the line from `up` has started; the worker ends with the block."""
    up = first.start("up", "-m", str(model), "--workers", WORKER)
    printed = await_words(up, "worker --join ")
    if not printed.endswith("\n"):
        printed += await_words(up, "\n")
    (text,) = re.findall(rf"start on {WORKER}: dllama-zmq worker --join (\S+)", printed)
    with running(second.start("worker", "--join", text)):
        _, err = up.communicate(timeout=60)
        assert up.returncode == 0, err.decode()
        yield


def worker_is(first: Computer, state: str) -> None:
    """Wait until the root says so of its worker."""

    def found() -> bool:
        return bool(json_object(first.run("status", "--json"))["nodes"][1]["state"] == state)

    until(found, 30.0, f"the worker to be {state}")


def test_one_line_on_each_of_two_computers_is_enough(computers: tuple[Computer, Computer], small_model: Path) -> None:
    first, second = computers
    with joined(first, second, small_model):
        second.run("join", first.run("token", "laptop", "--client").split()[-1])
        for again in (True, False):  # the worker stays, and joins the root that comes next
            text = first.run("generate", "once upon a time", "-n", "8", "--temp", "0")
            assert second.run("generate", "--connect", ROOT, "once upon a time", "-n", "8", "--temp", "0") == text
            status = json_object(second.run("status", "--connect", f"{ROOT}:5572", "--json"))
            assert [node["address"] for node in status["nodes"]] == ["", WORKER]
            assert status["security"] == "curve"
            assert WORKER in second.run("status", "--connect", ROOT)
            second.run("down", "--connect", ROOT)
            until(lambda: json_object(first.run("ps", "--json"))["clusters"] == [], 15.0, "the root to be down")
            if again:
                first.run("up", "-m", str(small_model), "--workers", WORKER)


def test_an_open_bus_is_named_on_both_computers(computers: tuple[Computer, Computer], small_model: Path) -> None:
    first, second = computers
    text = f"model: {small_model}\nsecurity: none\nroot: {{host: {ROOT}}}\nworkers: [{{name: pi2, host: {WORKER}}}]\n"
    (first.folder / "cluster.yaml").write_text(text)
    (second.folder / "cluster.yaml").write_text(text)  # a copy of the file says it too
    with running(second.start("worker", ROOT, "--security", "none")):
        first.run("up")
        printed = first.run("generate", "once upon a time", "-n", "8", "--temp", "0")
        for words in (["--connect", ROOT, "--security", "none"], []):
            assert second.run("generate", *words, "once upon a time", "-n", "8", "--temp", "0") == printed
        first.run("down")


def test_a_key_that_is_removed_is_cut_off_while_the_cluster_runs_and_a_new_one_joins(
    computers: tuple[Computer, Computer], small_model: Path
) -> None:
    first, second = computers
    with joined(first, second, small_model):
        text = first.run("generate", "once upon a time", "-n", "8", "--temp", "0")
        first.run("keys", "--remove", "worker1")
        worker_is(first, "absent")
    with running(second.start("worker", ROOT)) as refused:
        assert "does not admit the key of this computer" in await_words(refused, "does not admit the key")
        worker_is(first, "absent")
    second.run("keygen", "--new")
    token = first.run("token", "worker1").split()[-1]
    with running(second.start("worker", "--join", token)):
        worker_is(first, "ready")
        assert first.run("generate", "once upon a time", "-n", "8", "--temp", "0") == text
        first.run("down")


def test_a_key_that_is_changed_in_the_file_changes_who_may_join_while_the_cluster_runs(
    computers: tuple[Computer, Computer], small_model: Path
) -> None:
    first, second = computers

    def write(key: str) -> None:
        worker = f"{{name: pi2, host: {WORKER}, key: '{key}'}}"
        (first.folder / "cluster.yaml").write_text(
            f"model: {small_model}\nroot: {{host: {ROOT}}}\nworkers: [{worker}]\n"
        )

    write(second.run("keygen").strip())
    root_key = ["--root-key", first.run("keygen").strip()]
    with running(second.start("worker", ROOT, *root_key)):
        first.run("up")
        write(second.run("keygen", "--new").strip())  # the worker that runs has the old one
        worker_is(first, "absent")
    with running(second.start("worker", ROOT, *root_key)):
        worker_is(first, "ready")
        first.run("down")


@pytest.mark.parametrize("security", ["curve", "none"])
def test_the_bytes_that_netstat_counts_and_predicts_are_those_on_the_interface(
    computers: tuple[Computer, Computer], security: str
) -> None:
    first, second = computers
    worker = f"{{name: pi2, host: {WORKER}, key: '{second.run('keygen').strip()}'}}"
    text = f"model: demo\nsecurity: {security}\napi: off\nroot: {{host: {ROOT}}}\nworkers: [{worker}]\n"
    (first.folder / "cluster.yaml").write_text(text)
    how = ["--root-key", first.run("keygen").strip()] if security == "curve" else ["--security", "none"]
    predicted = json_object(first.run("netstat", "--predict", "demo", "--nodes", "2", "--security", security, "--json"))
    flow = predicted["one_worker"]["flows"]["total_greedy"]
    with running(second.start("worker", ROOT, *how)):
        first.run("up")
        assert json_object(first.run("status", "--json"))["security"] == security
        began, before = first.tcp_bytes(), wire_bytes(first)
        answer = json_object(first.run("generate", "Once upon a time", "-n", "200", "--temp", "0", "--json"))
        ended, after = first.tcp_bytes(), wire_bytes(first)
        first.run("down")
    n_tokens = sum(answer["stats"][phase]["tokens"] for phase in ("prompt", "prediction"))
    for way in ("sent", "received"):
        carried = ended[way] - began[way]
        assert carried == pytest.approx(after[way] - before[way], rel=0.03), way  # heartbeats are not counted
        assert carried == pytest.approx(n_tokens * flow[f"{way}_wire_bytes"], rel=0.03), way


def wire_bytes(root: Computer) -> dict[str, int]:
    """What netstat has counted so far, of all workers and kinds; by direction."""
    report = json_object(root.run("netstat", "--json"))
    assert report["agrees"] is not False
    lines = [line for worker in report["workers"] for phase in worker["phases"].values() for line in phase]
    lines = [line for line in lines if line["kind"] != "total"] + [x for one in report["workers"] for x in one["setup"]]
    return {way: sum(line["wire_bytes"] for line in lines if line["direction"] == way) for way in ("sent", "received")}
