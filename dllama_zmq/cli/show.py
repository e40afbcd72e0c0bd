"""Lines for the reader, apart from the answer."""

from __future__ import annotations

import shutil
import sys
import textwrap


def note(text: str) -> None:
    """A line on stderr; on a terminal several if it is wider than that, broken between words."""
    if sys.stderr.isatty():
        text = wrapped(text, shutil.get_terminal_size().columns)
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def wrapped(text: str, columns: int) -> str:
    """`text` in lines of at most `columns` letters. A word that is longer, such as a path, stays whole."""
    lines = (textwrap.wrap(line, columns, break_long_words=False, break_on_hyphens=False) for line in text.split("\n"))
    return "\n".join("\n".join(line) for line in lines)
