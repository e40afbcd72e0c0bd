"""What the tests find around them does not depend on where they were started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq
from contexts import a_context
from surroundings import free_ports

TESTS = Path(__file__).parents[1]
CHILD = """
import json, os, signal
names = ["HOME", "DLLAMA_ZMQ_HOME", "XDG_CACHE_HOME", "COLUMNS", "NO_COLOR", "HF_TOKEN", "https_proxy", "TERM",
    "PYTHONDONTWRITEBYTECODE", "PYTHONPATH"]
print(json.dumps({
    "ignored": [number.name for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_IGN],
    "blocked": [number.name for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    **{name: os.environ.get(name) for name in names},
}))
"""
PARENT = f"""
import subprocess, sys
from pathlib import Path
import surroundings
surroundings.set_signals()
surroundings.set_environment(Path(sys.argv[1]), Path(sys.argv[1]) / "kernels")
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
"""


def test_processes_have_the_same_signals_and_variables_wherever_the_tests_were_started(tmp_path: Path) -> None:
    unusual = {
        "HOME": "/nowhere",
        "DLLAMA_ZMQ_HOME": "/nowhere",
        "XDG_CACHE_HOME": "/nowhere",
        "COLUMNS": "9",
        "NO_COLOR": "1",
        "HF_TOKEN": "secret",
        "https_proxy": "http://192.0.2.1",
        "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": str(TESTS),
    }
    in_background = ["sh", "-c", 'trap "" INT HUP; exec "$@"', "sh", sys.executable, "-c", PARENT, str(tmp_path)]
    found = subprocess.run(in_background, env=os.environ | unusual, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == {
        "ignored": [],
        "blocked": [],
        "HOME": str(tmp_path),
        "DLLAMA_ZMQ_HOME": str(tmp_path / "clusters"),
        "XDG_CACHE_HOME": None,
        "COLUMNS": None,
        "NO_COLOR": None,
        "HF_TOKEN": None,
        "https_proxy": None,
        "TERM": "xterm",
        "PYTHONDONTWRITEBYTECODE": None,
        "PYTHONPATH": str(TESTS),
    }


def test_no_two_tests_at_a_time_get_the_same_port() -> None:
    code = "import json, surroundings; print(json.dumps([surroundings.free_ports(1)[0] for _ in range(50)]))"

    def ports_of_another_process(_: int) -> list[int]:
        words = [sys.executable, "-c", code]
        environment = os.environ | {"PYTHONPATH": str(TESTS)}
        ports = json.loads(subprocess.run(words, env=environment, capture_output=True, check=True, timeout=60).stdout)
        assert isinstance(ports, list)
        return ports

    with ThreadPoolExecutor(2) as pool:
        others = list(pool.map(ports_of_another_process, range(2)))
    ports = [*free_ports(50), *others[0], *others[1]]
    assert len(set(ports)) == 150


def test_a_socket_that_a_test_left_is_closed_and_named_and_hangs_nobody() -> None:
    def leave_one(error: Exception | None = None) -> None:
        context.socket(zmq.PULL).bind("inproc://left")  # and let go: pyzmq would warn of it before it closes it
        if error is not None:
            raise error

    with pytest.raises(AssertionError, match=r"left open: .*PULL"), a_context(wait_s=0.1) as context:
        leave_one()
    with pytest.raises(KeyError), a_context(wait_s=0.1) as context:  # the error of the test itself is raised
        leave_one(KeyError())
