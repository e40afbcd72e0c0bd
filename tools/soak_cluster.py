"""A cluster of 4 nodes to disturb: its workers are killed and started again, its links are cut and mended.

In network namespaces each node has its own, an own key, and a bus under CURVE; this process starts workers again, 1 s
after they died. On loopback all workers are the root's, which starts them again, and there are no links to cut.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from msgspec.structs import replace
from namespaces import Computer

from dllama_zmq.formats.t_file import read_t, write_t
from dllama_zmq.sources import DATA_FOLDER, DEMO
from dllama_zmq.trust.files import HOME_VARIABLE

N_NODES = 4
UP_S, DOWN_S, AGAIN_S, GONE_S = 120.0, 30.0, 1.0, 10.0
CUTS_S = (1.0, 2.0, 4.0, 8.0)
_CHAT = "{% for m in messages %}{{ m.content }}\n{% endfor %}"  # the demo model continues texts


@dataclass
class SoakCluster:
    """Files and processes of the cluster are in `folder`, of node i in `folder`/node<i>. `faults`: when, and what."""

    folder: Path
    computers: Sequence[Computer]
    workers: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    faults: list[tuple[float, str]] = field(default_factory=list)
    root_key: str = ""
    root_pid: int = 0
    url: str = ""
    _died: dict[str, float] = field(default_factory=dict)
    _cut: list[tuple[float, Computer]] = field(default_factory=list)

    def command(self, node: int, *words: str) -> list[str]:
        """A command of the package on the computer of a node."""
        prefix = self.computers[node].prefix if self.computers else []
        return [*prefix, sys.executable, "-m", "dllama_zmq", *words]

    def environment(self, node: int) -> dict[str, str]:
        return {**os.environ, HOME_VARIABLE: str(self.folder / f"node{node}")}

    def run(self, node: int, *words: str, wait_s: float = 30.0) -> str:
        """What a command prints. Exits where it fails."""
        done = subprocess.run(
            self.command(node, *words),
            cwd=self.folder,
            env=self.environment(node),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=wait_s,
        )
        if done.returncode:
            sys.exit(f"dllama-zmq {words[0]} failed with exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def write(self) -> None:
        """The cluster's file, and a tokenizer with a chat template, which the demo model has not."""
        data = read_t(DATA_FOLDER / f"{DEMO}.t")
        write_t(self.folder / "chat.t", replace(data, chat_template=_CHAT))
        lines = [f"name: soak\nmodel: {DEMO}\ntokenizer: chat.t"]
        if self.computers:
            self.root_key = self.run(0, "keygen").strip()
            lines.append(f"root: {{host: {self.computers[0].address}, threads: 1}}\nworkers:")
            for node in range(1, N_NODES):
                host, key = self.computers[node].address, self.run(node, "keygen").strip()
                lines.append(f"  - {{name: worker{node}, host: {host}, key: '{key}'}}")
        else:
            lines.append("root: {threads: 1}\nworkers:")
            lines += [f"  - {{name: worker{node}, threads: 1}}" for node in range(1, N_NODES)]
        (self.folder / "cluster.yaml").write_text("\n".join(lines) + "\n")

    def start_worker(self, node: int) -> None:
        """Start the worker of a node in a namespace."""
        words = ["worker", self.computers[0].address, "--root-key", self.root_key, "--name", f"worker{node}", "-t", "1"]
        with (self.folder / f"worker{node}.log").open("ab") as log:
            self.workers[f"worker{node}"] = subprocess.Popen(
                self.command(node, *words), env=self.environment(node), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def worker_pids(self) -> dict[str, int]:
        """The processes of workers that live, by name."""
        if self.computers:
            return {name: worker.pid for name, worker in self.workers.items() if worker.poll() is None}
        names, pids = {f"worker{node}" for node in range(1, N_NODES)}, dict[str, int]()
        for child in psutil.Process(self.root_pid).children():
            with suppress(psutil.Error):
                pids |= dict.fromkeys(names & set(child.cmdline()), child.pid)
        return pids

    def kill(self, draw: random.Random) -> None:
        """Kill a worker."""
        pids = self.worker_pids()
        if pids:
            name = draw.choice(sorted(pids))
            self.faults.append((time.monotonic(), f"kill {name}"))
            os.kill(pids[name], signal.SIGKILL)

    def cut(self, draw: random.Random) -> None:
        """Cut the link of a node, the root's too."""
        seconds, computer = draw.choice(CUTS_S), draw.choice(self.computers)
        computer.cut()
        self.faults.append((time.monotonic(), f"cut node {computer.node} for {seconds:.0f} s"))
        self._cut.append((time.monotonic() + seconds, computer))

    def look(self) -> None:
        """Start workers again, and mend links, when it is time."""
        now = time.monotonic()
        for until, computer in [cut for cut in self._cut if cut[0] <= now]:
            computer.mend()
            self._cut.remove((until, computer))
        for name, worker in self.workers.items():
            if worker.poll() is not None and now >= self._died.setdefault(name, now) + AGAIN_S:
                del self._died[name]
                self.start_worker(int(name.removeprefix("worker")))

    def processes(self) -> list[int]:
        """All processes of this cluster."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get(HOME_VARIABLE, "").startswith(f"{self.folder}/")
                found += [process.pid] if ours and process.status() != psutil.STATUS_ZOMBIE else []
        return found


@contextmanager
def up(folder: Path, computers: Sequence[Computer]) -> Iterator[SoakCluster]:
    """The cluster, up; down after the block, when nothing of it may be left. Exits where that fails."""
    cluster = SoakCluster(folder, computers)
    cluster.write()
    with ExitStack() as stack:
        stack.callback(_kill_all, cluster)
        if computers:
            for node in range(1, N_NODES):
                cluster.start_worker(node)
        cluster.run(0, "up", wait_s=UP_S)
        status = json.loads(cluster.run(0, "status", "--json"))
        cluster.root_pid, cluster.url = status["pid"], status["api"]
        yield cluster
        cluster.run(0, "down", wait_s=DOWN_S)
        for worker in cluster.workers.values():
            worker.terminate()  # it waits for a root
            if worker.wait(GONE_S) not in (0, -signal.SIGTERM, 128 + signal.SIGTERM):
                sys.exit(f"a worker ended with exit code {worker.returncode}")
        if left := cluster.processes():
            sys.exit(f"these processes are left: {left}")


def _kill_all(cluster: SoakCluster) -> None:
    for pid in cluster.processes():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for worker in cluster.workers.values():
        worker.wait(GONE_S)
