"""What a pull will fetch, known before it begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dllama_zmq.errors import UsageError
from dllama_zmq.hub.cache import RepoCache, find_cached
from dllama_zmq.hub.choice import Choice, choose
from dllama_zmq.hub.listing import HubFile, list_repo
from dllama_zmq.hub.name import ModelName, checked_revision
from dllama_zmq.hub.reach import endpoint, in_plain_words, load_settings
from dllama_zmq.hub.transfer import Transfer, copy_part, is_right_file
from dllama_zmq.telling import Tells


@dataclass(frozen=True, slots=True)
class Plan:
    """A model of the hub and where it goes."""

    repo: str
    revision: str
    commit: str
    choice: Choice
    files: tuple[HubFile, ...]
    folder: Path | None
    """Where --to puts it; None is the cache."""

    @property
    def n_bytes(self) -> int:
        """All of it."""
        return sum(file.n_bytes for file in self.files)

    def path(self) -> Path:
        """What `model:` takes, once it is fetched."""
        return self._base() / self.choice.model

    def tokenizer_path(self) -> Path | None:
        """What `tokenizer:` takes, where the model needs a file beside it."""
        return None if self.choice.tokenizer is None else self._base() / self.choice.tokenizer

    def missing(self) -> dict[HubFile, int]:
        """The files that are not here, with how many bytes of each are still to come."""
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
        """Raise UsageError where the disk has not the room for what is missing."""
        place = self._base()
        while not place.is_dir() and place != place.parent:
            place = place.parent
        needed, free = sum(self.missing().values()), shutil.disk_usage(place).free
        if needed > free:
            other = (
                "give another folder to --to" if self.folder else "use --to or HF_HOME for a folder on a larger disk"
            )
            sizes = f"takes {needed / 1e9:.1f} GB more, and {place} has {free / 1e9:.1f} GB free"
            raise UsageError(f"{self.repo} {sizes}; make room, or {other}")

    def fetch(self, tells: Tells) -> None:
        """Fetch what is missing. What an interruption leaves is where the next call goes on.

        Raises HubError where the hub does not give it, UsageError where it cannot be written.
        """
        cache = RepoCache.of(self.repo)
        transfer = Transfer(self.repo, self.commit, tells, self.n_bytes)
        with in_plain_words(self.repo, self.revision):
            for file in dict.fromkeys(self.files):
                target = self._target(file)
                here = is_right_file(file, target, tells) if self.folder else cache.has(self.commit, file)
                if here:
                    transfer.have(file)
                else:
                    part = self._part(file)
                    if self.folder and cache.blob(file).is_file() and not part.exists():
                        tells.now(f"copying {file.name} from the cache")
                        copy_part(cache.blob(file), part)  # and it is checked like any other part
                    transfer.fetch(file, part, target)
        if self.folder is None:
            for file in self.files:
                cache.link(self.commit, file)
            cache.remember(self.revision, self.commit)

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
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Ask the hub for `name` at `revision`; with `offline`, or HF_HUB_OFFLINE set, look into the cache alone.

    `say` hears why the hub keeps us waiting.

    Raises HubError where the hub does not answer or does not give it, UsageError where there is no such model or,
    offline, the cache has not all of it.
    """
    load_settings()
    from huggingface_hub import constants

    checked_revision(revision)
    if offline or constants.is_offline_mode():
        if folder is not None:
            raise UsageError("--to fetches from the hub, and this is offline; leave one of the two out")
        snapshot, choice = find_cached(name, revision)
        return Plan(name.repo, revision, snapshot.name, choice, (), None)
    listing = list_repo(name.repo, revision, say)
    choice = choose(list(listing.files), name, f"{endpoint()}/{name.repo}")
    files = tuple(listing.files[one] for one in choice.files)
    return Plan(name.repo, revision, listing.commit, choice, files, folder and folder.absolute())
