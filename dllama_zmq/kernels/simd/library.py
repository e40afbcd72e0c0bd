"""The kernels as machine code: built once for a CPU, kept on disk, loaded with llvmlite alone and called by ctypes.

numba is imported only to build: a process that finds the object file starts 0.4 s sooner and 100 MB smaller. The file's
name holds a hash of all that its content depends on. One that is not what its name says is built again.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import llvmlite
from llvmlite import binding

from dllama_zmq.kernels.simd.host import host_cpu

logger = logging.getLogger(__name__)

Entry = Callable[..., None]
_DIGEST_BYTES = 32
_WAIT_S = 120.0
"""For another process of this host that is compiling; then this one compiles for itself."""


@dataclass(frozen=True)
class Library:
    """Every kernel's address, and `run`, `serve`, `stop` of the thread pool as functions of integers."""

    addresses: dict[str, int]
    entries: dict[str, Entry]
    keep: object
    """The code itself: freed with the last reference."""


@cache
def library() -> Library:
    """This process's kernels. Takes some 50 ms; the first time on a machine it compiles them, and says so."""
    names, code = _object()
    # MCJIT, not LLJIT: on 64-bit Arm only its memory manager keeps code and data near enough to each other.
    engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine())
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    addresses = {name: engine.get_function_address(name) for name in names}
    entries: dict[str, Entry] = {}
    for name, n_args in (("run", 5), ("serve", 2), ("stop", 1), ("spin", 1), ("trade", 1)):
        entries[name] = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * n_args)(addresses[name])
    return Library(addresses, entries, engine)


def cache_folder() -> Path:
    """Where machine code is kept: $XDG_CACHE_HOME/dllama-zmq/kernels, else under ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "dllama-zmq" / "kernels"


def prepare(say: Callable[[str], None]) -> None:
    """Compile now what is not in the cache, telling `say` how far it is: for a person who would wait without a word."""
    last = time.monotonic()

    def show(done: int, of: int) -> None:
        nonlocal last
        if done == 0 or time.monotonic() > last + 1.5:
            last = time.monotonic()
            say(f"compiling kernels for this CPU, once: {done} of {of}")

    _object(show)


def _object(show: Callable[[int, int], None] | None = None) -> tuple[list[str], bytes]:
    """The kernels' names and their object file: from the cache, else built now and, where possible, kept."""
    path = cache_folder() / f"{_key()}.o"
    found = _read(path)
    if found is not None:
        return found
    with _only_builder(path):
        found = _read(path)  # by whoever had the lock before
        if found is None:
            found = _build(show)
            _keep(path, *found)
    return found


def _build(show: Callable[[int, int], None] | None) -> tuple[list[str], bytes]:
    from dllama_zmq.kernels.simd.build import build_object, kernel_names

    _, cpu, _ = host_cpu()
    level = logging.INFO if show is None else logging.DEBUG  # who is shown it needs no line in a log
    logger.log(level, "compiling kernels for %s: once on this machine, some 10 s", cpu)
    start = time.monotonic()
    code = build_object(show or _bar())
    logger.log(level, "compiled kernels seconds=%.1f bytes=%d", time.monotonic() - start, len(code))
    return kernel_names(), code


def _bar() -> Callable[[int, int], None]:
    """Shows how far compiling is: a bar on a terminal, a log line every 2 s elsewhere."""
    terminal = sys.stderr.isatty()
    last = time.monotonic()

    def show(done: int, of: int) -> None:
        nonlocal last
        if terminal:
            filled = 30 * done // of
            end = "\r\x1b[K" if done == of else ""
            sys.stderr.write(f"\rcompiling kernels [{'#' * filled}{'.' * (30 - filled)}] {done}/{of}{end}")
            sys.stderr.flush()
        elif time.monotonic() > last + 1.5:
            last = time.monotonic()
            logger.info("compiling kernels %d/%d", done, of)

    return show


def _key() -> str:
    """A hash of the sources, the CPU and the versions that the machine code comes from."""
    digest = hashlib.sha256()
    for part in (*host_cpu(), version("numba"), llvmlite.__version__):
        digest.update(part.encode() + b"\0")
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _read(path: Path) -> tuple[list[str], bytes] | None:
    """A kept object file: its digest, its names in one line, its code. None where there is none that is whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, rest = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(rest).digest() != digest:
        logger.warning("%s is damaged; compiling again", path)
        return None
    names, _, code = rest.partition(b"\n")
    return names.decode().split(), code


def _keep(path: Path, names: list[str], code: bytes) -> None:
    rest = " ".join(names).encode() + b"\n" + code
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft.write_bytes(hashlib.sha256(rest).digest() + rest)
        draft.replace(path)
    except OSError as error:
        logger.warning("kernels cannot be kept in %s (%s): every start will compile them", path.parent, error.strerror)
        with suppress(OSError):
            draft.unlink(missing_ok=True)


@contextmanager
def _only_builder(path: Path) -> Iterator[None]:
    """Let one process of this host compile while others wait for its result, where the folder allows a lock."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open(path.parent / "lock", "w")  # noqa: SIM115 - closed below; a folder that is read-only has no lock
    except OSError:
        yield
        return
    with lock:
        until, told = time.monotonic() + _WAIT_S, False
        while time.monotonic() < until:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if not told:
                    logger.info("waiting for another process to compile the kernels")
                told = True
                time.sleep(0.05)
        yield


def _machine() -> binding.TargetMachine:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    _, name, features = host_cpu()
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(cpu=name, features=features, jit=True)
