"""What faults of workers do to requests: 4 nodes on this computer, 3 clients, and each fault many times.

    python tools/make_model.py --shape tinyllama --layers 4 t.m --tokenizer t.t
    python tools/fault_table.py t.m --times 20

Each run has a cluster of its own. Its texts must be those of an undisturbed run, byte for byte, within a time limit,
and no process and no page may remain. The table has, as median / maximum in seconds: the time from the (last) fault
until the root's log names the lost worker, and the longest time for which no client got a token or prompt progress.
Ends with exit code 1 where a run failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import Done, Piece, Prefill
from dllama_zmq.errors import DllamaError
from dllama_zmq.sampling import Sampling

N_CLIENTS, N_NODES, N_TOKENS, N_WORDS = 3, 4, 100, 150
UP_S, RUN_S, DOWN_S, SOON_S = 120.0, 120.0, 20.0, 30.0
LOOK_S = 0.005
FAULTY, OTHER = "worker2", "worker3"
LOST = "{name} (was lost|did not answer)|lost {name}:|did not answer .*{name}"


class Failed(Exception):
    """A run did not go as it should."""


@dataclass
class Run:
    """One cluster with its clients. `moments`: when any of them got a token, or progress of its prompt."""

    home: Path
    address: str
    texts: list[str] = field(default_factory=lambda: [""] * N_CLIENTS)
    n_pieces: list[int] = field(default_factory=lambda: [0] * N_CLIENTS)
    errors: list[str] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    faults: list[tuple[float, str]] = field(default_factory=list)
    seen: list[tuple[float, str]] = field(default_factory=list)  # lines of the root's log, and when they were read

    def command(self, *words: str, wait_s: float) -> None:
        """Run a command of the package. Raises Failed."""
        call = [sys.executable, "-m", "dllama_zmq", *words]
        environment = {**os.environ, "DLLAMA_ZMQ_HOME": str(self.home)}
        try:
            subprocess.run(call, cwd=self.home, env=environment, timeout=wait_s, check=True, capture_output=True)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
            raise Failed(f"{words[0]}: {error}; {error.stderr!r}") from None

    def ask(self, i: int) -> None:
        """Client number i: from its request to the end of the answer."""
        prompt = " ".join(f"{word} {i}" for word in range(N_WORDS))
        try:
            with Client(self.address) as client:
                sampling = Sampling(0.8 * (i % 2), 0.95, seed=i)
                for answer in client.generate(prompt, N_TOKENS, sampling, ignore_eos=True):
                    if isinstance(answer, Piece | Prefill):
                        self.moments.append(time.monotonic())
                    if isinstance(answer, Piece):
                        self.n_pieces[i] += 1
                    if isinstance(answer, Piece | Done):
                        self.texts[i] += answer.text
        except DllamaError as error:
            self.errors.append(f"client {i}: {type(error).__name__}: {error}")

    def processes(self, word: str = "dllama_zmq") -> list[int]:
        """Every process of this run that lives and has `word` in its command."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                ours = process.environ().get("DLLAMA_ZMQ_HOME") == str(self.home) and word in process.cmdline()
                found += [process.pid] if ours and process.status() != psutil.STATUS_ZOMBIE else []
        return found

    def pid(self, name: str) -> int:
        """The process of a worker; 0 where there is none."""
        return next(iter(self.processes(name)), 0)

    def signal(self, number: int, *names: str) -> list[int]:
        """Send a signal to workers: a fault. Returns their processes."""
        pids = [self.pid(name) for name in names]
        self.faults += [(time.monotonic(), name) for name in names]
        for pid in pids:
            os.kill(pid, number)
        return pids

    def follow_log(self, ended: threading.Event) -> None:
        """Read the root's log until `ended`."""
        with (self.home / "logs" / "faults" / "root.log").open() as log:
            while not ended.wait(LOOK_S):
                self.seen += [(time.monotonic(), line) for line in log]

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for `condition`. Raises Failed."""
        deadline = time.monotonic() + SOON_S
        while not condition():
            if time.monotonic() > deadline or self.errors:
                raise Failed(f"{what}: not within {SOON_S:.0f} s; {self.errors}")
            time.sleep(LOOK_S)  # between two looks

    def known_s(self) -> float | None:
        """Seconds from the last fault of each worker to the first line after it that says so; the longest."""
        last = {name: at for at, name in self.faults}
        times = []
        for name, since in last.items():
            pattern = re.compile(LOST.format(name=name) + f"|starting again {name}:")
            times += [at - since for at, line in self.seen if at > since and pattern.search(line)][:1]
        return max(times, default=None)

    def silence_s(self) -> float:
        """The longest time without a token or progress for any client, of the gaps that end after the first fault."""
        since = self.faults[0][0] if self.faults else 0.0
        ordered = sorted(self.moments)
        return max((b - a for a, b in pairwise(ordered) if b > since), default=0.0)


def decoding(run: Run) -> bool:
    """Whether every client has some tokens."""
    return min(run.n_pieces) >= 5


def killed(moment: Callable[[Run], object], *names: str) -> Callable[[Run], None]:
    """Kill workers at a moment."""

    def fault(run: Run) -> None:
        run.until(lambda: moment(run), "the moment to kill")
        run.signal(signal.SIGKILL, *names)

    return fault


def killed_again(moment: Callable[[Run, int], object]) -> Callable[[Run], None]:
    """Kill a worker, and the process that is started in its place at a moment of that."""

    def fault(run: Run) -> None:
        run.until(lambda: decoding(run), "tokens")
        (before,) = run.signal(signal.SIGKILL, FAULTY)
        run.until(lambda: (pid := run.pid(FAULTY)) not in (0, before) and moment(run, pid), "the moment to kill again")
        run.signal(signal.SIGKILL, FAULTY)

    return fault


def stopped(seconds: float | None) -> Callable[[Run], None]:
    """Stop a worker, forever where seconds is None."""

    def fault(run: Run) -> None:
        run.until(lambda: decoding(run), "tokens")
        (pid,) = run.signal(signal.SIGSTOP, FAULTY)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    return fault


FAULTS: dict[str, Callable[[Run], None]] = {
    "kill -9 in a prompt": killed(lambda run: run.moments, FAULTY),
    "kill -9 in decoding": killed(decoding, FAULTY),
    "kill -9, again while it loads": killed_again(lambda run, pid: any(f" pid={pid} " in line for _, line in run.seen)),
    "kill -9, again before it joins": killed_again(lambda run, pid: True),
    "kill -9 of two at once": killed(decoding, FAULTY, OTHER),
    "SIGSTOP for 1 s": stopped(1.0),
    "SIGSTOP for 5 s": stopped(5.0),
    "SIGSTOP forever": stopped(None),
}


def run_once(model: Path, fault: Callable[[Run], None]) -> Run:
    """A cluster from `up` to `down`, with three requests and a fault. Raises Failed."""
    home = Path(tempfile.mkdtemp(prefix="dzf-", dir="/tmp"))  # short, for the paths of sockets
    run, ended = Run(home, f"ipc://{home}/run/faults/clients.sock"), threading.Event()
    workers = "".join(f"  - name: worker{i}\n" for i in range(1, N_NODES))
    (home / "cluster.yaml").write_text(f"name: faults\nmodel: {model.resolve()}\nworkers:\n{workers}")
    try:
        run.command("up", wait_s=UP_S)
        clients = [threading.Thread(target=run.ask, args=(i,), daemon=True) for i in range(N_CLIENTS)]
        for thread in (*clients, threading.Thread(target=run.follow_log, args=(ended,), daemon=True)):
            thread.start()
        fault(run)
        deadline = time.monotonic() + RUN_S
        for thread in clients:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in clients) or run.errors:
            raise Failed(f"{run.n_pieces} tokens after {RUN_S:.0f} s; {run.errors}")
        with Client(run.address) as client:
            status = client.status()
        if (status.active, status.queued, status.kv.in_use) != (0, 0, 0):
            raise Failed(f"left: {status.active} active, {status.queued} queued, {status.kv.in_use} pages")
        run.command("down", wait_s=DOWN_S)
        if left := run.processes():
            raise Failed(f"left: {left}")
    finally:
        ended.set()
        for pid in run.processes():
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
    return run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description="Faults of workers, and what requests notice of them.")
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--times", type=int, default=20, metavar="N")
    parser.add_argument("--only", default="", metavar="WORDS", help="rows that have these words")
    args = parser.parse_args(argv)
    whole, n_failed = run_once(args.model, lambda run: None).texts, 0
    print("| fault | runs | texts equal | known after s | silence s |\n| :-- | --: | --: | --: | --: |", flush=True)
    for name, fault in ((name, fault) for name, fault in FAULTS.items() if args.only in name):
        known, silent, n_equal = [], [], 0
        for _ in range(args.times):
            try:
                run = run_once(args.model, fault)
            except Failed as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                continue
            n_equal += run.texts == whole
            silent.append(run.silence_s())
            known += [] if (seconds := run.known_s()) is None else [seconds]
        n_failed += args.times - n_equal
        figures = [f"{statistics.median(x):.2f} / {max(x):.2f}" if x else "-" for x in (known, silent)]
        print(f"| {name} | {args.times} | {n_equal} | {' | '.join(figures)} |", flush=True)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
