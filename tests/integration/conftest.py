"""A context, and nodes in threads, that must have ended when the test has; a hub, and commands beside it. No test
leaves anything in its process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from command_line import Cli, clean_cli, short_home
from contexts import a_context
from hub_server import Hub, Repo, running_hub
from integration.answers import PROMPT
from integration.bench_runs import left_folders, share_kernels
from integration.nodes import SPEC, Context, Relay, Start, Thread, logits
from integration.stranger import Stranger
from leaks import nothing_left
from puller import BIG, NAMES, Puller
from tiny import write_tiny_model

import dllama_zmq
from dllama_zmq.formats import ModelFile
from dllama_zmq.local import LocalModel
from dllama_zmq.quants import F32
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.worker import Worker


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    zmq.Context.instance()  # lives as long as the process
    with nothing_left():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelFile]:
    """A model of `nodes.SPEC`."""
    with write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.m", SPEC) as file:
        yield file


@pytest.fixture(scope="module")
def expected(model: ModelFile) -> F32:
    """Its logits of one node: see `nodes.logits`."""
    return logits(Root(zmq.Context.instance(), model, RootSettings(kernels="numpy")))


@pytest.fixture(scope="module")
def greedy_text(small_model: Path) -> str:
    """40 greedy tokens after PROMPT, from the model in this process on one node: no bus, no other process."""
    with dllama_zmq.load(small_model) as model:
        return "".join(model.generate(PROMPT, max_tokens=40))


@pytest.fixture
def context() -> Iterator[Context]:
    """A context whose sockets a test must have closed by its end."""
    with a_context() as context:
        yield context


@pytest.fixture
def start(context: Context) -> Iterator[Start]:
    """Runs a node until the test is over; then its root has sent it a bye, or it is stopped."""
    threads: list[Thread] = []

    def start(node: Stranger | Worker | Relay) -> Thread:
        threads.append(Thread(node.run, node.stop))
        return threads[-1]

    yield start
    for thread in threads:
        thread.stop()
    for thread in threads:
        thread.join()
    assert [thread.error for thread in threads if thread.error and not thread.expected] == []


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        files = {"README.md": b"words\n", NAMES[0]: BIG, NAMES[1]: BIG[::-1]}
        hub.repos["org/m"] = Repo(files, stored=set(NAMES))
        yield hub


@pytest.fixture
def puller(hub: Hub, tmp_path: Path) -> Iterator[Puller]:
    with short_home() as home:
        yield Puller(hub, Cli(home, tmp_path, Path("none")))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, small_model: Path) -> Iterator[Cli]:
    """The command line in a home and with a cache folder of its own, where nothing may be left behind."""
    with clean_cli(tmp_path_factory.mktemp("bench"), small_model) as cli:
        share_kernels(cli.folder)
        yield cli
        assert left_folders(cli) == []


@pytest.fixture(scope="module")
def local(small_model: Path) -> Iterator[LocalModel]:
    """The model in this process on one node: what every greedy answer is compared with."""
    with dllama_zmq.load(small_model) as model:
        yield model
