"""Two computers, played by network namespaces: one command on each, and from the second all that the first can do.

Linux, root and iproute2 only; the same commands over loopback are in other tests.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from command_line import Process, json_object, short_home, until

ROOT, WORKER = "10.77.0.1", "10.77.0.2"

pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="network namespaces need root and ip"),
]


class Computer:
    """A network namespace with a home and a folder of its own."""

    def __init__(self, namespace: str, home: Path, folder: Path) -> None:
        self._namespace, self._home, self._folder = namespace, home, folder

    def start(self, *words: str) -> Process:
        """A command that is running; it is ended by its root, by itself, or by the test."""
        prefix = ["ip", "netns", "exec", self._namespace, sys.executable, "-m", "dllama_zmq"]
        return subprocess.Popen(
            [*prefix, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=self._folder, env={**os.environ, "DLLAMA_ZMQ_HOME": str(self._home)},
        )  # fmt: skip

    def run(self, *words: str, wait_s: float = 60.0) -> str:
        """What a command that must work prints to stdout."""
        process = self.start(*words)
        out, err = process.communicate(timeout=wait_s)
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
def running(process: Process) -> Iterator[None]:
    """A process that goes on until the end of the block: a worker outlives its root."""
    try:
        yield
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=15)


def test_one_command_on_each_of_two_computers_is_enough(
    computers: tuple[Computer, Computer], small_model: Path
) -> None:
    first, second = computers
    with running(second.start("worker", ROOT)):
        for _ in range(2):  # the worker stays, and joins the root that comes next
            first.run("up", "-m", str(small_model), "--workers", WORKER)
            text = first.run("generate", "once upon a time", "-n", "8", "--temp", "0")
            assert second.run("generate", "--connect", ROOT, "once upon a time", "-n", "8", "--temp", "0") == text
            status = json_object(second.run("status", "--connect", f"{ROOT}:5572", "--json"))
            assert [node["address"] for node in status["nodes"]] == ["", WORKER]
            assert WORKER in second.run("status", "--connect", ROOT)
            second.run("down", "--connect", ROOT)
            until(lambda: json_object(first.run("ps", "--json"))["clusters"] == [], 15.0, "the root to be down")
