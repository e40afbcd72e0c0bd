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
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from fault_requests import Failed, Requests, figures, follow, until

from dllama_zmq import Client

N_NODES = 4
UP_S, RUN_S, DOWN_S, SOON_S = 120.0, 120.0, 20.0, 30.0
FAULTY, OTHER = "worker2", "worker3"
LOST = "{name} (was lost|did not answer)|lost {name}:|did not answer .*{name}"


@dataclass
class Run:
    """One cluster with its clients."""

    home: Path
    requests: Requests
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

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for `condition`. Raises Failed, also where a request has failed."""
        until(lambda: condition() or self.requests.errors, SOON_S, what)
        if self.requests.errors:
            raise Failed(f"{what}: {self.requests.errors}")

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
        return self.requests.silence_s(self.faults[0][0] if self.faults else 0.0)


def killed(moment: Callable[[Run], object], *names: str) -> Callable[[Run], None]:
    """Kill workers at a moment."""

    def fault(run: Run) -> None:
        run.until(lambda: moment(run), "the moment to kill")
        run.signal(signal.SIGKILL, *names)

    return fault


def killed_again(moment: Callable[[Run, int], object]) -> Callable[[Run], None]:
    """Kill a worker, and the process that is started in its place at a moment of that."""

    def fault(run: Run) -> None:
        run.until(lambda: run.requests.decode, "tokens")
        (before,) = run.signal(signal.SIGKILL, FAULTY)
        run.until(lambda: (pid := run.pid(FAULTY)) not in (0, before) and moment(run, pid), "the moment to kill again")
        run.signal(signal.SIGKILL, FAULTY)

    return fault


def stopped(seconds: float | None) -> Callable[[Run], None]:
    """Stop a worker, forever where seconds is None."""

    def fault(run: Run) -> None:
        run.until(lambda: run.requests.decode, "tokens")
        (pid,) = run.signal(signal.SIGSTOP, FAULTY)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(pid, signal.SIGCONT)

    return fault


FAULTS: dict[str, Callable[[Run], None]] = {
    "kill -9 in a prompt": killed(lambda run: run.requests.moments, FAULTY),
    "kill -9 in decoding": killed(lambda run: run.requests.decode, FAULTY),
    "kill -9, again while it loads": killed_again(lambda run, pid: any(f" pid={pid} " in line for _, line in run.seen)),
    "kill -9, again before it joins": killed_again(lambda run, pid: True),
    "kill -9 of two at once": killed(lambda run: run.requests.decode, FAULTY, OTHER),
    "SIGSTOP for 1 s": stopped(1.0),
    "SIGSTOP for 5 s": stopped(5.0),
    "SIGSTOP forever": stopped(None),
}


def run_once(model: Path, fault: Callable[[Run], None]) -> Run:
    """A cluster from `up` to `down`, with three requests and a fault. Raises Failed."""
    home = Path(tempfile.mkdtemp(prefix="dzf-", dir="/tmp"))  # short, for the paths of sockets
    requests = Requests(f"ipc://{home}/run/faults/clients.sock")
    run, ended = Run(home, requests), threading.Event()
    workers = "".join(f"  - name: worker{i}\n" for i in range(1, N_NODES))
    (home / "cluster.yaml").write_text(f"name: faults\nmodel: {model.resolve()}\nworkers:\n{workers}")
    try:
        run.command("up", wait_s=UP_S)
        log = home / "logs" / "faults" / "root.log"
        threading.Thread(target=follow, args=(log, run.seen, ended), daemon=True).start()
        requests.start()
        fault(run)
        requests.finish(RUN_S)
        if requests.errors:
            raise Failed(str(requests.errors))
        with Client(requests.address) as client:
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
    whole, n_failed = run_once(args.model, lambda run: None).requests.texts, 0
    print("| fault | runs | texts equal | known after s | silence s |\n| :-- | --: | --: | --: | --: |", flush=True)
    for name, fault in ((name, fault) for name, fault in FAULTS.items() if args.only in name):
        known, silent, n_equal = [], [], 0
        for _ in range(args.times):
            try:
                run = run_once(args.model, fault)
            except Failed as error:
                print(f"{name}: {error}", file=sys.stderr, flush=True)
                continue
            n_equal += run.requests.texts == whole
            silent.append(run.silence_s())
            known += [] if (seconds := run.known_s()) is None else [seconds]
        n_failed += args.times - n_equal
        print(f"| {name} | {args.times} | {n_equal} | {figures(known, silent)} |", flush=True)
    return 1 if n_failed else 0


if __name__ == "__main__":
    sys.exit(main())
