"""The names of models: REPO[:FILE]."""

from __future__ import annotations

import re

from msgspec import Struct

from dllama_zmq.errors import UsageError

HUB_PREFIX = "hf:"
"""Begins such a name in `cluster.yaml`; any other text is a path."""

_REPO = re.compile(r"(?:[A-Za-z0-9_][\w.-]{0,95}/)?[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9_][\w./+-]{0,254}", re.ASCII)


class ModelName(Struct, frozen=True):
    """A model of a repository. `file` is a file's name, a glob or a quantization; None means the default model."""

    repo: str
    file: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Parse `REPO[:FILE]` or `hf:REPO[:FILE]`. Raises UsageError for any other text."""
        repo, colon, file = text.removeprefix(HUB_PREFIX).partition(":")
        # The cache's folders have "--" for "/", so hubs allow no such name.
        if not _REPO.fullmatch(repo) or "--" in repo or ".." in repo or repo.endswith((".git", "-", ".")):
            raise UsageError(
                f"{text!r} is not the name of a hub's model; write USER/REPO or USER/REPO:FILE, as "
                "org/model-GGUF:Q4_K_M"
            )
        if colon and (not file or file.startswith("/") or len(file) > 1024 or not file.isprintable()):
            raise UsageError(f"{text!r} has no file after the colon; give a file's name or a quantization, as :Q4_K_M")
        return cls(repo, file if colon else None)

    def __str__(self) -> str:
        return self.repo if self.file is None else f"{self.repo}:{self.file}"


def is_hub_name(text: str) -> bool:
    """Whether `text` looks like USER/REPO[:FILE] and not like the path of a model's file."""
    try:
        name = ModelName.parse(text)
    except UsageError:
        return False
    return "/" in name.repo and not name.repo.endswith((".gguf", ".m", ".safetensors"))


def checked_revision(text: str) -> str:
    """`text` if it is safe as a path in the cache. Raises UsageError if not."""
    if not _REVISION.fullmatch(text) or any(part in ("", ".", "..") for part in text.split("/")):
        raise UsageError(f"--revision {text!r} is not a branch, tag or commit; leave it out for main")
    return text


def is_safe_file_name(name: object) -> bool:
    """Whether `name` stays inside the folder that it is joined to."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 1024
        and name.isprintable()
        and "\\" not in name
        and all(part not in ("", ".", "..") and len(part.encode()) <= 200 for part in name.split("/"))
    )
