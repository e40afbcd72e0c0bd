"""Ask the computers whose workers are started over ssh, before anything is started: is this version installed there?

All are asked at once. Every question has a deadline, and every error is a sentence about one worker.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from msgspec import Struct

from dllama_zmq import __version__
from dllama_zmq.cluster import ClusterFile
from dllama_zmq.errors import ClusterError, TrustError
from dllama_zmq.launch import ssh
from dllama_zmq.launch.locks import POLL_S
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.reporting import Reporter
from dllama_zmq.trust import Role, check_public
from dllama_zmq.trust.learned import Entry, keep

ANSWER_S = 30.0
"""Seconds for every computer to answer a question: ssh itself waits 10 s for a connection."""
_MAX_BYTES = 1 << 20
_VERSION = re.compile(r"^dllama-zmq (\S+)$", re.MULTILINE)


class Job(Struct, frozen=True):
    """A command line for the shell of a worker's computer, and the file that is its stdin."""

    worker: WorkerConfig
    line: str
    stdin: Path = Path("/dev/null")


class Outcome(Struct, frozen=True):
    """How a job ended. trouble: why ssh failed; empty if it did not."""

    worker: WorkerConfig
    code: int
    out: str
    err: str
    trouble: str


def over_ssh(file: ClusterFile) -> list[WorkerConfig]:
    """The workers of a cluster that its root starts over ssh."""
    return [worker for worker in file.cluster.workers if worker.ssh]


def check_computers(file: ClusterFile, reporter: Reporter) -> None:
    """Ask every computer whose worker is started over ssh for its version and, if the bus is encrypted, its public key.

    The keys are stored, so that the root admits these workers. Raises ClusterError with a sentence for each worker that
    cannot be started, and what to do.
    """
    workers = over_ssh(file)
    if not workers:
        return
    questions = [["--version"], *([["keygen"]] if file.cluster.secured else [])]
    jobs = [Job(worker, ssh.dllama_line(*questions)) for worker in workers]
    outcomes = run_all(jobs, ANSWER_S, lambda names: reporter.activity(f"asking {', '.join(names)} over ssh"))
    raise_all(_problem(outcome, file) for outcome in outcomes)
    if file.cluster.secured:
        raise_all(_keep_key(outcome, file) for outcome in outcomes)


def raise_all(problems: Iterable[str]) -> None:
    """Raise ClusterError with every problem that is not empty."""
    if found := [problem for problem in problems if problem]:
        raise ClusterError("; ".join(found))


def _problem(outcome: Outcome, file: ClusterFile) -> str:
    """Why this worker cannot be started; empty if it can."""
    name, cure = outcome.worker.name, f"`{file.command('up --install')}` puts {__version__} there"
    if outcome.trouble:
        return f"{name}: {outcome.trouble}"
    if outcome.code == ssh.NOT_FOUND:
        return f"{name}: dllama-zmq is not installed at {outcome.worker.destination}: {cure}"
    found = _VERSION.search(outcome.out)
    if found is not None and found[1] != __version__:
        return f"{name}: {outcome.worker.destination} has dllama-zmq {found[1]} and this computer {__version__}: {cure}"
    if outcome.code != 0 or found is None:
        said = (outcome.err or outcome.out).strip().splitlines()[-1:] or [f"exit code {outcome.code}"]
        return f"{name}: dllama-zmq at {outcome.worker.destination} does not run ({said[0]}): {cure}"
    return ""


def _keep_key(outcome: Outcome, file: ClusterFile) -> str:
    """Store the worker's public key, which `keygen` printed last. Returns why it cannot be stored; empty if it was."""
    worker = outcome.worker
    try:
        public = check_public(outcome.out.rstrip().rpartition("\n")[2])
    except TrustError as error:
        return f"{worker.name}: {worker.destination}: {error}"
    if worker.key is not None and worker.key != public:
        return (
            f"{worker.name}: the key at {worker.destination} is {public}, and {file.path} has another one: write this "
            "one there if that computer has a new key, or take `key:` out"
        )
    keep(file.cluster.name, Entry(Role.worker, worker.name, public))
    return ""


def run_all(jobs: Sequence[Job], wait_s: float, waiting: Callable[[list[str]], None]) -> list[Outcome]:
    """Run the jobs at once, each over its own connection. A job that has not ended after `wait_s` is cut off.

    waiting: called with the names of the workers that have not answered. Raises ClusterError if ssh is not installed.
    """
    with ExitStack() as cleanup:
        running = []
        for job in jobs:
            out = cleanup.enter_context(tempfile.TemporaryFile())
            err = cleanup.enter_context(tempfile.TemporaryFile())
            running.append(_Running(job, out, err))
            cleanup.callback(running[-1].end)
        deadline = time.monotonic() + wait_s
        while names := [one.job.worker.name for one in running if one.process.poll() is None]:
            if time.monotonic() > deadline:
                break
            waiting(names)
            time.sleep(POLL_S)
        return [one.outcome(wait_s) for one in running]


class _Running:
    def __init__(self, job: Job, out: IO[bytes], err: IO[bytes]) -> None:
        self.job, self._out, self._err = job, out, err
        command = ssh.command(job.worker.destination, job.line)
        with job.stdin.open("rb") as stdin:
            self.process = subprocess.Popen(command, stdin=stdin, stdout=out, stderr=err, start_new_session=True)

    def outcome(self, wait_s: float) -> Outcome:
        """How it ended; None while it runs."""
        code = self.process.poll()
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read(_MAX_BYTES).decode(errors="replace"))
        trouble = ""
        if code is None:
            trouble = f"ssh {self.job.worker.destination}: no answer within {wait_s:.0f} s: try it by hand"
        elif code == ssh.FAILED:
            trouble = ssh.failure(self.job.worker.destination, texts[1])
        return Outcome(self.job.worker, ssh.FAILED if code is None else code, texts[0], texts[1], trouble)

    def end(self) -> None:
        """Cut it off if it runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
