"""The surroundings of all tests, and fixtures that tests of whole processes ask for by name."""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cases
import hypothesis
import pytest
import surroundings
from _pytest.runner import runtestprotocol
from command_line import Cli, clean_cli, short_home, write_small_model
from threadpoolctl import threadpool_limits

import dllama_zmq
from dllama_zmq.bus.native.exchange import EXCHANGE_KERNELS
from dllama_zmq.kernels import choose_kernels
from dllama_zmq.kernels.simd.catalog import NAMES
from dllama_zmq.kernels.simd.library import library

hypothesis.settings.register_profile("tests", deadline=None, database=None, derandomize=True)
hypothesis.settings.register_profile("release", deadline=None, database=None, print_blob=True)

_home = pytest.StashKey[Path]()
_MANY = 1000
"""Tests of a run that will need nearly all kernels."""
_LISTED_S = 0.005
"""What `--durations` lists at least."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", choices=("each", "all"), default="all", help="each: those that `cases.select` takes")


def pytest_configure(config: pytest.Config) -> None:
    surroundings.set_signals()
    gc.disable()  # until all tests are collected: nothing of them is garbage, and to look takes a fifth of the time
    threadpool_limits(limits=1)  # as nodes do: a BLAS with a thread for each core waits for them in a loop
    if not config.getoption("hypothesis_profile"):
        hypothesis.settings.load_profile("tests")
    if hasattr(config, "workerinput"):
        return  # the process that started this worker has set its environment
    config.stash[_home] = home = Path(tempfile.mkdtemp(prefix="dz-home-", dir="/tmp"))
    surroundings.set_environment(home, config.rootpath / ".pytest_cache" / "kernels")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Of several processes, each tells the first one of what a person sees: three messages a test, not six."""
    if not hasattr(item.config, "workerinput"):
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed or report.duration >= _LISTED_S:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


@pytest.hookimpl(trylast=True)  # of the cases that -m and -k leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("cases") == "each":
        items[:], others = cases.select(items, os.environ.get("PYTHONHASHSEED", ""))
        config.hook.pytest_deselected(items=others)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Import all modules and compile all kernels before the first of many tests.

    Hypothesis also draws the constants of the modules that are imported, so what it draws would depend on which tests
    of this process came before. Kernels are compiled by one set of processes: one by one takes twice the CPU, and on a
    new computer the first tests would spend their deadlines on waiting for each other's.

    What has been imported and collected by then is left alone by the garbage collector: it would look through a million
    objects of thousands of tests each time, also in the middle of a test that measures its own time. Nor does it look
    for garbage among them once, which takes half a second of each process.
    """
    many = len(session.items) >= _MANY
    if many:
        for module in pkgutil.walk_packages(dllama_zmq.__path__, "dllama_zmq."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    gc.freeze()
    gc.enable()
    if many and choose_kernels("auto", 1).name == "simd":
        library().load([*NAMES, *EXCHANGE_KERNELS])


def pytest_unconfigure(config: pytest.Config) -> None:
    if _home in config.stash:
        shutil.rmtree(config.stash[_home])


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Q40 model with its tokenizer beside it, for up to 8 nodes."""
    return write_small_model(tmp_path_factory.mktemp("model") / "small.m")


@pytest.fixture
def home() -> Iterator[Path]:
    """A DLLAMA_ZMQ_HOME with short paths."""
    with short_home() as folder:
        yield folder


@pytest.fixture
def cli(tmp_path: Path, small_model: Path) -> Iterator[Cli]:
    """The command line, no cluster running. The test fails where it leaves a process or a socket behind."""
    with clean_cli(tmp_path, small_model) as cli:
        yield cli


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Cli]:
    """The command line beside a running cluster of two nodes, which all tests of a module share."""
    with clean_cli(tmp_path_factory.mktemp("running"), small_model) as cli:
        cli.up(2)
        yield cli
        cli.down()
