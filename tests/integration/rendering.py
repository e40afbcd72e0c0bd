"""Rendered files of a cluster of four nodes, and what is in them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import yaml
from command_line import Cli

from dllama_zmq.render.systemd import PROGRAM
from dllama_zmq.trust import KeyPair

FORMS = ["systemd", "compose", "kubernetes"]
API_KEY = "sk-rendered-0001"
HOME = {
    "name": "Home_1",
    "root": {"host": "192.168.1.10"},
    "workers": [
        {"name": "pi2", "host": "192.168.1.11"},
        {"name": "pi3", "host": "192.168.1.12", "threads": 3},
        {"name": "here"},
    ],
    "limits": {"join_s": 90},
    "api": {"keys": [API_KEY], "limits": {"n": 4}},
}


def render(cli: Cli, form: str, *words: str, model: str = "demo", **keys: Any) -> Path:
    """Write a cluster's file and the files of `form`; the folder of those."""
    (cli.folder / "home.yaml").write_text(yaml.safe_dump({"model": model, **HOME, **keys}))
    done = cli.run_here("render", form, "home.yaml", *words)
    assert done.code == 0, done.said
    return cli.folder / form


def of(folder: Path, name: str, kind: str = "") -> list[Any]:
    """The documents of a YAML file, those of a kind."""
    return [one for one in yaml.safe_load_all((folder / name).read_text()) if not kind or one["kind"] == kind]


def containers(folder: Path) -> dict[str, Any]:
    """The containers of Kubernetes' pods by name, those that run first too."""
    specs = [one["spec"]["template"]["spec"] for one in of(folder, "manifests.yaml", "StatefulSet")]
    return {f"{spec['containers'][0]['name']}/{one['name']}": one for spec in specs for one in all_of(spec)}


def all_of(spec: dict[str, Any]) -> list[Any]:
    return [*spec["initContainers"], *spec["containers"]]


def cluster_file(folder: Path) -> Path:
    (path,) = folder.rglob("cluster.yaml")
    return path


def commands(folder: Path, form: str) -> list[list[str]]:
    """The words after `dllama-zmq` of all that is rendered."""
    if form == "compose":
        services = of(folder, "compose.yaml")[0]["services"].values()
        return [[word.replace("$$", "$") for word in one["command"]] for one in services]
    if form == "kubernetes":
        given = [one["args"] for one in containers(folder).values() if "args" in one]
        return [[word.replace("$$", "$") for word in words] for words in given]
    lines = [line for path in folder.glob("*.service") for line in path.read_text().splitlines()]
    starts = [shlex.split(line.partition("=")[2]) for line in lines if line.startswith("ExecStart=")]
    assert all(words[0] == PROGRAM for words in starts)
    return [[word for word in words[1:] if word != "$FLAGS"] for words in starts]


def root_of(folder: Path) -> str:
    """The root's public key."""
    (path,) = (folder / "keys").glob("root*/key")
    return KeyPair.of_secret(path.read_text().strip()).public
