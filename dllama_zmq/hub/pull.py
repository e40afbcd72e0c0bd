"""A pull: the files to download, known before it begins, and their download."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from dllama_zmq.errors import UsageError
from dllama_zmq.hub.cache import RepoCache, find_offline
from dllama_zmq.hub.choice import Choice, choose
from dllama_zmq.hub.http import endpoint, hub_errors, load_settings
from dllama_zmq.hub.listing import HubFile, list_repo
from dllama_zmq.hub.name import ModelName, checked_revision
from dllama_zmq.hub.transfer import Transfer, copy_part, has_content
from dllama_zmq.reporting import Reporter


class Pull(Struct, frozen=True):
    """The files of a model on the hub, and the folder to put them in."""

    repo: str
    revision: str
    commit: str
    choice: Choice
    files: tuple[HubFile, ...]
    folder: Path | None
    """The folder of --to; None is the cache."""

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.n_bytes for file in self.files)

    def path(self) -> Path:
        """The path for `model:`, once it is downloaded."""
        return self._base() / self.choice.model

    def tokenizer_path(self) -> Path | None:
        """The path for `tokenizer:`, if the model needs one."""
        return None if self.choice.tokenizer is None else self._base() / self.choice.tokenizer

    def missing(self) -> dict[HubFile, int]:
        """The files that are not here, with the bytes of each still to download."""
        cache = RepoCache.of(self.repo)
        found: dict[HubFile, int] = {}
        for file in self.files:
            target = self._target(file)
            in_folder = target.is_file() and target.stat().st_size == file.n_bytes
            if not (in_folder if self.folder else cache.has(self.commit, file)):
                part = self._part(file)
                found[file] = max(0, file.n_bytes - (part.stat().st_size if part.is_file() else 0))
        return found

    def check_room(self) -> None:
        """Raise UsageError if the disk has less room than the missing files need."""
        place = self._base()
        while not place.is_dir() and place != place.parent:
            place = place.parent
        needed, free = sum(self.missing().values()), shutil.disk_usage(place).free
        if needed > free:
            other = (
                "give another folder to --to" if self.folder else "use --to or HF_HOME for a folder on a larger disk"
            )
            sizes = f"needs {needed / 1e9:.1f} GB more, and {place} has {free / 1e9:.1f} GB free"
            raise UsageError(f"{self.repo} {sizes}; make room, or {other}")

    def fetch(self, reporter: Reporter) -> None:
        """Download the missing files. After an interruption, the next call resumes.

        Raises HubError if the hub fails, UsageError if a file cannot be written.
        """
        cache = RepoCache.of(self.repo)
        transfer = Transfer(self.repo, self.commit, reporter, self.n_bytes)
        with hub_errors(self.repo, self.revision):
            for file in dict.fromkeys(self.files):
                target = self._target(file)
                here = has_content(target, file, reporter) if self.folder else cache.has(self.commit, file)
                if here:
                    transfer.skip(file)
                else:
                    part = self._part(file)
                    if self.folder and cache.blob(file).is_file() and not part.exists():
                        reporter.activity(f"copying {file.name} from the cache")
                        copy_part(cache.blob(file), part)  # `fetch` checks it like any other part
                    transfer.fetch(file, part, target)
        if self.folder is None:
            for file in self.files:
                cache.link(self.commit, file)
            cache.set_ref(self.revision, self.commit)

    def _base(self) -> Path:
        return self.folder or RepoCache.of(self.repo).snapshot(self.commit)

    def _target(self, file: HubFile) -> Path:
        return self.folder / file.name if self.folder else RepoCache.of(self.repo).blob(file)

    def _part(self, file: HubFile) -> Path:
        if self.folder is None:
            return RepoCache.of(self.repo).part(file)
        target = self.folder / file.name
        return target.with_name(f".{target.name}.{file.hash[:12]}.part")


def plan_pull(
    name: ModelName,
    revision: str = "main",
    folder: Path | None = None,
    *,
    offline: bool = False,
    on_wait: Callable[[str], None] = lambda text: None,
) -> Pull:
    """Plan the download of `name` at `revision`. With `offline` or HF_HUB_OFFLINE, only the cache is asked.

    `on_wait` is called with the reason of every wait.

    Raises HubError if the hub fails or refuses, UsageError if there is no such model or, offline, a file of it is
    missing from the cache.
    """
    load_settings()
    from huggingface_hub import constants

    checked_revision(revision)
    if offline or constants.is_offline_mode():
        if folder is not None:
            raise UsageError("--to downloads from the hub, which is not asked offline; leave one of the two out")
        snapshot, choice = find_offline(name, revision)
        return Pull(name.repo, revision, snapshot.name, choice, (), None)
    commit, files = list_repo(name.repo, revision, on_wait)
    choice = choose(list(files), name, f"{endpoint()}/{name.repo}")
    chosen = tuple(files[one] for one in choice.files)
    return Pull(name.repo, revision, commit, choice, chosen, folder and folder.absolute())
