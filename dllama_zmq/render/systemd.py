"""Units of systemd: one for the root with its gateway and its computer's workers, one for a worker elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from dllama_zmq.api_config import ApiConfig
from dllama_zmq.cluster import ClusterFile, is_loopback
from dllama_zmq.errors import UsageError
from dllama_zmq.launch.invitations import root_for
from dllama_zmq.render.deployed import FILE, ROOT_WORDS, cluster_yaml, worker_words
from dllama_zmq.render.files import HOME, Rendered, from_template
from dllama_zmq.sources import DEMO

PROGRAM = "/opt/dllama-zmq/bin/dllama-zmq"
ROOT_UNIT, WORKER_UNIT = "dllama-zmq-root.service", "dllama-zmq-worker@.service"
_HOMES = ("/home/", "/root/", "/run/user/")  # ProtectHome=yes
_GRACE_S = 7  # after limits.stop_s, in which the root ends its children itself


def systemd(file: ClusterFile) -> Rendered:
    """The units of `file`, and the cluster file that they name.

    Raises ConfigError if the model is missing; UsageError if the units could not read it.
    """
    cluster = file.cluster
    # systemd starts the workers, so the root does not.
    workers = [msgspec.structs.replace(worker, ssh=None) for worker in cluster.workers]
    changes: dict[str, object] = {"workers": workers}
    if cluster.model != DEMO:
        changes["model"] = _readable(file.unchecked_model_path(), "model")
        file.model_path()
    if cluster.tokenizer not in (None, DEMO):
        changes["tokenizer"] = _readable(file.tokenizer_path(), "tokenizer")
    if isinstance(cluster.api, ApiConfig) and isinstance(cluster.api.keys, str):
        keys = file.identity.parent / Path(cluster.api.keys).expanduser()
        changes["api"] = msgspec.structs.replace(cluster.api, keys=_readable(keys.absolute(), "api.keys"))
    stop_s = str(math.ceil(cluster.limits.stop_s) + _GRACE_S)
    files = {
        "cluster.yaml": cluster_yaml(msgspec.structs.replace(cluster, **changes), file.path),
        ROOT_UNIT: _unit("root.service", ROOT_WORDS, cluster.name, stop_s),
    }
    elsewhere = [worker for worker in workers if not is_loopback(worker.host)]
    if elsewhere:
        root = root_for(cluster, elsewhere[0].host)
        files[WORKER_UNIT] = _unit("worker@.service", worker_words(cluster, root, "%i"), cluster.name, stop_s)
    for worker in elsewhere:
        if worker.threads != "auto":
            name = WORKER_UNIT.replace("@", f"@{worker.name}")
            files[f"{name}.d/threads.conf"] = f'[Service]\nEnvironment="FLAGS=--threads {worker.threads}"\n'
    return Rendered(files, then=_commands([worker.name for worker in elsewhere], cluster.secured))


def _unit(template: str, words: list[str], name: str, stop_s: str) -> str:
    service = from_template("service.conf", stop_s=stop_s)
    return from_template(template, command=" ".join([PROGRAM, *words]), name=name, service=service)


def _readable(path: Path, key: str) -> str:
    """The path of a file that a unit can read. Raises UsageError if it is in a home folder."""
    if any(str(one).startswith(_HOMES) for one in (path, path.resolve())):
        raise UsageError(
            f"{key}: {path} is in a home folder, which a service cannot read; put it elsewhere, such as "
            f"/srv/dllama-zmq/{path.name}, and write that path in the cluster's file"
        )
    return str(path)


def _commands(workers: list[str], secured: bool) -> list[str]:
    """The commands to run on the root's computer and on each worker's; they make the user and install the program."""
    program = f"sudo -u dllama-zmq DLLAMA_ZMQ_HOME={HOME} {PROGRAM}"
    units = "/etc/systemd/system/"
    commands = [
        f"on each computer: {PROGRAM}, and its user: sudo useradd --system --home-dir {HOME} dllama-zmq",
        f"on the root: sudo install -D -m 640 -g dllama-zmq cluster.yaml {FILE} && "
        f"sudo cp {ROOT_UNIT} {units} && sudo systemctl enable --now dllama-zmq-root",
    ]
    for name in workers:
        if secured:
            commands.append(f"on the root: {program} token {name} --cluster {FILE}")
            commands.append(f"on {name}: {program} join TOKEN")
        commands.append(
            f"on {name}: sudo cp {WORKER_UNIT} {units} && sudo systemctl enable --now dllama-zmq-worker@{name}"
        )
    return commands
