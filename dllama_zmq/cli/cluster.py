"""`up`, `restart`, `down`, `status` and `ps`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated

from typer import Option

from dllama_zmq.bus.client_messages import Status
from dllama_zmq.cli import flags
from dllama_zmq.cli.chosen import chosen_path, client_of, elsewhere, running_here, to_bring_up
from dllama_zmq.cli.exit_codes import as_json
from dllama_zmq.cli.notes import note
from dllama_zmq.cli.overrides import applied, fetched
from dllama_zmq.cli.progress import Arrivals, Display
from dllama_zmq.cli.watch import check_watch, watched
from dllama_zmq.client import CONNECT_S, SILENCE_S, Client
from dllama_zmq.cluster import ClusterFile
from dllama_zmq.errors import UsageError
from dllama_zmq.launch.invitations import check_root_is_here
from dllama_zmq.launch.lifecycle import Listener, bring_up, commands_elsewhere, take_down
from dllama_zmq.launch.registry import (
    Record,
    address_elsewhere,
    await_running,
    ended_unexpectedly,
    running_clusters,
)
from dllama_zmq.reporting import plural

_STATUS_S = 10.0  # the root answers between two steps


def up(
    *,
    which: flags.AnyCluster,
    overrides: flags.Overrides,
    foreground: Annotated[bool, Option("--foreground", help="Stay here (or under a supervisor) until stopped")] = False,
    install: Annotated[
        bool, Option("--install", help="First put this version on the computers of workers with ssh:")
    ] = False,
    detach: Annotated[bool, Option("-d", "--detach", hidden=True, help="What `up` does anyway")] = False,
) -> None:
    """Bring a cluster up and leave it running. Returns when every node is ready.

    Without a cluster.yaml, -m MODEL is enough: one node on this computer, or --nodes N.

    Examples:
        dllama-zmq up
        dllama-zmq up home.yaml
        dllama-zmq up -m story.gguf --nodes 2
        dllama-zmq up --install
    """
    if foreground and detach:
        raise UsageError("--foreground stays and --detach does not; give one of them")
    if foreground and install:
        raise UsageError("--install and --foreground exclude each other; run `dllama-zmq up --install` once before")
    file = to_bring_up(chosen_path(which.file, which.option), fetched(overrides))
    if foreground:
        from dllama_zmq.cli.root import be_root

        be_root(file)
        return
    check_root_is_here(file, "up")
    _up(file, install)


def restart(*, which: flags.AnyCluster, overrides: flags.Overrides) -> None:
    """Take a cluster down and bring it up as its file says now; without a file, as it was.

    Examples:
        dllama-zmq restart
        dllama-zmq restart -c 8192
    """
    overrides = fetched(overrides)
    file = applied(overrides, running_here(chosen_path(which.file, which.option), even_down=True))
    check_root_is_here(file, "restart")
    if take_down(file):
        note(f"{file.cluster.name} is down")
    _up(file)


def _up(file: ClusterFile, install: bool = False) -> None:
    start = time.monotonic()
    try:
        with listening(file) as listener:
            status = bring_up(file, listener, install)
    except KeyboardInterrupt:
        note(f"stopped; {file.cluster.name} is down")
        raise
    nodes, example = plural(len(status.nodes), "node"), file.command("chat")
    from dllama_zmq.root.fitting import kv_room  # imports NumPy, which other commands need not wait for

    each_bytes = max(node.kv_bytes for node in status.nodes)
    n_pages = status.kv.pages
    note(kv_room(n_pages, status.seq_len, file.cluster.max_sequences, each_bytes))
    if status.api:
        note(f"chat and API at {status.api}")
    note(f"{status.name} is up: {nodes} in {time.monotonic() - start:.1f} s. Try: {example}")


@contextmanager
def listening(file: ClusterFile, for_this_call: bool = False) -> Iterator[Listener]:
    """During this block, stderr shows what to start on other computers, and each worker's progress."""
    with Display() as display:

        def begin() -> None:
            if for_this_call:
                display.line(_for_this_call(file))
            if file.cluster.warning:
                display.line(f"warning: {file.cluster.warning}")
            for command in commands_elsewhere(file, new_tokens=True).values():
                display.line(f"start {command}")

        yield Listener(Arrivals(display).show, display, begin, patient=display.is_live)


def _for_this_call(file: ClusterFile) -> str:
    if not file.private:
        keeps = f"`{file.command('up')}` keeps it"
        return f"{file.cluster.name} is not running: bringing up {file.path} for this call ({keeps})"
    nodes = plural(file.cluster.n_nodes, "node")
    return f"starting {file.cluster.model} on {nodes} for this call (`dllama-zmq up -m` keeps it running)"


def down(*, which: flags.AnyCluster, there: flags.There) -> None:
    """Take a cluster down.

    Examples:
        dllama-zmq down
        dllama-zmq down home.yaml
    """
    start = time.monotonic()
    if (address := elsewhere(there, which.file, which.option)) is not None:
        with Client(address, there.security) as client, Display() as display:
            display.activity(f"taking the cluster at {address} down")
            client.stop(SILENCE_S)
        note(f"the cluster at {address} is down, in {time.monotonic() - start:.1f} s")
        return
    path = chosen_path(which.file, which.option)
    file = ended_unexpectedly(path) or running_here(path)
    with Display() as display:
        display.activity(f"taking {file.cluster.name} down")
        was_running = take_down(file)
    if was_running:
        note(f"{file.cluster.name} is down, in {time.monotonic() - start:.1f} s")
    else:
        note(f"{file.cluster.name} was not running")


def status(*, which: flags.AnyCluster, there: flags.There, watch: flags.Watch = None, json: flags.Json = False) -> None:
    """Show how a cluster is. Exit code 1 where it is not running.

    Examples:
        dllama-zmq status
        dllama-zmq status --watch
        dllama-zmq status home.yaml --json
    """
    check_watch(watch)
    if not json:
        from dllama_zmq.cli.cluster_tables import status_table
    if json and there.connect is None:
        file = running_here(chosen_path(which.file, which.option))
        if address_elsewhere(file.cluster) is None and await_running(file, CONNECT_S) is None:
            print('{"state":"down"}')  # noqa: T201
            raise SystemExit(1)
    with client_of(there, which.file, which.option) as client:
        look = partial(_asked, client) if watch is None else partial(client.status, _STATUS_S)
        watched(look, _as_json if json else status_table, watch)


def _asked(client: Client) -> Status:
    with Display() as display:
        display.activity("asking the root")
        return client.status(_STATUS_S)


def _as_json(found: Status) -> str:
    fields = {name: getattr(found, name) for name in found.__struct_fields__ if name != "id"}  # on the bus it is a list
    return as_json(fields)


def ps(*, json: flags.Json = False) -> None:
    """List the clusters that run on this computer, or are on their way up or down.

    Examples:
        dllama-zmq ps
    """
    found = running_clusters()
    if json:
        rows = [
            {
                "name": one.name,
                "state": _state(one),
                "model": one.model,
                "nodes": one.cluster.n_nodes,
                "pid": one.pid,
                "since": one.since,
                "clients": one.clients,
                "api": one.api,
                "file": str(one.path) if one.path.exists() and not one.private else None,
                "folder": None if one.private else str(one.path.parent),
            }
            for one in found
        ]
        print(as_json({"clusters": rows}))  # noqa: T201
        return
    if not found:
        note("no cluster runs on this computer")
        return
    from dllama_zmq.cli.cluster_tables import print_clusters

    print_clusters([(one, _state(one)) for one in found])


def _state(running: Record) -> str:
    if not running.clients:
        return "starting"
    if running.forming:
        return "forming"
    return "one call" if running.private else "up"
