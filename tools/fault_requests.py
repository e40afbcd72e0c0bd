"""Requests that run while something breaks: their texts and errors, and when a token came for any of them."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import Done, Prefill, TokenText
from dllama_zmq.errors import DllamaError
from dllama_zmq.sampling import Sampling

N_CLIENTS, N_TOKENS, N_WORDS = 3, 100, 150
POLL_S = 0.005


class Failed(Exception):
    """A run did not go as it should."""


@dataclass
class Requests:
    """Some clients of a root, greedy and sampled by turns, a thread each.

    moments: when any of them got a token, or progress of its prompt. failed_at: when one got an error.
    """

    address: str
    n_tokens: int = N_TOKENS
    n_words: int = N_WORDS
    texts: list[str] = field(default_factory=lambda: [""] * N_CLIENTS)
    n_pieces: list[int] = field(default_factory=lambda: [0] * N_CLIENTS)
    errors: list[str] = field(default_factory=list)
    moments: list[float] = field(default_factory=list)
    failed_at: list[float] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Send all requests."""
        self.threads = [threading.Thread(target=self._ask, args=(i,), daemon=True) for i in range(N_CLIENTS)]
        for thread in self.threads:
            thread.start()

    def finish(self, within_s: float) -> None:
        """Wait until each has its answer or its error. Raises Failed."""
        deadline = time.monotonic() + within_s
        for thread in self.threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self.threads):
            raise Failed(f"{self.n_pieces} tokens after {within_s:.0f} s; {self.errors}")

    @property
    def decode(self) -> bool:
        """Whether every client has some tokens."""
        return min(self.n_pieces) >= 5

    def silence_s(self, since: float) -> float:
        """The longest time in which no client got a token, progress or an error, of the gaps that end after `since`."""
        return max((b - a for a, b in pairwise(sorted(self.moments + self.failed_at)) if b > since), default=0.0)

    def _ask(self, i: int) -> None:
        """Client number i: from its request to the end of the answer."""
        prompt = " ".join(f"{word} {i}" for word in range(self.n_words))
        try:
            with Client(self.address) as client:
                sampling = Sampling(0.8 * (i % 2), 0.95, seed=i)
                for answer in client.generate(prompt, self.n_tokens, sampling, ignore_eos=True):
                    if isinstance(answer, TokenText | Prefill):
                        self.moments.append(time.monotonic())
                    if isinstance(answer, TokenText):
                        self.n_pieces[i] += 1
                    if isinstance(answer, TokenText | Done):
                        self.texts[i] += answer.text
        except DllamaError as error:
            self.failed_at.append(time.monotonic())
            self.errors.append(f"client {i}: {type(error).__name__}: {error}")


def until(condition: Callable[[], object], within_s: float, what: str) -> None:
    """Wait for `condition`. Raises Failed."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {within_s:.0f} s")
        time.sleep(POLL_S)  # between two looks


def follow(path: Path, seen: list[tuple[float, str]], ended: threading.Event) -> None:
    """Read a log until `ended`: its lines, and when they were read."""
    with path.open() as log:
        while not ended.wait(POLL_S):
            seen += [(time.monotonic(), line) for line in log]


def figures(*columns: Sequence[float]) -> str:
    """Columns of a table: of each its median and its maximum."""
    return " | ".join(f"{statistics.median(x):.2f} / {max(x):.2f}" if x else "-" for x in columns)
