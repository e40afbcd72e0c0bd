"""huggingface_hub's cache on this computer, which other tools share. Uses no network.

    models--USER--REPO/blobs/<hash>              the file's bytes
                       snapshots/<commit>/<name> a link to the blob
                       refs/<branch or tag>      its commit at the last download

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from msgspec import Struct

from dllama_zmq.errors import UsageError
from dllama_zmq.hub.choice import Choice, SeveralModels, choose
from dllama_zmq.hub.http import load_settings
from dllama_zmq.hub.listing import HubFile
from dllama_zmq.hub.name import ModelName

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class RepoCache(Struct, frozen=True):
    """The cache of one repository."""

    folder: Path

    @classmethod
    def of(cls, repo: str) -> RepoCache:
        """The cache of `repo`."""
        return cls(cache_folder() / f"models--{repo.replace('/', '--')}")

    def blob(self, file: HubFile) -> Path:
        """The path of the bytes of `file`."""
        return self.folder / "blobs" / file.hash

    def part(self, file: HubFile) -> Path:
        """The path of the bytes while they are downloaded."""
        return self.folder / "blobs" / f"{file.hash}.dllama-zmq.incomplete"

    def snapshot(self, commit: str) -> Path:
        """The folder of the files of `commit` that were downloaded."""
        return self.folder / "snapshots" / commit

    def has(self, commit: str, file: HubFile) -> bool:
        """Whether `file` is here: as a blob or, without links, in its snapshot."""
        paths = (self.blob(file), self.snapshot(commit) / file.name)
        return any(path.is_file() and path.stat().st_size == file.n_bytes for path in paths)

    def commit_of(self, revision: str) -> str | None:
        """The commit of `revision` at its last download; None if there was none."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            with (self.folder / "refs" / revision).open("rb") as file:
                text = file.read(100).decode("ascii", "replace").strip()
        except OSError:
            return None
        return text if _COMMIT.fullmatch(text) else None

    def names(self, commit: str) -> list[str]:
        """The files of `commit` that are here."""
        folder = self.snapshot(commit)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def link(self, commit: str, file: HubFile) -> None:
        """Link `file` into the snapshot of `commit`; does nothing without its blob."""
        blob, path = self.blob(file), self.snapshot(commit) / file.name
        if not blob.is_file() or (path.is_file() and path.samefile(blob)):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}.link")
        try:
            temporary.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:  # without links huggingface_hub, too, puts the file itself there
            os.replace(blob, path)
        else:
            os.replace(temporary, path)

    def set_ref(self, revision: str, commit: str) -> None:
        """Record that `revision` is now `commit`."""
        if revision == commit:
            return
        path = self.folder / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}.ref")
        temporary.write_text(commit)
        os.replace(temporary, path)


def cache_folder() -> Path:
    """The folder of pulled models, as HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME set it."""
    load_settings()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).absolute()


def find_cached(name: ModelName, revision: str, advice: str) -> tuple[Path, Choice]:
    """The snapshot with all files of `name`, and these files.

    Raises UsageError, which ends with `advice`, if one is missing; SeveralModels if several models have that name.
    """
    cache = RepoCache.of(name.repo)
    commit = cache.commit_of(revision)
    names = cache.names(commit) if commit else []
    try:
        if commit is None or not names:
            raise UsageError(f"{name} is not in the cache {cache.folder.parent}")
        return cache.snapshot(commit), choose(names, name, f"the cache of {name.repo}")
    except SeveralModels:
        raise
    except UsageError as error:
        raise UsageError(f"{error}; {advice}") from error


def find_offline(name: ModelName, revision: str) -> tuple[Path, Choice]:
    """As `find_cached`, for a command that needs the model: the UsageError names the command that fetches it."""
    at = "" if revision == "main" else f" --revision {revision}"
    return find_cached(name, revision, f"`dllama-zmq pull {name}{at}` fetches it")


def find_pulled(name: str) -> Path:
    """The pulled model `name`, a file or a folder in the cache. Asks no hub.

    `name` is REPO[:FILE] or hf:REPO[:FILE]. Raises UsageError with the command to run if a file is missing.
    """
    folder, choice = find_offline(ModelName.parse(name), "main")
    return folder / choice.model
