"""A compose file: the root and its workers as containers on one computer, and the image that they run."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from dllama_zmq.cluster import ClusterFile
from dllama_zmq.host import usable_cores
from dllama_zmq.launch.local_nodes import shared
from dllama_zmq.node_config import WorkerConfig
from dllama_zmq.render.deployed import (
    API_KEYS,
    API_PORT,
    ETC,
    HEALTH_CHECK,
    MODELS,
    ROOT_WORDS,
    cluster_yaml,
    in_containers,
    kept_keys,
    needs_of,
    secrets_of,
    worker_words,
)
from dllama_zmq.render.files import HOME, IMAGE_USER, Rendered, image_files, yaml_text

_Service = dict[str, object]
ROOT = "root"  # no worker may have this name


def compose(file: ClusterFile, image: str, folder: Path) -> Rendered:
    """The compose file of `file`, with all its nodes on this computer. Keys that are in `folder` already are kept.

    Raises ConfigError, FormatError, PlanError.
    """
    needs = needs_of(file)
    names = [worker.name for worker in file.cluster.workers]
    keys = kept_keys(folder, [ROOT, *names])
    threads, _ = shared(["auto"] * len(keys), usable_cores())
    owner = os.geteuid() or IMAGE_USER
    common: _Service = {
        "image": image,
        "build": {
            "context": ".",
            "dockerfile": "Containerfile",
        },  # in every service: compose would pull an image that it does not build
        "user": f"{owner}:{os.getegid() or owner}",  # only the owner of a key may read it
        "init": True,
        "restart": "unless-stopped",
        "read_only": True,
        "tmpfs": ["/tmp"],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    root: _Service = {
        "command": ROOT_WORDS,
        "ports": [f"127.0.0.1:{API_PORT}:{API_PORT}"],
        "mem_limit": f"{needs.root_mib}m",
        "healthcheck": {"test": ["CMD", *HEALTH_CHECK], "interval": "10s", "timeout": "5s", "start_period": "120s"},
        "volumes": [
            *_home(ROOT),
            _mount("./cluster", ETC),
            _mount("./keys/api.keys", API_KEYS),
            *(_mount(str(path), f"{MODELS}/{name}") for name, path in needs.model.files.items()),
        ],
    }
    services = {ROOT: common | root}
    for name, n_threads in zip(names, threads[1:], strict=True):
        services[name] = common | {
            "command": _escaped(worker_words(file.cluster, ROOT, name, n_threads, keys[ROOT].public)),
            "mem_limit": f"{needs.worker_mib}m",
            "volumes": _home(name),
        }
    workers = [WorkerConfig(name=name, host=name, key=keys[name].public) for name in names]
    files = {
        "compose.yaml": yaml_text({"services": services, "volumes": {name: {} for name in services}}),
        "cluster/cluster.yaml": cluster_yaml(in_containers(file, needs.model, workers, threads[0]), file.path),
    }
    then = [f"docker compose -f {shlex.quote(str(folder / 'compose.yaml'))} up --build -d"]
    return Rendered(files | image_files(image), secrets_of(file, keys), then, owner)


def _home(node: str) -> list[object]:
    """A volume for the node, so that it compiles its kernels once, with the folder of its key."""
    return [f"{node}:{HOME}", _mount(f"./keys/{node}", f"{HOME}/keys", read_only=False)]


def _mount(source: str, target: str, read_only: bool = True) -> _Service:
    return {"type": "bind", "source": source, "target": target, "read_only": read_only}


def _escaped(words: list[str]) -> list[str]:
    return [word.replace("$", "$$") for word in words]  # compose replaces names after a $ by variables
