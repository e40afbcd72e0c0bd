"""Manifests for Kubernetes, as a folder for `kubectl apply -k`: the root, its workers and their resources."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import asdict

from dllama_zmq.cluster import ClusterFile
from dllama_zmq.node_config import Ports, Threads, WorkerConfig
from dllama_zmq.render.deployed import (
    MODELS,
    PLACES,
    ROOT_WORDS,
    Auto,
    cluster_yaml,
    in_containers,
    kept_keys,
    needs_of,
    secrets_of,
    worker_words,
)
from dllama_zmq.render.files import IMAGE_USER, Rendered, from_template, image_files


def kubernetes(file: ClusterFile, image: str, folder: Path) -> Rendered:
    """The manifests of `file`, with each node in a pod. Keys that are in `folder` already are kept.

    A node has the name of its pod: root-0, worker-0, worker-1, ... Raises ConfigError, FormatError, PlanError.
    """
    cluster, needs = file.cluster, needs_of(file)
    names = [f"worker-{i}" for i in range(len(cluster.workers))]
    keys = kept_keys(folder, ["root-0", *names])
    workers = [WorkerConfig(name=name, host=f"{name}.worker", key=keys[name].public) for name in names]
    namespace = re.sub(r"[^a-z0-9]+", "-", cluster.name.lower()).strip("-")
    models = needs.model.files
    pods = [_pods("root", 1, ROOT_WORDS, cluster.root.threads, needs.root_mib, 0)]
    if workers:
        threads = cluster.workers[0].threads
        words = worker_words(cluster, "root", "$(POD_NAME)", threads, keys["root-0"].public.replace("$", "$$"))
        pods.append(_pods("worker", len(workers), words, threads, needs.worker_mib, needs.worker_weight_bytes))
    manifests = from_template(
        "manifests.yaml",
        namespace=namespace,
        image=image,
        user=IMAGE_USER,
        all_pods=pods,
        bus=asdict(Ports()),
        models=models,
        models_bytes=sum(path.stat().st_size for path in models.values()),
        await_models=_awaiting(models),
        **PLACES,
    )
    files = {
        "kustomization.yaml": from_template("kustomization.yaml", namespace=namespace, nodes=list(keys)),
        "manifests.yaml": manifests,
        "cluster.yaml": cluster_yaml(in_containers(file, needs.model, workers, cluster.root.threads), file.path),
    }
    here = shlex.quote(str(folder))
    then = [
        f"docker build -f {here}/Containerfile -t {image} {here} && docker push {image}",
        f"kubectl apply -k {here}",
        *(
            f"kubectl -n {namespace} cp -c models {shlex.join([str(path), f'root-0:{MODELS}/{name}'])}"
            for name, path in models.items()
        ),
    ]
    return Rendered(files | image_files(image), secrets_of(file, keys), then)


def _pods(
    name: str, replicas: int, words: Sequence[str], threads: Threads | Auto, memory_mib: int, disk_bytes: int
) -> dict[str, object]:
    """What the template needs of a StatefulSet. disk_bytes: of HOME, beside 1 GiB."""
    cpu = "1" if threads == "auto" else str(threads)
    sizes = {"cpu": cpu, "memory_mib": memory_mib, "disk_bytes": disk_bytes}
    return {"name": name, "replicas": replicas, "words": words, **sizes}


def _awaiting(models: Mapping[str, Path]) -> str:
    """A script that waits until the model's files are complete."""
    names, sizes = shlex.join(models), " ".join(str(path.stat().st_size) for path in models.values())
    folders = shlex.join(sorted({str(Path(MODELS, name).parent) for name in models}))
    are_there = f"[ \"$(stat -Lc %s -- {names} 2>&1 | xargs)\" = '{sizes}' ]"
    message = shlex.quote(f"waiting for {names} in {MODELS}")
    return f"mkdir -p {folders}; cd {MODELS}; until {are_there}; do echo {message}; sleep 5; done"
