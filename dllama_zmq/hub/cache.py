"""huggingface_hub's cache on this computer, which other tools share. No network here.

    models--USER--REPO/blobs/<hash>              the bytes, once
                       snapshots/<commit>/<name> a link to them
                       refs/<branch or tag>      the commit it was when last asked for

Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from dllama_zmq.errors import UsageError
from dllama_zmq.hub.choice import Choice, choose
from dllama_zmq.hub.listing import HubFile
from dllama_zmq.hub.name import ModelName
from dllama_zmq.hub.reach import load_settings

_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RepoCache:
    """The cache's folder of one repository."""

    folder: Path

    @classmethod
    def of(cls, repo: str) -> RepoCache:
        """Its folder in the cache."""
        return cls(cache_folder() / f"models--{repo.replace('/', '--')}")

    def blob(self, file: HubFile) -> Path:
        """Where the bytes of `file` belong."""
        return self.folder / "blobs" / file.hash

    def part(self, file: HubFile) -> Path:
        """Where they are gathered until they are all there."""
        return self.folder / "blobs" / f"{file.hash}.dllama-zmq.incomplete"

    def snapshot(self, commit: str) -> Path:
        """The repository as it was at `commit`, so far as it is here."""
        return self.folder / "snapshots" / commit

    def has(self, commit: str, file: HubFile) -> bool:
        """Whether `file` is here, as a blob or, where links are not possible, in its snapshot."""
        paths = (self.blob(file), self.snapshot(commit) / file.name)
        return any(path.is_file() and path.stat().st_size == file.n_bytes for path in paths)

    def commit_of(self, revision: str) -> str | None:
        """The commit that `revision` was when it was last asked for, if ever."""
        if _COMMIT.fullmatch(revision):
            return revision
        try:
            with (self.folder / "refs" / revision).open("rb") as file:
                text = file.read(100).decode("ascii", "replace").strip()
        except OSError:
            return None
        return text if _COMMIT.fullmatch(text) else None

    def names(self, commit: str) -> list[str]:
        """The files that are here of one commit."""
        folder = self.snapshot(commit)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def link(self, commit: str, file: HubFile) -> None:
        """Give `file` its name in the snapshot. Its bytes must be here."""
        blob, path = self.blob(file), self.snapshot(commit) / file.name
        if not blob.is_file() or (path.is_file() and path.samefile(blob)):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}.link")
        try:
            temporary.symlink_to(os.path.relpath(blob, path.parent))
        except OSError:  # a file system without links has the file itself there, as huggingface_hub would
            os.replace(blob, path)
        else:
            os.replace(temporary, path)

    def remember(self, revision: str, commit: str) -> None:
        """Note which commit `revision` is now."""
        if revision == commit:
            return
        path = self.folder / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{secrets.token_hex(8)}.ref")
        temporary.write_text(commit)
        os.replace(temporary, path)


def cache_folder() -> Path:
    """Where the environment (HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME) puts what is pulled."""
    load_settings()
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).absolute()


def find_cached(name: ModelName, revision: str) -> tuple[Path, Choice]:
    """The snapshot's folder in which `name` lies whole, and its files. Raises UsageError where it does not."""
    cache = RepoCache.of(name.repo)
    commit = cache.commit_of(revision)
    names = cache.names(commit) if commit else []
    at = "" if revision == "main" else f" --revision {revision}"
    if commit is None or not names:
        raise UsageError(f"{name} is not in the cache {cache.folder.parent}; `dllama-zmq pull {name}{at}` fetches it")
    try:
        return cache.snapshot(commit), choose(names, name, f"the cache of {name.repo}")
    except UsageError as error:
        raise UsageError(f"{error}; `dllama-zmq pull {name}{at}` fetches what is missing") from error


def find_pulled(name: str) -> Path:
    """What `dllama-zmq pull` of this name put into the cache: a model file, or the folder of several. Asks no hub.

    `name` is REPO[:FILE], with `hf:` before it or not. Raises UsageError, with the command to run, where it is not all
    there.
    """
    folder, choice = find_cached(ModelName.parse(name), "main")
    return folder / choice.model
