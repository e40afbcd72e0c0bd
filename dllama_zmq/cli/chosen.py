"""Chooses the cluster of a command: that of a file, that of a folder without a file, or one for this command."""

from __future__ import annotations

import os
import shlex
from contextlib import suppress
from pathlib import Path

from dllama_zmq.bus.addresses import endpoint_of
from dllama_zmq.cli.flags import Overrides, There
from dllama_zmq.cli.overrides import applied, without_file
from dllama_zmq.client import Client
from dllama_zmq.cluster import FILE_NAME, ClusterFile, load_cluster
from dllama_zmq.errors import ClusterError, ConfigError, UsageError
from dllama_zmq.hub import HUB_PREFIX
from dllama_zmq.launch.registry import (
    AlreadyRunning,
    Record,
    cluster_here,
    connect,
    ended_unexpectedly,
    find_running,
    running_clusters,
)
from dllama_zmq.node_config import Ports
from dllama_zmq.sources import DEMO, MODELS, kind_of_bytes

NO_CLUSTER = (
    'a model is enough without one: dllama-zmq run MODEL "Once upon a time" (`chat MODEL`, `up -m MODEL`, `generate -m '
    "MODEL`); dllama-zmq init writes the file"
)
_CONFIGS = ("config.json", "params.json")  # of a model's folder
_HEAD_BYTES = 16
_MAX_LOOKED_AT = 20  # files, so that an error appears at once


def chosen_path(argument: Path | None = None, option: Path | None = None) -> Path:
    """The cluster's file, which need not exist. A folder means the file in it; a name that is no path means the running
    cluster of that name."""
    if argument is not None and option is not None and argument != option:
        raise UsageError(f"two clusters are given, {argument} and --cluster {option}; give one")
    path = argument or option or Path(FILE_NAME)
    if path.is_dir():
        return path / FILE_NAME
    if not path.exists() and len(path.parts) == 1:
        named = [one.path for one in running_clusters() if one.name == str(path) and not one.private]
        path = named[0] if named else path
    return path


def elsewhere(there: There, *clusters: Path | None) -> str | None:
    """The root's address for clients from --connect; None without it. Raises UsageError if a file is given too."""
    if there.connect is None:
        if there.security != "curve":
            raise UsageError("--security goes with --connect; a cluster's file has its own `security:`")
        return None
    if any(one is not None for one in clusters):
        raise UsageError("--connect and a cluster's file exclude each other; give one of them")
    try:
        return endpoint_of(there.connect, Ports().clients)
    except UsageError as error:
        raise UsageError(f"--connect {error}") from None


def client_of(there: There, *clusters: Path | None) -> Client:
    """A client of the running cluster of --connect, an argument or a flag; by default of this folder's cluster."""
    if (address := elsewhere(there, *clusters)) is not None:
        return Client(address, there.security)
    return connect(running_here(chosen_path(*clusters)))


def running_here(path: Path, even_down: bool = False) -> ClusterFile:
    """The cluster of `path`; without that file, the cluster that runs (even_down: ran last) for its folder.

    Raises ConfigError with what to do if there is neither.
    """
    try:
        return cluster_here(path, even_down)
    except ConfigError:
        if os.path.lexists(path):
            raise
        if path.name != FILE_NAME:
            raise _nothing_at(path) from None
        _check_end(path)
        raise ConfigError(
            f"there is no {path}, and no cluster runs for its folder {path.resolve().parent}; give a cluster's file "
            f"or the name of a running one; {_names_here()}"
        ) from None


def _check_end(path: Path) -> None:
    """Raise ClusterError if the cluster of this folder, which has no file, was killed."""
    if (ended := ended_unexpectedly(path)) is not None:
        model = shlex.quote(ended.cluster.model)
        raise ClusterError(
            f"cluster {ended.cluster.name!r} of this folder ended unexpectedly; `{ended.command('logs root')}` shows "
            f"its log, `{ended.command(f'up -m {model}')}` starts it again"
        )


def to_bring_up(path: Path, overrides: Overrides) -> ClusterFile:
    """The cluster for `up`: that of the file; without a file, one of the model in the flags."""
    if overrides.model is None and (model := model_instead(path)) is not None:
        raise UsageError(f"{model} is a model, and a model goes after -m: dllama-zmq up -m {shlex.quote(model)}")
    if os.path.lexists(path) or path.name != FILE_NAME:
        return applied(overrides, _load(path))
    if overrides.model is None:
        try:
            here = cluster_here(path)
        except ConfigError:
            _check_end(path)
            raise ConfigError(f"{path}: there is no such file; {NO_CLUSTER}") from None
        raise AlreadyRunning(
            f"cluster {here.cluster.name!r} of this folder runs already, without a file, with {here.cluster.model}; "
            f"`{here.command('down')}` stops it"
        )
    return without_file(overrides, overrides.model, path.parent)


def for_a_call(path: Path, overrides: Overrides) -> ClusterFile:
    """The cluster for a command: that of the file, running or not; else the folder's running one; else one for this
    command only, of the model in the flags."""
    if os.path.lexists(path) or path.name != FILE_NAME:
        return applied(overrides, _load(path))
    try:
        return applied(overrides, cluster_here(path))
    except ConfigError:
        if overrides.model is None:
            _check_end(path)
            raise ConfigError(f"{path}: there is no such file; {NO_CLUSTER}") from None
    return without_file(overrides, overrides.model, path.parent, private=True)


def for_a_model(model: str, overrides: Overrides) -> ClusterFile:
    """The cluster for `run MODEL`: this folder's running one if it has the same model, else one for this command, even
    beside a cluster.yaml."""
    alone = without_file(overrides, model, private=True)
    running = _running_in_this_folder()
    if running is not None and alone.runs_the_same(running.file):
        return ClusterFile(Path(FILE_NAME), running.cluster)
    return alone


def _load(path: Path) -> ClusterFile:
    """The cluster of a file. Raises ConfigError."""
    if not os.path.lexists(path):
        raise _nothing_at(path)
    return load_cluster(path)


def model_instead(path: Path) -> str | None:
    """The model, if `path` is a model and not a cluster's file; else None."""
    if path.is_file():
        if path.name in _CONFIGS:
            return str(path.parent)
        return str(path) if path.suffix in (".gguf", ".m", ".safetensors") or _begins_as_a_model(path) else None
    if path.exists():
        return None
    if path.name == FILE_NAME:  # the default file of a folder
        is_model = any((path.parent / name).exists() for name in _CONFIGS)
        return str(path.parent) if is_model and path.parent != Path() else None
    from dllama_zmq.hub.store import find_by_name

    text = str(path)
    return text if text == DEMO or text.startswith(HUB_PREFIX) or find_by_name(text) is not None else None


def _begins_as_a_model(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return kind_of_bytes(file.read(_HEAD_BYTES)) in MODELS
    return False


def _nothing_at(path: Path) -> ConfigError:
    """The error for a `path` that is neither a file nor the name of a running cluster."""
    if len(path.parts) > 1 or path.suffix:
        return ConfigError(
            f"{path}: there is no such file; check its path, or write one: dllama-zmq init {shlex.quote(str(path))}"
        )
    model = model_instead(path)
    hint = f"; {model} is a model: dllama-zmq up -m {shlex.quote(model)} brings up a cluster of it" if model else ""
    return ConfigError(
        f"{path}: expected a cluster's file or the name of a running one; there is no such file{_files_here()}, "
        f"and {_names_here()}{hint}"
    )


def _files_here() -> str:
    """The files of this folder that describe clusters, in parentheses; empty if there are none."""
    found = []
    for path in sorted(Path().glob("*.y*ml"))[:_MAX_LOOKED_AT]:
        with suppress(ConfigError):
            found.append(load_cluster(path).path.name)
    return f" (this folder has {', '.join(found)})" if found else ""


def _names_here() -> str:
    names = [one.name for one in running_clusters() if not one.private]
    return f"these run on this computer: {', '.join(names)}" if names else "no cluster runs on this computer"


def _running_in_this_folder() -> Record | None:
    try:
        return find_running(cluster_here(Path(FILE_NAME)))
    except (ConfigError, ClusterError):  # no cluster, or one of another file: not to be used in either case
        return None
