"""Manifests for Kubernetes, as a folder for `kubectl apply -k`: the root, its workers and their resources."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dllama_zmq.cluster import ClusterFile
from dllama_zmq.node_config import Ports, Threads, WorkerConfig
from dllama_zmq.render.deployed import (
    API_KEYS,
    API_PORT,
    ETC,
    MODELS,
    ROOT_WORDS,
    Auto,
    Needs,
    cluster_yaml,
    in_containers,
    kept_keys,
    needs_of,
    secrets_of,
    worker_words,
)
from dllama_zmq.render.files import HOME, IMAGE_USER, Rendered, image_files, yaml_text

_Object = dict[str, object]

ROOT, WORKER, API = "root", "worker", "api"
"""The names of objects. A node has the name of its pod: root-0, worker-0, worker-1, ..."""
_SECRET, _CONFIG, _MODELS, _HOME = "keys", "cluster", "models", "home"
_API_KEYS = API_KEYS.rpartition("/")[2]
_LABEL, _COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
_PROGRAM = "dllama-zmq"
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class _Pods:
    """The pods of a StatefulSet. disk_bytes: of HOME, beside 1 GiB. more: additional keys of their container."""

    name: str
    replicas: int
    words: Sequence[str]
    threads: Threads | Auto
    memory_mib: int
    disk_bytes: int = 0
    inits: Sequence[_Object] = ()
    mounts: Sequence[_Object] = ()
    volumes: Sequence[_Object] = ()
    more: _Object = field(default_factory=dict)


def kubernetes(file: ClusterFile, image: str, folder: Path) -> Rendered:
    """The manifests of `file`, with each node in a pod. Keys that are in `folder` already are kept.

    Raises ConfigError, FormatError, PlanError.
    """
    cluster, needs = file.cluster, needs_of(file)
    names = [f"{WORKER}-{i}" for i in range(len(cluster.workers))]
    keys = kept_keys(folder, [f"{ROOT}-0", *names])
    root_key = keys[f"{ROOT}-0"].public
    workers = [WorkerConfig(name=name, host=f"{name}.{WORKER}", key=keys[name].public) for name in names]
    namespace = re.sub(r"[^a-z0-9]+", "-", cluster.name.lower()).strip("-")
    files = {
        "kustomization.yaml": yaml_text(_kustomization(namespace, list(keys))),
        "manifests.yaml": yaml_text(_namespace(namespace), *_objects(file, needs, image, root_key)),
        "cluster.yaml": cluster_yaml(in_containers(file, needs.model, workers, cluster.root.threads), file.path),
    }
    here, models = shlex.quote(str(folder)), needs.model.files.items()
    then = [
        f"docker build -f {here}/Containerfile -t {image} {here} && docker push {image}",
        f"kubectl apply -k {here}",
        *(
            f"kubectl -n {namespace} cp -c {_MODELS} {shlex.join([str(path), f'{ROOT}-0:{MODELS}/{name}'])}"
            for name, path in models
        ),
    ]
    return Rendered(files | image_files(image), secrets_of(file, keys), then)


def _kustomization(namespace: str, nodes: Sequence[str]) -> _Object:
    """The generator of the ConfigMap and the Secret from files, so that the manifests contain no secret."""
    keys = [*(f"{node}=keys/{node}/key" for node in nodes), f"keys/{_API_KEYS}"]
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": namespace,
        "resources": ["manifests.yaml"],
        "configMapGenerator": [{"name": _CONFIG, "files": ["cluster.yaml"]}],
        "secretGenerator": [{"name": _SECRET, "files": keys}],
        # with hashed names all nodes would restart, but the root reads changed keys by itself
        "generatorOptions": {"disableNameSuffixHash": True},
    }


def _namespace(name: str) -> _Object:
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _objects(file: ClusterFile, needs: Needs, image: str, root_key: str) -> list[_Object]:
    cluster, models = file.cluster, needs.model.files
    bus = {name: getattr(Ports(), name) for name in Ports.__struct_fields__}
    objects = [
        _service(ROOT, ROOT, bus, is_bus=True),
        _service(API, ROOT, {API: API_PORT}),
        _stateful_set(_root(cluster.root.threads, needs.root_mib, models), image),
    ]
    if cluster.workers:
        threads = cluster.workers[0].threads
        words = worker_words(cluster, ROOT, "$(POD_NAME)", threads, root_key.replace("$", "$$"))
        pods = _Pods(WORKER, len(cluster.workers), words, threads, needs.worker_mib, needs.worker_weight_bytes)
        objects += [_service(WORKER, WORKER, {}, is_bus=True), _stateful_set(pods, image)]
    return [*objects, *([_claim(_MODELS, sum(path.stat().st_size for path in models.values()))] if models else [])]


def _root(threads: Threads | Auto, memory_mib: int, models: Mapping[str, Path]) -> _Pods:
    api_keys = _mount(_SECRET, API_KEYS, read_only=True) | {"subPath": _API_KEYS}
    model = _mount(_MODELS, MODELS, read_only=True)
    claimed: _Object = {"name": _MODELS, "persistentVolumeClaim": {"claimName": _MODELS}}
    health = {"path": "/health", "port": API}
    return _Pods(
        ROOT,
        1,
        ROOT_WORDS,
        threads,
        memory_mib,
        inits=[_awaiting(models)] if models else [],
        mounts=[_mount(_CONFIG, ETC, read_only=True), api_keys, *([model] if models else [])],
        volumes=[{"name": _CONFIG, "configMap": {"name": _CONFIG}}, *([claimed] if models else [])],
        more={
            "ports": [{"name": API, "containerPort": API_PORT}],
            "readinessProbe": {"httpGet": health, "periodSeconds": 5, "timeoutSeconds": 5},
        },
    )


def _stateful_set(pods: _Pods, image: str) -> _Object:
    labels = {_LABEL: _PROGRAM, _COMPONENT: pods.name}
    common: _Object = {
        "image": image,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    }
    memory = f"{pods.memory_mib}Mi"
    cpu = "1" if pods.threads == "auto" else str(pods.threads)
    node: _Object = {
        "name": pods.name,
        "args": list(pods.words),
        "resources": {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}},
        "volumeMounts": [_mount(_HOME, HOME), _mount("tmp", "/tmp"), *pods.mounts],
    }
    spread: _Object = {  # one machine for each node, if there are enough: nodes need to share only the network
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {_LABEL: _PROGRAM}},
    }
    spec: _Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": IMAGE_USER,
            "runAsGroup": IMAGE_USER,
            "fsGroup": IMAGE_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "topologySpreadConstraints": [spread],
        "initContainers": [common | init for init in (_own_key(), *pods.inits)],
        "containers": [common | node | pods.more],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": _SECRET, "secret": {"secretName": _SECRET, "defaultMode": 0o440}},
            *pods.volumes,
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": pods.name, "labels": labels},
        "spec": {
            "serviceName": pods.name,
            "replicas": pods.replicas,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
            "volumeClaimTemplates": [_claim(_HOME, pods.disk_bytes)],
        },
    }


def _own_key() -> _Object:
    """Gives a pod only its own secret key, as a file of its user: files of a Secret belong to root."""
    given, folder = "/run/secrets/key", f"{HOME}/keys"
    script = f"install -d -m 700 {folder} && install -m 600 {given} {folder}/key"
    own = _mount(_SECRET, given, read_only=True) | {"subPathExpr": "$(POD_NAME)"}
    return {"name": _SECRET, "command": ["sh", "-c", script], "volumeMounts": [_mount(_HOME, HOME), own]}


def _awaiting(models: Mapping[str, Path]) -> _Object:
    """Waits until the model's files are complete. They are copied into the claim through this container."""
    names, sizes = shlex.join(models), " ".join(str(path.stat().st_size) for path in models.values())
    folders = shlex.join(sorted({str(Path(MODELS, name).parent) for name in models}))
    are_there = f"[ \"$(stat -Lc %s -- {names} 2>&1 | xargs)\" = '{sizes}' ]"
    message = shlex.quote(f"waiting for {names} in {MODELS}")
    script = f"mkdir -p {folders}; cd {MODELS}; until {are_there}; do echo {message}; sleep 5; done"
    return {"name": _MODELS, "command": ["sh", "-c", script], "volumeMounts": [_mount(_MODELS, MODELS)]}


def _mount(volume: str, path: str, read_only: bool = False) -> _Object:
    return {"name": volume, "mountPath": path, **({"readOnly": True} if read_only else {})}


def _claim(name: str, n_bytes: int) -> _Object:
    """A claim with room for `n_bytes` twice, so that another model fits beside this one, and 1 GiB."""
    spec = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": f"{2 * n_bytes // _GIB + 1}Gi"}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def _service(name: str, component: str, ports: Mapping[str, int], is_bus: bool = False) -> _Object:
    """is_bus: also routes to pods that are not ready, because a root is ready only after its workers have found it."""
    spec: _Object = {"selector": {_LABEL: _PROGRAM, _COMPONENT: component}}
    if ports:
        spec["ports"] = [{"name": port, "port": number} for port, number in ports.items()]
    if is_bus:
        spec |= {"clusterIP": "None", "publishNotReadyAddresses": True}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
