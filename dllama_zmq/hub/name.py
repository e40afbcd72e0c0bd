"""REPO[:FILE], as people write it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dllama_zmq.errors import UsageError

HUB_PREFIX = "hf:"
"""What tells such a name from a path in `cluster.yaml`."""

_REPO = re.compile(r"(?:[A-Za-z0-9_][\w.-]{0,95}/)?[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w./+-]{0,254}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ModelName:
    """A repository of a hub, and which of its models: a file's name, a glob, a quantization; None for the usual one."""

    repo: str
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """`REPO[:FILE]`, with `hf:` before it or not. Raises UsageError where it is none."""
        repo, colon, file = text.removeprefix(HUB_PREFIX).partition(":")
        # "--" stands for "/" in the cache's folders, so a hub has no such name.
        if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith((".git", "-", ".")):
            raise UsageError(
                f"{text!r} names no model of a hub; write USER/REPO or USER/REPO:FILE, as org/model-GGUF:Q4_K_M"
            )
        if colon and (not file or file.startswith("/") or len(file) > 1024 or not file.isprintable()):
            raise UsageError(
                f"{text!r} names no file after the colon; give a file's name or a quantization, as :Q4_K_M"
            )
        return cls(repo, file if colon else None)

    def __str__(self) -> str:
        return self.repo if self.file is None else f"{self.repo}:{self.file}"


def is_hub_name(text: str) -> bool:
    """Whether `text` looks like USER/REPO[:FILE]: two parts, and not the name of a model's file."""
    try:
        name = ModelName.parse(text)
    except UsageError:
        return False
    return "/" in name.repo and not name.repo.endswith((".gguf", ".m", ".safetensors"))


def checked_revision(text: str) -> str:
    """A branch, tag or commit that may become a path in the cache. Raises UsageError where it may not."""
    if not _REVISION.fullmatch(text) or any(part in ("", ".", "..") for part in text.split("/")):
        raise UsageError(f"--revision {text!r} is no branch, tag or commit; leave it out for main")
    return text


def is_safe_file_name(name: object) -> bool:
    """Whether a hub's file name stays below the folder that it is joined to."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 1024
        and name.isprintable()
        and "\\" not in name
        and all(part not in ("", ".", "..") and len(part.encode()) <= 200 for part in name.split("/"))
    )
