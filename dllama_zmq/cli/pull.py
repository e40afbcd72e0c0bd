"""`dllama-zmq pull`: the path for `model:` goes to stdout, everything else to stderr."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape

from dllama_zmq.cli.show import bytes_bar, human_bytes, note
from dllama_zmq.hub import ModelName, Plan, load_settings, plan_pull

_SAY_EVERY_S = 1.5
_MOST_LISTED = 20


def run(text: str, revision: str, to: Path | None, offline: bool) -> None:
    """Fetch the model of `text`, REPO[:FILE], and say where it is."""
    name = ModelName.parse(text)
    with _Teller() as teller:
        teller.now("loading huggingface_hub")
        _quieten()
        teller.now(f"looking for {name}")
        plan = plan_pull(name, revision, to, offline=offline)
        _announce(plan, teller)
        plan.check_room()
        teller.total(plan.n_bytes)
        try:
            plan.fetch(teller)
        except KeyboardInterrupt:
            teller.line("stopped; what has come is kept, and the same command goes on from there")
            raise
    sys.stdout.write(f"{plan.path()}\n")
    sys.stdout.flush()
    tokenizer = plan.tokenizer_path()
    beside = f", and after `tokenizer:` {tokenizer}" if tokenizer else ""
    note(f"put this path after `model:` in cluster.yaml{beside}")


def _announce(plan: Plan, teller: _Teller) -> None:
    if not plan.files:
        teller.line(f"{plan.repo} is in the cache")
        return
    missing = plan.missing()
    n_files = f"{len(plan.files)} file{'s' if len(plan.files) > 1 else ''}"
    teller.line(f"{plan.repo} at {plan.revision} ({plan.commit[:8]}): {n_files}, {human_bytes(plan.n_bytes)}")
    for file in plan.files[:_MOST_LISTED]:
        state = "" if file in missing else ", here already"
        if file in missing and missing[file] < file.n_bytes:
            state = f", {human_bytes(missing[file])} to go"
        teller.line(f"  {file.name} ({human_bytes(file.n_bytes)}{state})")
    if len(plan.files) > _MOST_LISTED:
        teller.line(f"  and {len(plan.files) - _MOST_LISTED} more")


def _quieten() -> None:
    """Load huggingface_hub without what it and its HTTP client would say: it is told here, in our words.

    Not even --verbose shows their logs, for headers and signed addresses are in them.
    """
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # what it would ask and tell of this computer beside
    load_settings()
    import huggingface_hub.hf_api  # noqa: F401 - the slow part

    for package in ("huggingface_hub", "httpx2", "httpcore2", "filelock"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False


class _Teller:
    """A bar on a terminal; elsewhere a line at least every two seconds."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._live = console.is_terminal
        self._bar = bytes_bar(console, transient=True)
        self._task = self._bar.add_task("", total=None)
        self._text, self._since = "starting", time.monotonic()
        self._done_bytes = self._total_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="teller", daemon=True)

    def __enter__(self) -> Self:
        if self._live:
            self._bar.start()
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._live:
            self._bar.stop()
        else:
            self._thread.join()

    def line(self, text: str) -> None:
        """Say this at once."""
        if self._live:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            note(text)

    def now(self, text: str) -> None:
        """What goes on from here; said only where it lasts."""
        self._text, self._since = text, time.monotonic()
        self._bar.update(self._task, description=escape(text))

    def total(self, n_bytes: int) -> None:
        """How many bytes are planned in all."""
        self._total_bytes = n_bytes
        self._bar.update(self._task, total=n_bytes or None)

    def reached(self, n_bytes: int) -> None:
        """How many of them are there now."""
        self._done_bytes = n_bytes
        self._bar.update(self._task, completed=n_bytes)

    def _repeat(self) -> None:
        before = 0
        while not self._ended.wait(_SAY_EVERY_S):
            done = self._done_bytes
            if self._total_bytes:
                speed = human_bytes(int(max(0, done - before) / _SAY_EVERY_S))
                note(f"{self._text}: {human_bytes(done)} of {human_bytes(self._total_bytes)}, {speed}/s")
            else:
                note(f"{self._text} ({time.monotonic() - self._since:.0f} s)")
            before = done
