"""The download of a file: it resumes after an interruption, and gets its name only when complete and checked."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dllama_zmq.errors import HubError, UsageError
from dllama_zmq.hub.http import RateLimitWait, endpoint, headers, is_transient, reason, session
from dllama_zmq.hub.listing import HubFile
from dllama_zmq.reporting import Reporter

_MAX_FAILURES = 3  # in a row
_PROGRESS_BYTES = 1 << 20  # this many bytes after a failure begin a new row
_MAX_REQUEST_BYTES = 32 << 30  # the hub's servers send at most 50 GB per request
_READ_BYTES = 1 << 20


class Transfer:
    """Downloads files of one repository at one commit, and reports the progress of all files."""

    def __init__(self, repo: str, commit: str, reporter: Reporter, total_bytes: int) -> None:
        self._repo, self._commit, self._reporter = repo, commit, reporter
        self._rate_limit = RateLimitWait(reporter.line)
        self._before_bytes, self._total_bytes = 0, total_bytes

    def skip(self, file: HubFile) -> None:
        """Count a file that is here already."""
        self._before_bytes += file.n_bytes

    def fetch(self, file: HubFile, part: Path, target: Path) -> None:
        """Download `file` into `part`, after the bytes that it has already; rename it to `target` when checked.

        Raises HubError if the checksum is wrong (`part` is then removed) or another process downloads the file,
        UsageError if `part` cannot be written, and the session's errors, which keep `part`.
        """
        with _locked_part(part) as sink:
            check = FileHash(file)
            self._read_part(file, sink, check)
            self._download_rest(file, sink, check)
            if not check.matches():
                part.unlink()
                raise HubError(
                    f"{file.name} does not have the hub's checksum {file.hash}, so the download was removed; "
                    f"run the command again, and if that does not help, check HF_ENDPOINT ({endpoint()})"
                )
            with _write_errors(part):
                os.fsync(sink.fileno())
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, target)
        self.skip(file)

    def _read_part(self, file: HubFile, sink: io.FileIO, check: FileHash) -> None:
        if os.fstat(sink.fileno()).st_size > file.n_bytes:
            sink.truncate(0)
        while data := sink.read(_READ_BYTES):
            check.add(data)
            self._report(f"checking the first part of {file.name}", check)

    def _download_rest(self, file: HubFile, sink: io.FileIO, check: FileHash) -> None:
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        n_failures = 0
        while check.n_bytes < file.n_bytes:
            self._report(file.name, check)
            before = check.n_bytes
            words = "the connection ended early"
            problem: Exception = HubError(f"{endpoint()} repeatedly ends {file.name} early; try again later")
            try:
                self._stream(file, sink, check)
            except httpx2.TransportError as error:
                problem, words = error, reason(error)
            except HfHubHTTPError as error:
                if self._rate_limit.wait(error):
                    continue
                if not is_transient(error):
                    raise
                problem, words = error, f"HTTP {error.response.status_code}"
            if check.n_bytes >= min(file.n_bytes, before + _MAX_REQUEST_BYTES):
                continue
            n_failures = 1 if check.n_bytes - before >= _PROGRESS_BYTES else n_failures + 1
            if n_failures >= _MAX_FAILURES:
                raise problem
            self._reporter.line(f"{file.name}: {words}; resuming at byte {check.n_bytes} of {file.n_bytes}")
            time.sleep(n_failures)

    def _stream(self, file: HubFile, sink: io.FileIO, check: FileHash) -> None:
        """Append the bytes of one response to `sink`."""
        from huggingface_hub import constants, hf_hub_url, hf_raise_for_status

        start, end = check.n_bytes, min(file.n_bytes, check.n_bytes + _MAX_REQUEST_BYTES)
        wanted = headers()
        is_range = (start, end) != (0, file.n_bytes)
        if is_range:
            wanted["Range"] = f"bytes={start}-{end - 1}"
        url = hf_hub_url(self._repo, file.name, revision=self._commit)
        # Redirects lead to other hosts; the session sends them no token.
        with session().stream("GET", url, headers=wanted, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            if is_range and response.status_code != 206:  # this server knows no ranges
                check.restart()
                sink.seek(0)
                sink.truncate()
                end = file.n_bytes
            for data in response.iter_bytes():
                if check.n_bytes + len(data) > end:
                    raise HubError(f"{endpoint()} sends more for {file.name} than was requested; check HF_ENDPOINT")
                with _write_errors(Path(str(sink.name))):
                    _write_all(sink, data)
                check.add(data)
                self._report(file.name, check)

    def _report(self, text: str, check: FileHash) -> None:
        self._reporter.activity(text, self._before_bytes + check.n_bytes, self._total_bytes)


class FileHash:
    """The running hash of a file's bytes, of the kind that `HubFile.hash` has."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        """Start again without bytes."""
        self.n_bytes = 0
        if len(self._file.hash) == 64:
            self._hash = hashlib.sha256()
        else:
            self._hash = hashlib.sha1(b"blob %d\0" % self._file.n_bytes, usedforsecurity=False)

    def add(self, data: bytes) -> None:
        """Hash the next bytes."""
        self._hash.update(data)
        self.n_bytes += len(data)

    def matches(self) -> bool:
        """Whether size and hash are those of the file."""
        return self.n_bytes == self._file.n_bytes and self._hash.hexdigest() == self._file.hash


def has_content(path: Path, file: HubFile, reporter: Reporter) -> bool:
    """Whether `path` has the bytes of `file`; reads it only if the size is right."""
    if not path.is_file() or path.stat().st_size != file.n_bytes:
        return False
    check = FileHash(file)
    with path.open("rb") as source:
        while data := source.read(_READ_BYTES):
            check.add(data)
            reporter.activity(f"checking {file.name}, which is here already", check.n_bytes, file.n_bytes)
    return check.matches()


def copy_part(source: Path, part: Path) -> None:
    """Copy `source` to `part`. Raises UsageError if it cannot be written."""
    with _write_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, part)


def _write_all(sink: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[sink.write(rest) :]


@contextmanager
def _locked_part(part: Path) -> Iterator[io.FileIO]:
    """`part`, created if needed and locked during the block. Unbuffered, so that an interruption loses no bytes."""
    with _write_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
    with _open_locked(part) as sink:
        try:
            yield sink
        except BaseException:
            if os.fstat(sink.fileno()).st_size == 0:
                part.unlink(missing_ok=True)
            raise


def _open_locked(part: Path) -> io.FileIO:
    while True:
        with _write_errors(part):
            sink = io.FileIO(os.fspath(part), "r+", opener=_open_or_create)
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            sink.close()
            raise HubError(f"another process is downloading {part}; wait for it, then run the command again") from error
        except OSError:
            pass  # a file system without locks
        # Another process may have finished and renamed the file since it was opened.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(sink.fileno()), os.stat(part)):
                return sink
        sink.close()


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turns OSError into UsageError, with `path` and advice."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}; check its folder and the room on its disk"
        ) from error
