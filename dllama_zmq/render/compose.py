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
    PLACES,
    ROOT_WORDS,
    cluster_yaml,
    in_containers,
    kept_keys,
    needs_of,
    secrets_of,
    worker_words,
)
from dllama_zmq.render.files import IMAGE_USER, Rendered, from_template, image_files

ROOT = "root"  # no worker may have this name


def compose(file: ClusterFile, image: str, folder: Path) -> Rendered:
    """The compose file of `file`, with all its nodes on this computer. Keys that are in `folder` already are kept.

    Raises ConfigError, FormatError, PlanError.
    """
    needs = needs_of(file)
    names = [worker.name for worker in file.cluster.workers]
    keys = kept_keys(folder, [ROOT, *names])
    (own_threads, *threads), _ = shared(["auto"] * len(keys), usable_cores())
    owner = os.geteuid() or IMAGE_USER
    nodes = [{"name": ROOT, "words": ROOT_WORDS, "memory_mib": needs.root_mib}]
    for name, n_threads in zip(names, threads, strict=True):
        words = worker_words(file.cluster, ROOT, name, n_threads, keys[ROOT].public)
        # compose replaces names after a $ by variables
        escaped = [word.replace("$", "$$") for word in words]
        nodes.append({"name": name, "words": escaped, "memory_mib": needs.worker_mib})
    workers = [WorkerConfig(name=name, host=name, key=keys[name].public) for name in names]
    files = {
        "compose.yaml": from_template(
            "compose.yaml",
            nodes=nodes,
            image=image,
            owner=owner,
            group=os.getegid() or owner,
            models=needs.model.files,
            **PLACES,
        ),
        "cluster/cluster.yaml": cluster_yaml(in_containers(file, needs.model, workers, own_threads), file.path),
    }
    then = [f"docker compose -f {shlex.quote(str(folder / 'compose.yaml'))} up --build -d"]
    return Rendered(files | image_files(image), secrets_of(file, keys), then, owner)
