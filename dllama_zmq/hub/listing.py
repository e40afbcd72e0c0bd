"""What a repository of the hub holds, checked before anything of it is used."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllama_zmq.errors import HubError
from dllama_zmq.hub.name import is_safe_file_name
from dllama_zmq.hub.reach import Patience, endpoint, headers, in_plain_words, session

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MOST_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file: its name in the repository, its length, and its hash, by which the cache names it.

    64 hex digits are the SHA-256 of its bytes (Git LFS), 40 its Git object id, the SHA-1 of `blob <size>\\0` and its
    bytes.
    """

    name: str
    n_bytes: int
    hash: str


@dataclass(frozen=True, slots=True)
class Listing:
    """A repository at one commit."""

    repo: str
    commit: str
    files: dict[str, HubFile]


def list_repo(repo: str, revision: str, say: Callable[[str], None] = lambda text: None) -> Listing:
    """Ask the hub what `repo` holds at `revision`, in one request. `say` hears why that takes long.

    Raises HubError where it does not answer or answers what no hub does, UsageError where there is no such repository.
    """
    headers(), session()  # what cannot be used is refused before anything is asked
    with in_plain_words(repo, revision):
        try:
            found = _model_info(repo, revision, Patience(say))
            commit, siblings = found.sha, found.siblings
            entries = [
                (one.rfilename, one.lfs.size if one.lfs else one.size, one.lfs.sha256 if one.lfs else one.blob_id)
                for one in siblings or []
            ]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, OSError):  # an answer of the hub that is a ValueError too
                raise
            raise HubError(
                f"{endpoint()} does not answer as a hub does; check HF_ENDPOINT, and whether your network wants you to "
                "sign in"
            ) from error
    if not isinstance(commit, str) or not _HASH.fullmatch(commit):
        raise HubError(f"{endpoint()} does not say the commit of {repo}; check that HF_ENDPOINT is a Hugging Face hub")
    return Listing(repo, commit, {name: _checked(repo, name, *entry) for name, *entry in entries})


def _model_info(repo: str, revision: str, patience: Patience) -> ModelInfo:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    while True:
        try:
            return HfApi(library_name="dllama-zmq").model_info(
                repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        except HfHubHTTPError as error:
            if not patience.wait(error):
                raise


def _checked(repo: str, name: object, n_bytes: object, digest: object) -> HubFile:
    if not is_safe_file_name(name) or not isinstance(name, str):
        raise HubError(f"{repo} lists a file {str(name)[:100]!r}, which is no name for a file; take another repository")
    if type(n_bytes) is not int or not 0 <= n_bytes <= _MOST_BYTES:
        raise HubError(f"{endpoint()} says {str(n_bytes)[:30]} for the size of {repo}/{name}; check HF_ENDPOINT")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise HubError(f"{endpoint()} does not say the checksum of {repo}/{name}; check that HF_ENDPOINT is a hub")
    return HubFile(name, n_bytes, digest)
