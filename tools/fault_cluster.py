"""A cluster whose nodes are in network namespaces of this computer, each started again whenever it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from fault_requests import Failed, follow, until
from namespaces import Computer

UP_S, SOON_S = 120.0, 30.0
LOST = "{name} (was lost|did not answer|is not there)|lost {name}:|did not answer .*{name}"
READY, LOADED = re.compile(r"ready workers="), re.compile(r"loaded (\w+) bytes=\d+ sent=(\d+)")
LIBFAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"  # Debian's
AGAIN = 'while :; do "$@"; sleep 0.2; done'


@dataclass
class Node:
    """A computer, and what is started again there whenever it ends."""

    computer: Computer
    home: Path
    log: Path
    words: Sequence[str] = ()
    clocks: bool = False
    loop: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return f"worker{self.computer.node}"

    @property
    def clock(self) -> Path:
        """The file that says by how much CLOCK_REALTIME is off here, where clocks can be set; no other clock is."""
        return self.home / "clock"

    def command(self, *words: str) -> list[str]:
        """A command of the package on this computer. (`ip netns exec` would hide the control groups.)"""
        return ["nsenter", f"--net=/run/netns/{self.computer.name}", *words]

    def output_of(self, *words: str) -> str:
        """What a command of the package prints here."""
        call = self.command(sys.executable, "-m", "dllama_zmq", *words)
        environment = {**os.environ, "DLLAMA_ZMQ_HOME": str(self.home)}
        return subprocess.run(call, env=environment, timeout=SOON_S, check=True, capture_output=True, text=True).stdout

    def start(self, *before: str) -> None:
        """Begin to start it. before: the beginning of its command, such as a limit."""
        call = self.command("bash", "-c", AGAIN, "again", *before, sys.executable, "-m", "dllama_zmq", *self.words)
        environment = {**os.environ, "DLLAMA_ZMQ_HOME": str(self.home)}
        if self.clocks:
            environment |= {"LD_PRELOAD": LIBFAKETIME, "FAKETIME_TIMESTAMP_FILE": str(self.clock)}
            environment |= {"FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        with self.log.open("ab") as log:
            self.loop = subprocess.Popen(
                call, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the node, which is started again when it has ended."""
        os.kill(self.process().pid, number)

    def process(self) -> psutil.Process:
        """The node's process. Raises Failed."""
        assert self.loop is not None
        for child in psutil.Process(self.loop.pid).children():
            with suppress(psutil.Error):
                if "dllama_zmq" in child.cmdline():
                    return child
        raise Failed(f"{self.name} does not run")

    def end(self) -> None:
        """Kill it and its loop, all at once."""
        if self.loop is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.loop.pid, signal.SIGKILL)
            self.loop.wait()
        self.loop = None


@dataclass
class Cluster:
    """A root and its workers, on the computers of a network. seen: lines of the root's log, and when they were read."""

    model: Path
    root: Node
    workers: list[Node]
    faults: list[float] = field(default_factory=list)
    seen: list[tuple[float, str]] = field(default_factory=list)
    others: list[Cluster] = field(default_factory=list)

    @property
    def faulty(self) -> Node:
        """The worker that the fault is of."""
        return self.workers[1]

    @property
    def address(self) -> str:
        """Where clients of the root's computer reach it."""
        return f"ipc://{self.root.home}/run/{self.root.log.stem}/clients.sock"

    def lines(self, pattern: re.Pattern[str]) -> list[tuple[float, re.Match[str]]]:
        """The matches in the root's log since the last fault."""
        since = self.faults[-1] if self.faults else 0.0
        return [(at - since, found) for at, line in self.seen if at > since and (found := pattern.search(line))]

    def fault(self) -> None:
        """The fault is now."""
        self.faults.append(time.monotonic())

    def known_s(self) -> list[float]:
        return [at for at, _ in self.lines(re.compile(LOST.format(name=self.faulty.name)))][:1]

    def whole_s(self) -> list[float]:
        return [at for at, _ in self.lines(READY)][-1:]

    def n_ready(self) -> int:
        return sum(READY.search(line) is not None for _, line in self.seen)

    def is_whole(self) -> bool:
        """Whether every node is ready, by the last word of the root's log."""
        lost = re.compile(LOST.format(name="worker\\d"))
        last = [READY.search(line) is not None for _, line in self.seen if READY.search(line) or lost.search(line)]
        return last[-1:] == [True]


@contextmanager
def cluster(
    model: Path, computers: Sequence[Computer], base: Path, rejoin_s: float, number: int, clocks: bool
) -> Iterator[Cluster]:
    """A cluster that is up, on these computers, number `number` there."""
    name = f"faults{number}"
    nodes = [Node(c, base / str(c.node), base / str(c.node) / f"{name}.log", (), clocks) for c in computers]
    for node in nodes:
        node.home.mkdir(exist_ok=True)
        node.log.touch()
        node.clock.write_text("+0")
    root, workers = nodes[0], nodes[1:]
    port = 5570 + 10 * number
    ports = f"{{replies: {port}, steps: {port + 1}, clients: {port + 2}}}"
    lines = [
        f"  - {{name: {w.name}, host: {w.computer.address}, key: '{w.output_of('keygen').strip()}'}}" for w in workers
    ]
    text = [f"name: {name}", f"model: {model.resolve()}", "api: off", f"limits: {{rejoin_s: {rejoin_s}}}"]
    text += [f"root: {{host: {computers[0].address}, threads: 1, ports: {ports}}}", "workers:", *lines]
    file = base / f"{name}.yaml"
    file.write_text("\n".join(text) + "\n")
    root.words = ["up", str(file), "--foreground"]
    key, where = root.output_of("keygen").strip(), f"{computers[0].address}:{port}"
    found, ended = Cluster(model, root, workers), threading.Event()
    reader = threading.Thread(target=follow, args=(root.log, found.seen, ended), daemon=True)
    try:
        for worker in workers:
            worker.words = ["worker", where, f"--root-key={key}", "-t", "1"]
            worker.start()
        root.start()
        reader.start()
        until(found.is_whole, UP_S, "the cluster to be up")
        yield found
    finally:
        ended.set()
        for node in nodes:
            node.end()
