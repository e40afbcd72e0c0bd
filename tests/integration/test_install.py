"""`up --install`: this version on another computer, in a virtual environment of its own, with and without an index."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from command_line import Cli
from integration.answers import answer
from integration.sshd import MISSING, Computer, a_computer

from dllama_zmq import __version__
from dllama_zmq.launch.own_wheel import write_own_wheel
from dllama_zmq.launch.ssh import VENV

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING)

NOBODY = "http://127.0.0.1:9/"


@contextmanager
def bare_computer(folder: Path, **env: str) -> Iterator[Computer]:
    """A computer without dllama-zmq; no package index is reached from there."""
    with a_computer(folder, "far home", PIP_INDEX_URL=NOBODY, **env) as computer:  # pip can have no $ in its path
        yield computer


def test_install_puts_this_version_there_and_up_uses_it_until_another_is_there(
    cli: Cli, tmp_path: Path, greedy_text: str
) -> None:
    packages = str(Path(pytest.__file__).parent.parent)  # what it needs is found there already
    with bare_computer(tmp_path / "far", PYTHONPATH=packages) as computer:
        cli.write(2, workers=[{"name": "far", "ssh": computer.destination}])
        result = cli.run("up", "--install", wait_s=240)
        assert result.code == 0, result.said
        assert f"dllama-zmq {__version__} is installed for far" in result.err
        venv = computer.home / VENV
        assert str(venv) in Path(f"/proc/{cli.pid('far')}/cmdline").read_text()
        assert answer(cli) == greedy_text
        cli.down()

        before = installed(venv.parent)
        assert cli.run("up", "--install", wait_s=240).code == 0
        assert installed(venv.parent) == before  # what is there already is left alone
        cli.down()

        code = next(venv.glob("lib/*/site-packages/dllama_zmq/__init__.py"))
        code.write_text(code.read_text().replace(f'"{__version__}"', '"0.0.9"'))
        said = cli.run("up").error()
        assert f"has dllama-zmq 0.0.9 and this computer {__version__}: `dllama-zmq up --install`" in said
        assert cli.run("up", "--install", wait_s=240).code == 0
        cli.down()


def test_a_computer_without_an_index_gets_the_packages_that_fit_it_from_here(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packages are empty ones, so nothing runs there in the end: what is claimed is that all of them arrive."""
    names = [re.match(r"[\w.-]+", line)[0] for line in metadata.requires("dllama-zmq") if "extra" not in line]  # type: ignore[index, union-attr]
    index = tmp_path / "index"
    index.mkdir()
    for name in names:
        empty_wheel(index, name, metadata.version(name))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with bare_computer(tmp_path / "far") as computer:
        cli.write(2, workers=[{"name": "far", "ssh": computer.destination}])
        result = cli.run("up", "--install", wait_s=240)
        assert "far reaches no package index" in result.err
        assert f"dllama-zmq {__version__} is installed for far" in result.err
        listed = (
            subprocess.run(
                [computer.home / VENV / "bin/python", "-m", "pip", "list", "--format", "freeze"],
                capture_output=True,
                text=True,
                check=True,
            )
            .stdout.lower()
            .replace("_", "-")
        )
        assert [name for name in names if f"{name.lower().replace('_', '-')}==" not in listed] == []


def test_a_computer_for_which_no_packages_are_found_is_named(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with bare_computer(tmp_path / "far") as computer:
        cli.write(2, workers=[{"name": "far", "ssh": computer.destination}])
        said = cli.run("up", "--install", wait_s=240).error()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert re.search(rf"this computer finds no packages for Python {version} on \S+ \(No matching distribution", said)


def test_a_computer_without_python_is_named_with_what_to_install(cli: Cli, tmp_path: Path) -> None:
    with bare_computer(tmp_path / "far", PATH=str(tmp_path / "nothing")) as computer:
        cli.write(2, workers=[{"name": "far", "ssh": computer.destination}])
        said = cli.run("up", "--install", wait_s=60).error()
        assert f"far: there is no Python 3.11 or newer at {computer.destination}" in said
        assert f"ssh -t {computer.destination} sudo apt install python3 python3-venv" in said


def test_install_without_workers_over_ssh_says_what_to_write(cli: Cli) -> None:
    cli.write(2)
    assert (
        "--install needs a worker that is started over ssh, and the file has none" in cli.run("up", "--install").error()
    )


def test_the_wheel_of_this_code_is_the_same_each_time_and_has_all_of_it(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first, second = map(write_own_wheel, folders)
    assert first.read_bytes() == second.read_bytes()
    with ZipFile(first) as wheel:
        assert wheel.testzip() is None
        names = wheel.namelist()
        record = wheel.read(next(name for name in names if name.endswith("/RECORD"))).decode()
    assert sorted(line.partition(",")[0] for line in record.splitlines()) == sorted(names)
    assert {"dllama_zmq/data/demo.m", "dllama_zmq/gateway/page/app.js", "dllama_zmq/launch/CLUSTERS.md"} <= set(names)


def installed(folder: Path) -> dict[Path, tuple[int, int]]:
    """Number and time of last change of every file in it, but of bytecode, which comes with running."""
    files = [path for path in folder.rglob("*") if "__pycache__" not in path.parts and not path.is_dir()]
    return {path: (path.lstat().st_ino, path.lstat().st_ctime_ns) for path in files}


def empty_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel with nothing in it."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    with ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
