"""The files of a repository on the hub, checked before they are used."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec import Struct

from dllama_zmq.errors import HubError
from dllama_zmq.hub.http import RateLimitWait, endpoint, headers, hub_errors, session
from dllama_zmq.hub.name import is_safe_file_name

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_MAX_BYTES = 1 << 50


class HubFile(Struct, frozen=True):
    """A file of a repository. The cache names it by `hash`.

    A hash of 64 hex digits is the SHA-256 of the bytes (Git LFS). One of 40 is the Git object id: the SHA-1 of
    `blob <size>\\0` and the bytes.
    """

    name: str
    n_bytes: int
    hash: str


def list_repo(repo: str, revision: str, on_wait: Callable[[str], None]) -> tuple[str, dict[str, HubFile]]:
    """The commit of `repo` at `revision`, and its files by name, in one request.

    on_wait: called with the reason of every wait.

    Raises HubError if the hub does not answer, or not as a hub; UsageError if there is no such repository.
    """
    headers(), session()  # refuse a wrong token or proxy before the first request
    with hub_errors(repo, revision):
        try:
            found = _model_info(repo, revision, RateLimitWait(on_wait))
            commit, siblings = found.sha, found.siblings
            entries = [
                (one.rfilename, one.lfs.size if one.lfs else one.size, one.lfs.sha256 if one.lfs else one.blob_id)
                for one in siblings or []
            ]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            if isinstance(error, OSError):  # some of the hub's errors are both
                raise
            raise HubError(
                f"{endpoint()} does not answer like a hub; check HF_ENDPOINT, and whether your network asks you to "
                "sign in"
            ) from error
    if not isinstance(commit, str) or not _HASH.fullmatch(commit):
        raise HubError(f"{endpoint()} gives no commit of {repo}; check that HF_ENDPOINT is a Hugging Face hub")
    return commit, {name: _checked(repo, name, *entry) for name, *entry in entries}


def _model_info(repo: str, revision: str, rate_limit: RateLimitWait) -> ModelInfo:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    while True:
        try:
            return HfApi(library_name="dllama-zmq").model_info(
                repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        except HfHubHTTPError as error:
            if not rate_limit.wait(error):
                raise


def _checked(repo: str, name: object, n_bytes: object, digest: object) -> HubFile:
    if not is_safe_file_name(name) or not isinstance(name, str):
        raise HubError(f"{repo} has a file named {str(name)[:100]!r}, which is not safe; choose another repository")
    if type(n_bytes) is not int or not 0 <= n_bytes <= _MAX_BYTES:
        raise HubError(f"{endpoint()} gives {str(n_bytes)[:30]} as the size of {repo}/{name}; check HF_ENDPOINT")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise HubError(f"{endpoint()} gives no checksum of {repo}/{name}; check that HF_ENDPOINT is a hub")
    return HubFile(name, n_bytes, digest)
