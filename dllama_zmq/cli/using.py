"""The cluster that answers a command: one that runs, or one that is brought up for the command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from dllama_zmq.cli.chosen import chosen_path, for_a_call, for_a_model
from dllama_zmq.cli.cluster import listening
from dllama_zmq.cli.flags import Overrides, either
from dllama_zmq.cli.notes import note
from dllama_zmq.cli.overrides import check_elsewhere, check_running, fetched
from dllama_zmq.cli.progress import Display
from dllama_zmq.client import SILENCE_S, Client
from dllama_zmq.cluster import ClusterFile
from dllama_zmq.launch.lifecycle import for_one_call
from dllama_zmq.launch.registry import address_elsewhere
from dllama_zmq.node_config import Security
from dllama_zmq.sources import absolute_model


class Used(Struct, frozen=True):
    """A client of the cluster, the path of its model, and its number of nodes."""

    client: Client
    model: str
    n_nodes: int


def with_model(source: str | None, overrides: Overrides) -> tuple[str | None, Overrides]:
    """The model of a command that takes it as an argument or as a flag, and the flags without it.

    Raises UsageError for two models, or a model that does not exist.
    """
    source = either(source, overrides.named_model())
    if source is not None:
        absolute_model(source)
    return source, replace(overrides, model=None, hub_model=None)


def file_for(source: str | None, overrides: Overrides, cluster: Path | None) -> tuple[ClusterFile, Overrides]:
    """The cluster for `run` and `chat`: of the model if one is named, else this folder's or that of a file.

    Also returns the flags with the model. A model of the hub is fetched.
    """
    overrides = replace(overrides, model=source)
    if source is not None and cluster is None:
        overrides = fetched(overrides, fetch=True)
        return for_a_model(source, overrides), overrides
    overrides = fetched(overrides)
    return for_a_call(chosen_path(cluster), overrides), overrides


@contextmanager
def used(file: ClusterFile, overrides: Overrides) -> Iterator[Used]:
    """Yield the cluster; it is brought up for the block if it is not running."""
    if (address := address_elsewhere(file.cluster)) is not None:
        with used_at(address, file.cluster.security, overrides) as cluster:
            yield cluster
        return

    def on_shared() -> None:
        note(f"{file.cluster.name} stays up until the other commands that use it end")

    with ExitStack() as telling:
        listener = telling.enter_context(listening(file, for_this_call=True))
        with for_one_call(file, listener, on_shared) as running:
            telling.close()
            check_running(overrides, running, file)
            with Client(running.clients) as client:
                yield Used(client, running.model, running.cluster.n_nodes)


@contextmanager
def used_at(address: str, security: Security, overrides: Overrides) -> Iterator[Used]:
    """Yield the cluster whose root has this address. It answers after its current step, which may take long."""
    with Client(address, security) as client:
        with Display() as display:
            display.activity(f"asking the root at {address}")
            status = client.status(SILENCE_S)
        check_elsewhere(overrides, address, status.model)
        yield Used(client, status.model, len(status.nodes))
