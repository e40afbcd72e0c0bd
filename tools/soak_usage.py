"""Memory, descriptors and threads of a cluster's processes here, sampled over time, and whether they grow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

SHARES = (1 / 6, 1 / 3, 2 / 3, 1.0)
"""Of the time: ends of the spans whose maxima are shown. The second one ends the warm-up."""
GROWTH, MORE = 0.05, 4.0
"""What the maximum of the last span may have more than that of the second: this share, and this number."""
_NAMES = (("gateway", "gateway"), ("chat_child", "templates"), ("grammar_child", "grammars"), (" root ", "front"))
"""Of processes that are no nodes, by words of their command lines."""
_FIGURES = ("resident MB", "descriptors", "threads")

Use = tuple[float, int, int]
"""Resident MB, open descriptors, threads."""


@dataclass
class Usage:
    """Samples: when (a share of the time, 0 to 1), and by name the process and its use."""

    samples: list[tuple[float, dict[str, tuple[int, Use]]]] = field(default_factory=list)

    def sample(self, share: float, root: int, nodes: Mapping[int, str]) -> None:
        """Look at the root's process, all below it, and those of `nodes`, whose names are given by pid."""
        found: dict[str, tuple[int, Use]] = {}
        with suppress(psutil.Error):
            children = psutil.Process(root).children(recursive=True)
            for pid in sorted({root, *(child.pid for child in children), *nodes}):
                with suppress(psutil.Error):  # it may have been killed just now
                    one = psutil.Process(pid)
                    words = " ".join(one.cmdline())
                    name = nodes.get(pid) or next((name for key, name in _NAMES if key in words), "?")
                    while name in found:  # as many as were needed at once
                        name += "+"
                    found[name] = (pid, (one.memory_info().rss / 1e6, one.num_fds(), one.num_threads()))
        self.samples.append((share, found))

    def rows(self) -> Iterator[tuple[str, list[Use]]]:
        """By name: the maxima of each span."""
        for name in dict.fromkeys(name for _, found in self.samples for name in found):
            rows, begin = [], -1.0
            for end in SHARES:
                uses = [found[name][1] for share, found in self.samples if begin < share <= end and name in found]
                rows.append(tuple(max(column) for column in zip(*uses, strict=True)) if uses else (0.0, 0, 0))
                begin = end
            yield name, rows

    def wrong(self, killed: set[str]) -> Iterator[str]:
        """What has grown, and which processes are not those of the first sample though nobody killed them."""
        for name, rows in self.rows():
            for figure, before, after in zip(_FIGURES, rows[1], rows[-1], strict=True):
                if after > (most := before * (1 + GROWTH) + MORE):
                    yield f"{name}: {figure} grew from {before:.0f} to {after:.0f}, more than {most:.0f}"
        last = {pid for pid, _ in self.samples[-1][1].values()}
        for name, (pid, _) in self.samples[0][1].items():
            if name not in killed and pid not in last:
                yield f"{name}: process {pid} is gone"

    def table(self, minutes: float) -> Iterator[str]:
        """Lines to print."""
        heads = "".join(f"{minutes * share:7.1f}" for share in SHARES)
        yield f"{'maxima to minute':16}" + "".join(f"{figure:>12}{heads}" for figure in _FIGURES)
        for name, rows in self.rows():
            columns = [" " * 12 + "".join(f"{row[i]:7.0f}" for row in rows) for i in range(3)]
            yield f"{name:16}" + "".join(columns)
