"""`dllama-zmq logs`: the logs of one node or all nodes of a cluster on this computer, sorted by time."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, TextIO

from typer import Argument, Option

from dllama_zmq.cli import completion, flags
from dllama_zmq.cli.chosen import chosen_path, running_here
from dllama_zmq.cli.flag_kinds import number
from dllama_zmq.cli.notes import note
from dllama_zmq.cluster import ClusterFile, is_loopback
from dllama_zmq.errors import ClusterError
from dllama_zmq.launch.paths import ClusterPaths
from dllama_zmq.launch.registry import Record

_POLL_S = 0.2
_STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} ")


def logs(
    *,
    node: Annotated[
        str | None,
        Argument(
            metavar="NODE",
            help="root, gateway, or a worker that the root starts; all if not given",
            autocompletion=completion.nodes,
        ),
    ] = None,
    cluster: flags.Cluster = None,
    lines: Annotated[int, number("-n", "--lines", help="How many of the last lines")] = 50,
    follow: Annotated[bool, Option("-f", "--follow", help="Go on printing what is added")] = False,
) -> None:
    """Print the log of a node, or of all nodes of this computer and those that it starts over ssh.

    Examples:
        dllama-zmq logs
        dllama-zmq logs worker1 -f
    """
    file = running_here(chosen_path(cluster), even_down=True)
    paths = ClusterPaths.of(file.cluster.name)
    _check_whose(file, paths)
    found = _log_paths(file, paths, node)
    tails = [_Tail(name, log) for name, log in found.items()]
    width = 0 if node is not None else max(map(len, found))
    last: deque[tuple[str, str]] = deque(_by_time([tail.lines() for tail in tails]), maxlen=lines)
    _print(last, width)
    while follow:
        time.sleep(_POLL_S)
        _print(_by_time([tail.lines() for tail in tails]), width)


def _check_whose(file: ClusterFile, paths: ClusterPaths) -> None:
    started = Record.read(paths.started_file)
    if started is not None and started.file.path != file.identity:
        raise ClusterError(
            f"the logs named {file.cluster.name!r} belong to {started.path}, which ran last under that name; "
            f"{file.identity} has not run since. `{started.file.command('logs')}` shows them"
        )


def _log_paths(file: ClusterFile, paths: ClusterPaths, node: str | None) -> dict[str, Path]:
    """The logs to print, by node. Raises ClusterError if there are none."""
    workers = [worker.name for worker in file.cluster.workers]
    nodes = ["root", *workers]
    known = [*nodes, *(["gateway"] if file.cluster.api else [])]
    if node is not None and node not in known:
        raise ClusterError(f"cluster {file.cluster.name!r} has no node {node!r}; its nodes are {', '.join(nodes)}")
    elsewhere = {
        worker.name: worker.host for worker in file.cluster.workers if not worker.ssh and not is_loopback(worker.host)
    }
    logs = {name: paths.log(name) for name in ([node] if node else known)}
    there = {name: log for name, log in logs.items() if log.exists()}
    if not there:
        where = "has not run on this host"
        if node in elsewhere:
            where = f"runs on {elsewhere[node]} and prints it there"
        raise ClusterError(f"{next(iter(logs.values()))}: no log yet; {node or 'the root'} {where}")
    if node is None and elsewhere:
        note(f"not on this computer: {', '.join(f'{name} ({host})' for name, host in elsewhere.items())}")
    return there


class _Tail:
    """The lines of one log, then the lines that are added. Follows a log that is replaced."""

    def __init__(self, node: str, path: Path) -> None:
        self._node, self._path = node, path
        self._log: TextIO | None = None
        self._rest = ""

    def lines(self) -> Iterator[tuple[str, str]]:
        """Each complete line since the last call, with the node's name."""
        if self._log is not None and self._is_another():
            self._log.close()
            self._log, self._rest = None, ""
        if self._log is None:
            try:
                self._log = self._path.open(errors="replace")
            except FileNotFoundError:  # the log is being renamed
                return
        text = self._rest + self._log.read()
        *whole, self._rest = text.split("\n")
        for line in whole:
            yield self._node, line

    def _is_another(self) -> bool:
        assert self._log is not None
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return False
        opened = os.fstat(self._log.fileno())
        return (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino) or found.st_size < self._log.tell()


def _by_time(logs: Sequence[Iterator[tuple[str, str]]]) -> list[tuple[str, str]]:
    """The lines of all logs sorted by time; a line without a time stays after the line before it."""
    stamped: list[tuple[str, str, str]] = []
    for log in logs:
        stamp = ""
        for node, line in log:
            if found := _STAMP.match(line):
                stamp = found[0]
            stamped.append((stamp, node, line))
    stamped.sort(key=lambda one: one[0])  # stable: equal times keep the order of the nodes
    return [(node, line) for _, node, line in stamped]


def _print(lines: Sequence[tuple[str, str]] | deque[tuple[str, str]], width: int) -> None:
    for node, line in lines:
        sys.stdout.write(f"{node:<{width}} | {line}\n" if width else f"{line}\n")
    if lines:
        sys.stdout.flush()
