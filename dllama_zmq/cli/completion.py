"""Values for shell completion. Never fails: what cannot be found is not offered."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dllama_zmq.errors import DllamaError


def shapes(incomplete: str) -> list[str]:
    """Published shapes."""
    from dllama_zmq.shapes import SHAPES

    return _beginning(SHAPES, incomplete)


def files(incomplete: str) -> list[str]:
    """Cluster files of a folder, the folders in it, and the names of running clusters."""
    from dllama_zmq.launch.registry import running_clusters

    names: list[str] = []
    with suppress(DllamaError, OSError):
        names = [one.name for one in running_clusters() if not one.private]
    return _beginning([*_paths(incomplete, (".yaml", ".yml")), *names], incomplete)


def models(incomplete: str) -> list[str]:
    """Model files of a folder, its subfolders, demo, and pulled models."""
    return _beginning(["demo", *_paths(incomplete, (".gguf", ".m"))], incomplete) + pulled(incomplete)


def pulled(incomplete: str) -> list[str]:
    """Pulled models of the hub."""
    from dllama_zmq.hub.store import list_pulled

    with suppress(DllamaError, OSError):
        return _beginning((str(one.name) for one in list_pulled()), incomplete)
    return []


def templates(incomplete: str) -> list[str]:
    """Built-in chat templates, and template files."""
    from dllama_zmq.tokenizer.builtin_templates import BUILTIN

    return _beginning([*BUILTIN, *_paths(incomplete, (".jinja", ".jinja2", ".txt"))], incomplete)


def nodes(incomplete: str) -> list[str]:
    """The nodes with a log: those of ./cluster.yaml, and its API server."""
    from dllama_zmq.launch.registry import cluster_here

    names = ["root"]
    with suppress(DllamaError, OSError):
        cluster = cluster_here(Path("cluster.yaml"), even_down=True).cluster
        names += [*(worker.name for worker in cluster.workers), *(["gateway"] if cluster.api else [])]
    return _beginning(names, incomplete)


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    found = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            name = str(path) if incomplete.startswith(("/", ".")) or "/" in incomplete else path.name
            if path.is_dir():
                found.append(f"{name}/")
            elif path.suffix.lower() in suffixes:
                found.append(name)
    return found


def _beginning(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
