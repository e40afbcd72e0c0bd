"""One file from the hub to the disk: goes on where it stopped, and has its name only when it is whole and checked."""

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
from dllama_zmq.hub.listing import HubFile
from dllama_zmq.hub.reach import Patience, endpoint, headers, is_passing, reason, session
from dllama_zmq.telling import Tells

_MOST_FAILURES = 3
_FAIR_PROGRESS_BYTES = 1 << 20  # what must come between two failures for the first to be forgotten
_MOST_REQUEST_BYTES = 32 << 30  # the hub's own servers give no more than 50 GB to one request
_READ_BYTES = 1 << 20


class Transfer:
    """Fetches files of one repository at one commit, and counts what is there of `total_bytes`."""

    def __init__(self, repo: str, commit: str, tells: Tells, total_bytes: int) -> None:
        self._repo, self._commit, self._tells = repo, commit, tells
        self._patience = Patience(tells.line)
        self._before_bytes, self._total_bytes = 0, total_bytes

    def have(self, file: HubFile) -> None:
        """Count a file that is there already."""
        self._before_bytes += file.n_bytes

    def fetch(self, file: HubFile, part: Path, target: Path) -> None:
        """Fetch `file` into `part`, whatever of it is there already, and give it its name when it is whole and right.

        Raises HubError where the bytes are not those of the hub's checksum (`part` is removed then), or another process
        is at it; UsageError where `part` cannot be written; and what the session raises, with `part` kept.
        """
        with _own(part) as sink:
            check = Check(file)
            self._read_part(file, sink, check)
            self._rest(file, sink, check)
            if not check.is_right():
                part.unlink()
                raise HubError(
                    f"{file.name} does not have the hub's checksum {file.hash}, so what came has been removed; "
                    f"run the command again, and if that does not help, check HF_ENDPOINT ({endpoint()})"
                )
            with _told_of(part):
                os.fsync(sink.fileno())
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(part, target)
        self.have(file)

    def _read_part(self, file: HubFile, sink: io.FileIO, check: Check) -> None:
        if os.fstat(sink.fileno()).st_size > file.n_bytes:
            sink.truncate(0)
        while data := sink.read(_READ_BYTES):
            check.add(data)
            self._tell(f"checking what is here of {file.name}", check)

    def _rest(self, file: HubFile, sink: io.FileIO, check: Check) -> None:
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        n_failures = 0
        while check.n_bytes < file.n_bytes:
            self._tell(file.name, check)
            before = check.n_bytes
            words = "the connection ended early"
            problem: Exception = HubError(f"{endpoint()} ends {file.name} early, again and again; try again later")
            try:
                self._stream(file, sink, check)
            except httpx2.TransportError as error:
                problem, words = error, reason(error)
            except HfHubHTTPError as error:
                if self._patience.wait(error):
                    continue
                if not is_passing(error):
                    raise
                problem, words = error, f"HTTP {error.response.status_code}"
            if check.n_bytes >= min(file.n_bytes, before + _MOST_REQUEST_BYTES):
                continue
            n_failures = 1 if check.n_bytes - before >= _FAIR_PROGRESS_BYTES else n_failures + 1
            if n_failures >= _MOST_FAILURES:
                raise problem
            self._tells.line(f"{file.name}: {words}; going on at byte {check.n_bytes} of {file.n_bytes}")
            time.sleep(n_failures)

    def _stream(self, file: HubFile, sink: io.FileIO, check: Check) -> None:
        from huggingface_hub import constants, hf_hub_url, hf_raise_for_status

        start, end = check.n_bytes, min(file.n_bytes, check.n_bytes + _MOST_REQUEST_BYTES)
        asked = headers()
        is_range = (start, end) != (0, file.n_bytes)
        if is_range:
            asked["Range"] = f"bytes={start}-{end - 1}"
        url = hf_hub_url(self._repo, file.name, revision=self._commit)
        # Redirects lead to other hosts; the session takes the token out of what it sends there.
        with session().stream("GET", url, headers=asked, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            hf_raise_for_status(response)
            if is_range and response.status_code != 206:  # this server sends all or nothing
                check.restart()
                sink.seek(0)
                sink.truncate()
                end = file.n_bytes
            for data in response.iter_bytes():
                if check.n_bytes + len(data) > end:
                    raise HubError(f"{endpoint()} sends more for {file.name} than it asked for; check HF_ENDPOINT")
                with _told_of(Path(str(sink.name))):
                    _write_all(sink, data)
                check.add(data)
                self._tell(file.name, check)

    def _tell(self, text: str, check: Check) -> None:
        self._tells.now(text, self._before_bytes + check.n_bytes, self._total_bytes)


class Check:
    """The hash of a file as its bytes come, in the one of two ways in which the hub says it (see HubFile)."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self.restart()

    def restart(self) -> None:
        """Forget the bytes."""
        self.n_bytes = 0
        if len(self._file.hash) == 64:
            self._hash = hashlib.sha256()
        else:
            self._hash = hashlib.sha1(b"blob %d\0" % self._file.n_bytes, usedforsecurity=False)

    def add(self, data: bytes) -> None:
        """The next bytes."""
        self._hash.update(data)
        self.n_bytes += len(data)

    def is_right(self) -> bool:
        """Whether these were all the bytes, and the right ones."""
        return self.n_bytes == self._file.n_bytes and self._hash.hexdigest() == self._file.hash


def is_right_file(file: HubFile, path: Path, tells: Tells) -> bool:
    """Whether `path` has the bytes of `file`; reads it only where the size is right."""
    if not path.is_file() or path.stat().st_size != file.n_bytes:
        return False
    check = Check(file)
    with path.open("rb") as source:
        while data := source.read(_READ_BYTES):
            check.add(data)
            tells.now(f"checking {file.name}, which is here already", check.n_bytes, file.n_bytes)
    return check.is_right()


def copy_part(source: Path, part: Path) -> None:
    """Begin `part` with all that `source` has. Raises UsageError where it cannot be written."""
    with _told_of(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, part)


def _write_all(sink: io.FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[sink.write(rest) :]


@contextmanager
def _own(part: Path) -> Iterator[io.FileIO]:
    """`part`, made where it is missing, and nobody else's while the block lasts. Unbuffered: what came is kept."""
    with _told_of(part):
        part.parent.mkdir(parents=True, exist_ok=True)
    with _locked(part) as sink:
        try:
            yield sink
        except BaseException:
            if os.fstat(sink.fileno()).st_size == 0:  # nothing to go on from
                part.unlink(missing_ok=True)
            raise


def _locked(part: Path) -> io.FileIO:
    while True:
        with _told_of(part):
            sink = io.FileIO(os.fspath(part), "r+", opener=_open_or_make)
        try:
            fcntl.flock(sink, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            sink.close()
            raise HubError(f"another process is fetching {part}; wait for it, then run the command again") from error
        except OSError:
            pass  # a file system without locks
        # Whoever held it a moment ago may have given it its name: then it is no part any more.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(sink.fileno()), os.stat(part)):
                return sink
        sink.close()


def _open_or_make(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}; check its folder and the room on its disk"
        ) from error
