"""What has been pulled: listed and removed, by huggingface_hub's own view of its cache. No network here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllama_zmq.errors import UsageError
from dllama_zmq.hub.cache import RepoCache, cache_folder, find_cached
from dllama_zmq.hub.choice import every_model
from dllama_zmq.hub.name import ModelName
from dllama_zmq.hub.reach import load_settings

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model in the cache: what to type for it, where it is, what it takes on the disk."""

    name: ModelName
    path: Path
    n_bytes: int


def list_pulled() -> list[Pulled]:
    """Every model that lies whole in the cache, by name; a repository counts as it was at its last `pull` of main."""
    found = []
    for repo in _scanned():
        revision = repo.refs.get("main")
        if revision is None:
            continue
        folder = revision.snapshot_path
        sizes = {file.file_path.relative_to(folder).as_posix(): file.size_on_disk for file in revision.files}
        for name, choice in every_model(sorted(sizes), repo.repo_id).items():
            n_bytes = sum(sizes[one] for one in choice.files)
            found.append(Pulled(name, folder / choice.model, n_bytes))
    return sorted(found, key=lambda one: str(one.name).lower())


def find_by_name(text: str) -> ModelName | None:
    """The pulled model that `text` names without `hf:`: REPO[:FILE], or the repository's name without its owner where
    it is the only one of that name. None where there is none."""
    try:
        name = ModelName.parse(text)
    except UsageError:
        return None
    repos = [name.repo]
    if "/" not in name.repo:
        beside = cache_folder().glob(f"models--*--{name.repo}")
        repos += [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in beside]
    there = []
    for repo in repos:
        try:
            find_cached(ModelName(repo, name.file), "main")
        except UsageError:
            continue
        there.append(ModelName(repo, name.file))
    return there[0] if len(there) == 1 else None


@dataclass(frozen=True, slots=True)
class Removal:
    """What would go with a model."""

    name: ModelName
    paths: tuple[Path, ...]
    """Links and the files behind them; of a repository without another model, its whole folder."""
    n_bytes: int
    commits: tuple[str, ...] = ()
    """All revisions of the repository, where they all go."""

    def execute(self) -> None:
        """Remove it. Raises UsageError where it cannot be removed."""
        try:
            if self.commits:
                from huggingface_hub import scan_cache_dir

                scan_cache_dir().delete_revisions(*self.commits).execute()
            for path in self.paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"{error.filename}: cannot be removed ({error.strerror}); check its folder") from error


def plan_removal(name: ModelName) -> Removal:
    """What `rm` of a pulled model removes: its files, but none that another model of the repository needs; the whole
    repository, all revisions, where it has no other. Raises UsageError where the model is not in the cache."""
    snapshot, choice = find_cached(name, "main")
    names = RepoCache.of(name.repo).names(snapshot.name)
    others = [other for other in every_model(names, name.repo).values() if other.model != choice.model]
    if not others:
        repo = next(one for one in _scanned() if one.repo_id == name.repo)
        commits = tuple(revision.commit_hash for revision in repo.revisions)
        return Removal(name, (repo.repo_path,), repo.size_on_disk, commits)
    needed = {one for other in others for one in other.files}
    links = [snapshot / one for one in choice.files if one not in needed]
    n_bytes = sum(link.stat().st_size for link in links)
    blobs = {link.resolve() for link in links}
    of_all = [link for link in snapshot.parent.rglob("*") if link.is_file() and link.resolve() in blobs]
    return Removal(name, (*of_all, *blobs), n_bytes)


def _scanned() -> list[CachedRepoInfo]:
    """The models' repositories in the cache, as huggingface_hub sees them."""
    load_settings()
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        return [repo for repo in scan_cache_dir().repos if repo.repo_type == "model"]
    except (CacheNotFound, ValueError):  # ValueError: a file where the cache's folder should be
        return []
