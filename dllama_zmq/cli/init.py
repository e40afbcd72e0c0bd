"""`dllama-zmq init`: write a commented cluster file, from the template in the package."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from string import Template
from typing import Annotated

import yaml
from typer import Argument, Option

from dllama_zmq.bus.addresses import own_address
from dllama_zmq.cli import flags
from dllama_zmq.cli.chosen import model_instead
from dllama_zmq.cli.flag_kinds import model_flag, number
from dllama_zmq.cli.notes import note
from dllama_zmq.cluster import FILE_NAME, Cluster, default_name, is_loopback, parse_cluster
from dllama_zmq.errors import ConfigError, UsageError
from dllama_zmq.formats.files import replace_file
from dllama_zmq.hub import HUB_PREFIX
from dllama_zmq.node_config import NAME_PATTERN
from dllama_zmq.reporting import plural
from dllama_zmq.sources import DATA_FOLDER, DEMO, absolute_model

_COLUMN = 28  # the column of the comments
_MAX_NODES = 1024


def init(
    *,
    file: Annotated[
        Path | None, Argument(metavar="FILE", help="The file to write; ./cluster.yaml if not given")
    ] = None,
    model: Annotated[
        str | None, model_flag("-m", "--model", help="Its model: a file or folder, hf:REPO[:FILE] or demo")
    ] = None,
    nodes: Annotated[int | None, number("--nodes", help="Nodes, all on this computer: 1, 2, 4, 8, ...")] = None,
    workers: flags.Workers = None,
    host: Annotated[
        str | None, Option("--host", metavar="ADDRESS", help="This computer's address for them, found out if not given")
    ] = None,
    force: flags.Force = False,
) -> None:
    """Write a cluster's file with a comment on everything that can be changed in it.

    Examples:
        dllama-zmq init -m story.gguf --nodes 2
        dllama-zmq init home.yaml -m demo --workers 192.168.1.11
    """
    path = file or Path(FILE_NAME)
    path = path / FILE_NAME if path.is_dir() else path
    if model is None and path.name != FILE_NAME and (instead := model_instead(path)) is not None:
        raise UsageError(f"{instead} is a model, and a model goes after -m: dllama-zmq init -m {shlex.quote(instead)}")
    text, host = _text(path, _model_in(path, model), _hosts(workers, nodes), host)
    n_nodes = parse_cluster(text, path).n_nodes  # raises ConfigError for an invalid host
    if os.path.lexists(path) and not force:
        raise UsageError(f"{path} exists; --force replaces it")
    try:
        with replace_file(Path(os.path.realpath(path)) if path.is_symlink() else path) as written:
            written.write(text.encode())
    except UsageError as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Make room, or name a file elsewhere.") from None
    what = f" {shlex.quote(str(path))}" if path != Path(FILE_NAME) else ""
    note(f"wrote {path}: {plural(n_nodes, 'node')}; next: dllama-zmq up{what}")


def with_workers(model: str, workers: str, nodes: int | None, folder: Path) -> Cluster:
    """The cluster, without a file, of this computer as the root and `workers`, a comma-separated list of hosts.

    nodes must be None. Raises UsageError, ConfigError.
    """
    path = folder / FILE_NAME
    text, _ = _text(path, model, _hosts(workers, nodes), None)
    return parse_cluster(text, path)


def _hosts(workers: str | None, nodes: int | None) -> list[str]:
    """The host of each worker. Raises UsageError if both flags are given, or a number as `workers`."""
    if workers is None:
        return ["127.0.0.1"] * ((nodes or 1) - 1)
    if nodes is not None:
        raise UsageError("--nodes and --workers exclude each other; give one of them")
    if workers.strip().isdecimal():
        raise UsageError(
            f"--workers: {workers} is a number, and this flag takes the addresses of other computers, such as "
            f"192.168.1.11; workers on this computer are counted by --nodes: --nodes {int(workers) + 1}"
        )
    return [host.strip() for host in workers.split(",")]


def _text(path: Path, model: str, workers: list[str], host: str | None) -> tuple[str, str]:
    """The text of the file `path`, and the root's address in it: `host`, or if None the one that the workers reach."""
    n_nodes = 1 + len(workers)
    if n_nodes & (n_nodes - 1) or n_nodes > _MAX_NODES:
        raise UsageError(f"{n_nodes} nodes including the root; use 1, 2, 4, 8, ... (2^n)")
    remote = [worker for worker in workers if not is_loopback(worker)]
    host = host or (_own_address(remote[0]) if remote else "127.0.0.1")
    return cluster_text(default_name(path), model, workers, host), host


def cluster_text(name: str, model: str, workers: list[str], host: str = "127.0.0.1") -> str:
    """A commented cluster file with its default `name`, `model`, a root at `host`, and `workers`."""
    template = Template((DATA_FOLDER / FILE_NAME).read_text())
    return template.substitute(
        name=f"# name: {name}".ljust(_COLUMN - 1),
        model=f"model: {_scalar(model)}".ljust(_COLUMN - 1),
        host=f"  host: {_scalar(host)}",
        workers="\n".join(_worker_lines(workers)),
    )


def _worker_lines(hosts: list[str]) -> list[str]:
    if not hosts:
        return ["workers: []".ljust(_COLUMN) + "# 1, 3, 7, ... of them: a number for this computer, or a list"]
    lines = ["workers:".ljust(_COLUMN) + "# need no model file and no settings of the model"]
    local = all(is_loopback(host) for host in hosts)
    for i, (name, host) in enumerate(zip(_names(hosts), hosts, strict=True)):
        lines.append(f"  - name: {name}")
        if not local:
            lines.append(f"    host: {_scalar(host)}")
        elif i == 0:
            reached = "# another computer is reached only if root.host is an address that it can reach"
            lines.append("    # host: 127.0.0.1".ljust(_COLUMN) + reached)
        if i == 0:
            started = "# the root starts it there over ssh, as `ssh` is configured here (or start it there)"
            learned = "# of another computer: what `dllama-zmq keygen` prints there, in quotes; or use a token"
            lines.append("    # ssh: pi@192.168.1.11".ljust(_COLUMN) + started)
            lines += ["    # key:".ljust(_COLUMN) + learned, "    # threads: auto"]
    return lines


def _names(hosts: list[str]) -> list[str]:
    """A worker has the name of its host if that is a valid name; else a number."""
    names: list[str] = []
    for i, host in enumerate(hosts, 1):
        first = host.partition(".")[0]
        usable = re.search(NAME_PATTERN, first) and not first.isdecimal() and first not in ("root", "localhost", *names)
        names.append(first if usable and not is_loopback(host) else f"worker{i}")
    return names


def _model_in(path: Path, model: str | None) -> str:
    """The value of `model:` in the file `path` for a model that is named relative to the current folder."""
    found = absolute_model(model or DEMO)
    if (
        found == DEMO
        or found.startswith(HUB_PREFIX)
        or model is None
        or Path(model).is_absolute()
        or model.startswith("~")
    ):
        return found
    return os.path.relpath(found, path.absolute().parent)


def _scalar(text: str) -> str:
    """`text` as a YAML scalar, quoted if necessary."""
    return yaml.safe_dump(text, width=float("inf"), allow_unicode=True).removesuffix("...\n").strip()


def _own_address(worker: str) -> str:
    """The address of this computer that `worker` can reach. Raises UsageError if none is known."""
    if address := own_address(worker):
        return address
    raise UsageError(
        f"--workers: no route to {worker} is known; check the name, or give this computer's address for them "
        "with --host"
    )
