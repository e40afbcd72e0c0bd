"""The kernels as machine code: loaded with llvmlite, called with ctypes, compiled once for a CPU if missing.

A kernel is loaded, or compiled, when its address is asked for: while a model is made ready, not while it computes.
numba is never imported here: helper processes compile.
"""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from threading import Lock

from llvmlite import binding

from dllama_zmq.kernels.needs import Compiling
from dllama_zmq.kernels.simd import store
from dllama_zmq.kernels.simd.catalog import cost_s, group_of
from dllama_zmq.kernels.simd.helpers import Keep, compile_objects
from dllama_zmq.kernels.simd.host import host_cpu
from dllama_zmq.kernels.simd.registry import symbol_of

logger = logging.getLogger(__name__)

Entry = Callable[..., None]
_REPORT_S = 1.5


class Library:
    """This process's kernels by name."""

    def __init__(self) -> None:
        # MCJIT, not LLJIT: on 64-bit Arm only its memory manager keeps code and data near enough to each other.
        self._engine = binding.create_mcjit_compiler(binding.parse_assembly(""), _machine())
        self._addresses: dict[str, int] = {}
        self._lock = Lock()
        self._keeper = store.Keeper()

    def address(self, name: str) -> int:
        """The address of a kernel. The first time, it is loaded with the kernels that are needed beside it."""
        if name not in self._addresses:
            self.load(group_of(name))
        return self._addresses[name]

    def entry(self, name: str, n_args: int) -> Entry:
        """A kernel as a function of `n_args` integers."""
        return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * n_args)(self.address(name))

    def load(
        self,
        names: Iterable[str],
        on_progress: Callable[[Compiling], None] | None = None,
        warn: Callable[[str], None] = logger.warning,
    ) -> None:
        """Load these kernels: milliseconds, or seconds if they must be compiled first."""
        with self._lock:
            missing = [name for name in dict.fromkeys(names) if name not in self._addresses]
            if not missing:
                return
            level = (
                logging.INFO if on_progress is None else logging.DEBUG
            )  # a caller that reports progress needs no line in a log
            keep = partial(self._keeper.keep, warn=warn)
            for code in objects(missing, keep, on_progress or _report_progress(), level).values():
                self._engine.add_object_file(binding.ObjectFileRef.from_data(code))
            self._engine.finalize_object()
            for name in missing:
                self._addresses[name] = self._engine.get_function_address(symbol_of(name))


@cache
def library() -> Library:
    """This process's kernels."""
    return Library()


def objects(names: Sequence[str], keep: Keep, on_progress: Callable[[Compiling], None], level: int) -> dict[str, bytes]:
    """The object files of kernels: those in the cache, and the others, compiled now and given to `keep`.

    `on_progress` is called several times a second. level: of the log lines about compiling.
    """
    found = store.find(names)
    if len(found) == len(names):
        return found
    start, whole_s = time.monotonic(), cost_s(set(names) - found.keys())

    def wait() -> None:
        # From the files of the other process so far. It may compile other kernels first.
        left_s, spent_s = cost_s(set(names) - store.kept(names)), time.monotonic() - start
        on_progress(Compiling(1 - left_s / whole_s, spent_s, spent_s + left_s))

    with store.only_builder(wait):
        found = store.find(names)  # the process that had the lock may have made them
        missing = [name for name in names if name not in found]
        if missing:
            logger.log(level, "compiling kernels for %s, once on this machine: %s", host_cpu()[1], " ".join(missing))
            start = time.monotonic()
            found |= compile_objects(missing, keep, on_progress)
            logger.log(level, "compiled kernels=%d seconds=%.1f", len(missing), time.monotonic() - start)
    return found


def _report_progress() -> Callable[[Compiling], None]:
    """Reports progress if no caller does: one line on a terminal, a line every 1.5 s in a log."""
    last = time.monotonic()

    def report(now: Compiling) -> None:
        nonlocal last
        if sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{now}" if now.fraction < 1 else "\r\x1b[K")
            sys.stderr.flush()
        elif time.monotonic() > last + _REPORT_S:
            last = time.monotonic()
            logger.info("%s", now)

    return report


def _machine() -> binding.TargetMachine:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    _, name, features = host_cpu()
    target = binding.Target.from_triple(binding.get_process_triple())
    return target.create_target_machine(cpu=name, features=features, jit=True)
