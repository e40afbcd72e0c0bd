"""The command line as a user has it: real processes, real sockets, every wait with a deadline."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from surroundings import free_ports
from tiny import tiny_spec, tiny_tensors, tiny_tokenizer_data

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import Status
from dllama_zmq.cli.app import app
from dllama_zmq.cli.wrong_use import exit_code
from dllama_zmq.formats import write_m, write_t
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType

HOME_VARIABLE = "DLLAMA_ZMQ_HOME"
Process = subprocess.Popen[bytes]

SMALL = tiny_spec(dim=256, hidden_dim=512, n_heads=8, n_kv_heads=8, seq_len=2048, weight_type=FloatType.Q40)
"""8 heads, so that 1, 2, 4 and 8 nodes are possible; positions enough to be killed in mid-answer."""


def write_small_model(path: Path) -> Path:
    """Write SMALL to `path` and its vocabulary beside it: a greedy answer of it never ends before its last position."""
    data = tiny_tokenizer_data(SMALL.vocab_size)
    silent = [*data.eos_ids, *range(3, 259)]  # bytes too, so that answers are words; the best of the others is above 0

    def tensors() -> Iterator[tuple[str, BlockMatrix]]:
        for name, matrix in tiny_tensors(SMALL, seed=7):
            if name != "head":
                yield name, matrix
                continue
            values = matrix.dequantize()
            values[silent] = 0
            yield name, BlockMatrix.from_array(values, matrix.float_type)

    write_m(path, SMALL, tensors())
    write_t(path.with_suffix(".t"), data)
    return path


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def said(self) -> str:
        """Everything, for the message of a failed assert."""
        return f"exit code {self.code} after {self.seconds:.1f} s\n--- stdout\n{self.out}\n--- stderr\n{self.err}"

    def error(self, code: int = 1) -> str:
        """The one sentence of a command that failed with `code`; there is no other line that looks like an error."""
        assert self.code == code, self.said
        assert "Traceback" not in self.out + self.err, self.said
        assert "defect" not in self.err, self.said
        assert self.err.count("error: ") == 1, self.said
        last = self.err.splitlines()[-1]
        assert last.startswith("error: "), self.said
        return last.removeprefix("error: ")


class Cli:
    """`dllama-zmq` in the folder of one cluster.yaml, with a DLLAMA_ZMQ_HOME of its own."""

    def __init__(self, home: Path, folder: Path, model: Path) -> None:
        self.home, self.folder, self.model = home, folder, model
        self.ports: dict[str, int] = {}

    @property
    def log_folder(self) -> Path:
        return self.home / "logs" / "small"

    def write(self, n_nodes: int = 1, **keys: Any) -> Path:
        """cluster.yaml for `n_nodes` on free ports, with `keys` in place of what it would say."""
        self.ports = dict(zip(("replies", "steps", "clients"), free_ports(3), strict=True))
        cluster = {
            "name": "small",
            "model": str(self.model),
            "root": {"ports": self.ports},
            "workers": [{"name": f"worker{i}"} for i in range(1, n_nodes)],
            "limits": {"join_s": 30, "load_s": 30, "step_s": 20},
            "api": False,  # a process less to start
        }
        if "host" in keys:
            cluster["root"] = {"host": keys.pop("host"), "ports": self.ports}
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(cluster | keys))
        return path

    @contextmanager
    def started(
        self, *words: str, stdin: int = subprocess.DEVNULL, code: str | None = None, **env: str
    ) -> Iterator[Process]:
        """A command that is running; killed at the end of the block where it still is.

        code: Python that runs the command line, in place of the package's.
        """
        program = ["-m", "dllama_zmq"] if code is None else ["-c", code]
        process = subprocess.Popen(
            [sys.executable, *program, *words],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
            env=self.environment(**env),
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()

    def run(self, *words: str, stdin: str | bytes | None = None, wait_s: float = 60.0, **env: str) -> Result:
        """A command from start to end, which comes within `wait_s`."""
        start = time.monotonic()
        given = stdin.encode() if isinstance(stdin, str) else stdin
        with self.started(*words, stdin=subprocess.DEVNULL if given is None else subprocess.PIPE, **env) as process:
            return finish(process, wait_s, start, given)

    def run_here(self, *words: str, **env: str) -> Result:
        """As `run`, in this process: for what is refused, and for a cluster of which something else is the claim. It
        takes a tenth of the CPU."""
        start, out, err = time.monotonic(), io.StringIO(), io.StringIO()
        before, stdin = dict(os.environ), sys.stdin
        os.environ |= {HOME_VARIABLE: str(self.home), **env}
        try:
            with Path(os.devnull).open() as sys.stdin, chdir(self.folder), redirect_stdout(out), redirect_stderr(err):
                code = exit_code(app, words)
        finally:
            sys.stdin = stdin
            os.environ.clear()
            os.environ |= before
        return Result(code, out.getvalue(), err.getvalue(), time.monotonic() - start)

    def up(self, n_nodes: int = 1, **keys: Any) -> Result:
        """Write cluster.yaml and bring it up, by a command in this process."""
        self.write(n_nodes, **keys)
        result = self.run_here("up")
        assert result.code == 0, result.said
        return result

    def generate(self, *words: str, **keys: Any) -> Result:
        """A greedy answer that must come."""
        result = self.run("generate", "once upon a time", "--temp", "0", *words, **keys)
        assert result.code == 0, result.said
        return result

    def down(self) -> Result:
        """Take the cluster down by a command in this process, which must work."""
        result = self.run_here("down")
        assert result.code == 0, result.said
        return result

    def client(self) -> Client:
        """A client of the running cluster, in this process."""
        return Client(f"ipc://{self.home}/run/small/clients.sock")

    def status(self) -> Status:
        """The running cluster's status, asked in this process: much faster than by a command."""
        with self.client() as client:
            return client.status(wait_s=20.0)

    def pid(self, node: str) -> int:
        """The process of a node of the running cluster."""
        return next(row.pid for row in self.status().nodes if row.name == node)

    def processes(self) -> list[psutil.Process]:
        """Every process with this DLLAMA_ZMQ_HOME, except this one."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            if int(folder.name) != os.getpid() and self._is_home_of(folder):
                with suppress(psutil.NoSuchProcess):
                    found.append(psutil.Process(int(folder.name)))
        return found

    def processes_of(self, word: str) -> list[psutil.Process]:
        """Those that have this word in their command line. One that ends meanwhile has none."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if word in process.cmdline():
                    found.append(process)
        return found

    def _is_home_of(self, process: Path) -> bool:
        """Whether a folder of /proc is of a process with this home; psutil takes ten times as long to say."""
        try:
            return f"{HOME_VARIABLE}={self.home}".encode() in (process / "environ").read_bytes().split(b"\0")
        except OSError:
            return False

    def sockets(self) -> list[Path]:
        """Socket files of clusters in this home."""
        return sorted(path for path in self.home.rglob("*") if path.is_socket())

    def end_what_is_left(self) -> list[str]:
        """Kill every process of this home, by pid; what was there, socket files too, as words."""
        with suppress(TimeoutError):
            until(lambda: not self.processes(), 20.0, "every process to end")
        left = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                left.append(f"process {process.pid}: {' '.join(process.cmdline())}")
                process.kill()
        return left + [f"socket {path}" for path in self.sockets()]

    def environment(self, **env: str) -> dict[str, str]:
        """This process's environment with this home, with `env`."""
        return {**os.environ, HOME_VARIABLE: str(self.home), **env}


@contextmanager
def short_home() -> Iterator[Path]:
    """A DLLAMA_ZMQ_HOME in /tmp, for the paths of sockets must be short; removed at the end."""
    home = Path(tempfile.mkdtemp(prefix="dz-", dir="/tmp"))
    try:
        yield home
    finally:
        shutil.rmtree(home)


@contextmanager
def clean_cli(folder: Path, model: Path) -> Iterator[Cli]:
    """A Cli in `folder`. AssertionError at the end where a process or a socket is left behind; processes are killed."""
    with short_home() as home:
        cli = Cli(home, folder, model)
        try:
            yield cli
        finally:
            left = cli.end_what_is_left()
        assert not left, "left behind:\n" + "\n".join(left)


def finish(process: Process, wait_s: float, start: float, stdin: bytes | None = None) -> Result:
    """Wait for the end of `process`, which was started at `start`; what was read of it before is not in the result."""
    try:
        out, err = process.communicate(stdin, timeout=wait_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args!r} did not end within {wait_s} s\n{out!r}\n{err!r}") from None
    return Result(process.returncode, out.decode(), err.decode(), time.monotonic() - start)


def read_some(process: Process, n_bytes: int, wait_s: float = 30.0) -> bytes:
    """At least `n_bytes` of what the process writes to stdout, as soon as they are there."""
    assert process.stdout is not None
    deadline, data = time.monotonic() + wait_s, b""
    while len(data) < n_bytes:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"only {data!r} within {wait_s} s"
        piece = os.read(process.stdout.fileno(), 65536)
        assert piece, f"the output ended after {data!r}"
        data += piece
    return data


def await_words(process: Process, words: str, wait_s: float = 30.0) -> str:
    """What the process has written to stderr, and no call has read, when it has written `words`."""
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    said = b""

    def has_said() -> bool:
        nonlocal said
        said += process.stderr.read() or b""  # type: ignore[union-attr]
        return words.encode() in said

    try:
        until(has_said, wait_s, words)
    except TimeoutError as error:
        raise AssertionError(f"{error}; it has said\n{said.decode()}") from None
    return said.decode()


def until(condition: Callable[[], object], wait_s: float, what: str) -> float:
    """Wait for `condition` to hold; seconds that it took. Raises TimeoutError."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() > start + wait_s:
            raise TimeoutError(f"waited {wait_s} s for {what}")
        time.sleep(0.02)  # between two looks
    return time.monotonic() - start


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that a test started."""
    assert pid > 0, "a node that is not there has process 0; a signal to that goes to all processes of these tests"
    os.kill(pid, number)


def json_object(text: str) -> dict[str, Any]:
    """The one JSON object that `text` is, on one line."""
    assert text.endswith("\n"), text
    assert text.count("\n") == 1, text
    found = json.loads(text)
    assert isinstance(found, dict)
    return found
