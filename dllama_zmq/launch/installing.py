"""`up --install`: puts this version and its dependencies into a virtual environment on the workers' computers.

The wheel is built from the code that runs here. Its dependencies come from the package index of the other computer's
pip. If that computer reaches no index, pip here fetches wheels that fit it, and they are sent too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from dllama_zmq import __version__
from dllama_zmq.cluster import ClusterFile
from dllama_zmq.errors import ClusterError
from dllama_zmq.launch import installer_there, ssh
from dllama_zmq.launch.installer_there import NO_PACKAGES, NO_VENV
from dllama_zmq.launch.own_wheel import write_own_wheel
from dllama_zmq.launch.remote import Job, Outcome, over_ssh, raise_all, run_all
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.reporting import Reporter

_INSTALL_S = 1800.0  # a Pi with a slow SD card and a slow line
_FETCH_S = 900.0
_NO_PYTHON = 3

_SCRIPT = (
    "for p in python3 python3.14 python3.13 python3.12 python3.11; do "
    'if "$p" -c "import sys; sys.exit(sys.version_info < (3, 11))" </dev/null 2>/dev/null; '
    f'then exec "$p" -c "$@"; fi; done; exit {_NO_PYTHON}'
)


class _Tags(msgspec.Struct, frozen=True):
    """The wheels that fit a computer, as its installer prints them."""

    platforms: list[str]
    abis: list[str]
    python: str
    implementation: str


def install(file: ClusterFile, reporter: Reporter) -> None:
    """Install this version on every computer whose worker is started over ssh. Where it is installed, nothing changes.

    Raises ClusterError with a sentence for each worker for which that failed, and what to do.
    """
    workers = over_ssh(file)
    if not workers:
        raise ClusterError(
            f"{file.path}: --install needs a worker that is started over ssh, and the file has none; write one like "
            "`- {name: pi2, ssh: pi@192.168.1.11}`"
        )
    with tempfile.TemporaryDirectory(prefix="dllama-zmq-") as folder:
        wheel = write_own_wheel(Path(folder))
        progress = _installing(reporter)
        outcomes = _install(workers, [wheel], "index", progress)
        short = [outcome for outcome in outcomes if outcome.code == NO_PACKAGES]
        raise_all(_problem(outcome) for outcome in outcomes if outcome not in short)
        problems = []
        for outcome in short:
            name = outcome.worker.name
            reporter.line(f"{name} reaches no package index: {_pip_error(outcome.err)}; fetching its packages here")
            wheels = Path(folder) / name
            try:
                _fetch(wheel, outcome, wheels, reporter)
            except ClusterError as error:
                problems.append(str(error))
                continue
            problems += map(_problem, _install([outcome.worker], sorted(wheels.glob("*.whl")), "sent", progress))
        raise_all(problems)
    reporter.line(f"dllama-zmq {__version__} is installed for {', '.join(worker.name for worker in workers)}")


def _installing(reporter: Reporter) -> Callable[[list[str]], None]:
    return lambda names: reporter.activity(f"installing dllama-zmq {__version__} for {', '.join(names)}")


def _install(
    workers: Sequence[WorkerConfig],
    wheels: Sequence[Path],
    source: Literal["index", "sent"],
    waiting: Callable[[list[str]], None],
) -> list[Outcome]:
    """Send `wheels` and install the first of them, which is this package; `source` as in `installer_there`."""
    own = next(wheel.name for wheel in wheels if wheel.name.startswith("dllama_zmq-"))
    with tempfile.NamedTemporaryFile(prefix="dllama-zmq-", suffix=".tar") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            for wheel in wheels:
                tar.add(wheel, wheel.name)
        file.flush()
        text = Path(installer_there.__file__).read_text()
        line = ssh.shell_line(_SCRIPT, text, own, source)
        return run_all([Job(worker, line, Path(file.name)) for worker in workers], _INSTALL_S, waiting)


def _problem(outcome: Outcome) -> str:
    """Why nothing was installed; empty if it was."""
    name, to = outcome.worker.name, outcome.worker.destination
    if outcome.trouble:
        return f"{name}: {outcome.trouble}"
    if outcome.code == _NO_PYTHON:
        return (
            f"{name}: there is no Python 3.11 or newer at {to}: install it there (Debian or Raspberry Pi OS 12 and "
            f"newer: ssh -t {to} sudo apt install python3 python3-venv)"
        )
    if outcome.code == NO_VENV:
        return (
            f"{name}: Python at {to} can make no virtual environment ({_last_line(outcome.err)}): on Debian, "
            f"ssh -t {to} sudo apt install python3-venv"
        )
    if outcome.code != 0:
        return f"{name}: dllama-zmq cannot be installed at {to} ({_pip_error(outcome.err)})"
    return ""


def _fetch(wheel: Path, outcome: Outcome, folder: Path, reporter: Reporter) -> None:
    """Put the wheel and all its dependencies, as that computer needs them, into `folder`. Raises ClusterError."""
    name = outcome.worker.name
    try:
        tags = msgspec.convert(json.loads(outcome.out.strip().splitlines()[-1]), _Tags)
    except (ValueError, IndexError):
        raise ClusterError(
            f"{name}: pip at {outcome.worker.destination} does not say what fits it ({_pip_error(outcome.err)})"
        ) from None
    reporter.activity(f"fetching what dllama-zmq needs on {name}")
    words = ["--implementation", tags.implementation, "--python-version", tags.python, "--only-binary", ":all:"]
    words += [word for abi in tags.abis for word in ("--abi", abi)]
    words += [word for platform in tags.platforms for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--quiet"]
    try:
        done = subprocess.run(
            [*command, "--dest", folder, *words, wheel],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_FETCH_S,
        )
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{name}: its packages could not be fetched here within {_FETCH_S:.0f} s") from None
    if done.returncode != 0:
        cure = "install a 64-bit system there, and " if not any("64" in one for one in tags.platforms) else ""
        raise ClusterError(
            f"{name}: its computer reaches no package index, and this computer finds no packages for Python "
            f"{tags.python} on {tags.platforms[-1] if tags.platforms else 'an unknown system'} "
            f"({_pip_error(done.stderr)}): {cure}let one of the two computers reach the index"
        )


def _pip_error(text: str) -> str:
    """The last error of pip, or its last line."""
    errors = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")]
    return errors[-1] if errors else _last_line(text)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it ended without a message")
