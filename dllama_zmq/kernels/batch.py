"""The rows of a step, and where their keys and values are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec import Struct

KV_PAGE = 64
"""Positions of a page of keys and values. Page ids are global: each node keeps its own heads of every page."""


class Span(Struct, frozen=True):
    """`count` rows of a step: tokens of one sequence at positions `start`, `start + 1`, ...

    pages: the ids of the pages of positions 0 to start + count - 1, in order.
    """

    start: int
    count: int
    pages: Sequence[int] | npt.NDArray[np.int32]


class Batch:
    """All rows of a step: spans that cover them in order. It is made once a step, equal on every node.

    positions: (T,), of each row. page_ids: those of all spans, one after another. table: (spans, 4), the first row,
    start and count of each span, and the index in `page_ids` of its first page.
    """

    __slots__ = ("n_rows", "page_ids", "positions", "spans", "table")

    def __init__(self, spans: Sequence[Span]) -> None:
        """Raises ValueError where there is no span, or a span has no rows or another number of pages."""
        self.spans = tuple(spans)
        rows, page_ids, positions = [], [], []
        row = first_id = 0
        for span in self.spans:
            start, count, n_pages = span.start, span.count, len(span.pages)
            if start < 0 or count < 1 or n_pages != pages_for(start + count):
                raise ValueError(f"{span}: its positions take {pages_for(start + count)} pages")
            rows.append((row, start, count, first_id))
            page_ids.append(np.array(span.pages, np.int32))
            positions.append(np.arange(start, start + count))
            row += count
            first_id += n_pages
        self.n_rows = row
        self.table = np.array(rows, np.int64)
        self.page_ids = page_ids[0] if len(page_ids) == 1 else np.concatenate(page_ids)
        self.positions = positions[0] if len(positions) == 1 else np.concatenate(positions)

    @property
    def max_page(self) -> int:
        """The largest page id; a negative one counts as larger than all others."""
        return int(self.page_ids.view(np.uint32).max())

    @classmethod
    def alone(cls, start: int, count: int) -> Batch:
        """One span of a sequence that has the pages 0, 1, 2, ..."""
        return cls([Span(start, count, range(pages_for(start + count)))])

    def within(self, rows: slice) -> Batch:
        """The parts of the spans that lie in these rows."""
        parts = []
        for span, (first, *_) in zip(self.spans, self.table.tolist(), strict=True):
            start, stop = max(first, rows.start), min(first + span.count, rows.stop)
            if start < stop:
                begin, end = span.start + start - first, span.start + stop - first
                parts.append(Span(begin, stop - start, span.pages[: pages_for(end)]))
        return Batch(parts)


def pages_for(n_positions: int) -> int:
    """The number of pages for `n_positions` positions of one sequence."""
    return -(-n_positions // KV_PAGE)
