"""Lists and removes pulled models, by huggingface_hub's view of its cache. Uses no network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from dllama_zmq.errors import UsageError
from dllama_zmq.hub.cache import RepoCache, cache_folder, find_cached, find_offline
from dllama_zmq.hub.choice import all_models
from dllama_zmq.hub.http import load_settings
from dllama_zmq.hub.name import ModelName

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo


class Pulled(Struct, frozen=True):
    """A model in the cache: the name to type, its path, its bytes on disk."""

    name: ModelName
    path: Path
    n_bytes: int


def list_pulled() -> list[Pulled]:
    """Every complete model in the cache, by name, of each repository as of the last `pull` of main."""
    found = []
    for repo in _scanned():
        revision = repo.refs.get("main")
        if revision is None:
            continue
        folder = revision.snapshot_path
        sizes = {file.file_path.relative_to(folder).as_posix(): file.size_on_disk for file in revision.files}
        for name, choice in all_models(sorted(sizes), repo.repo_id).items():
            n_bytes = sum(sizes[one] for one in choice.files)
            found.append(Pulled(name, folder / choice.model, n_bytes))
    return sorted(found, key=lambda one: str(one.name).lower())


def find_by_name(text: str) -> ModelName | None:
    """The pulled model REPO[:FILE]. The owner may be left out if only one pulled repository has that name.

    If that repository does not have the model, or has several, the name is returned too: `find_pulled` raises the
    error. Returns None if no such repository is there, or several are.
    """
    try:
        name = ModelName.parse(text)
    except UsageError:
        return None
    repos = [name.repo]
    if "/" not in name.repo:
        folders = cache_folder().glob(f"models--*--{name.repo}")
        repos += [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]
    here = [ModelName(repo, name.file) for repo in repos if RepoCache.of(repo).commit_of("main") is not None]
    whole = [one for one in here if _is_whole(one)]
    found = whole or here
    return found[0] if len(found) == 1 else None


def _is_whole(name: ModelName) -> bool:
    try:
        find_offline(name, "main")
    except UsageError:
        return False
    return True


class Removal(Struct, frozen=True):
    """The files to remove with a model."""

    name: ModelName
    paths: tuple[Path, ...]
    """Links and their files; the repository's folder if it has no other model."""
    n_bytes: int
    commits: tuple[str, ...] = ()
    """All revisions of the repository, if it has no other model."""

    def execute(self) -> None:
        """Remove it. Raises UsageError if that fails."""
        try:
            if self.commits:
                from huggingface_hub import scan_cache_dir

                scan_cache_dir().delete_revisions(*self.commits).execute()
            for path in self.paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be removed ({error.strerror}); check its folder") from error


def plan_removal(name: ModelName) -> Removal:
    """The removal of a pulled model: its files that no other model of the repository needs.

    A repository without another model goes with all its revisions. Raises UsageError if the model is not in the cache.
    """
    snapshot, choice = find_cached(name, "main", "`dllama-zmq list` shows what can be removed")
    names = RepoCache.of(name.repo).names(snapshot.name)
    others = [other for other in all_models(names, name.repo).values() if other.model != choice.model]
    if not others:
        repo = next(one for one in _scanned() if one.repo_id == name.repo)
        commits = tuple(revision.commit_hash for revision in repo.revisions)
        return Removal(name, (repo.repo_path,), repo.size_on_disk, commits)
    needed = {one for other in others for one in other.files}
    links = [snapshot / one for one in choice.files if one not in needed]
    n_bytes = sum(link.stat().st_size for link in links)
    blobs = {link.resolve() for link in links}
    all_links = [link for link in snapshot.parent.rglob("*") if link.is_file() and link.resolve() in blobs]
    return Removal(name, (*all_links, *blobs), n_bytes)


def _scanned() -> list[CachedRepoInfo]:
    """The repositories of models in the cache."""
    load_settings()
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except (CacheNotFound, ValueError):  # ValueError: the cache's folder is a file
        return []
