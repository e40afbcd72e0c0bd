"""Lines for the reader, apart from the answer."""

from __future__ import annotations

import sys


def note(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
