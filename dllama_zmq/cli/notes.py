"""Lines on stderr, and text for a terminal, whose control characters are shown and not obeyed.

A model writes what its training or its prompt contains, even escape codes. On a terminal they could move the cursor,
rename the window, or add text to what the user types next.
"""

from __future__ import annotations

import shutil
import sys
import textwrap

_KEPT = "\n\t"
_INERT = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in _KEPT}


def note(text: str) -> None:
    """Print a line on stderr; a terminal wraps it between words."""
    if sys.stderr.isatty():
        text = wrapped(text, shutil.get_terminal_size().columns)
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def wrapped(text: str, columns: int) -> str:
    """`text` for a terminal, in lines of at most `columns` characters. Longer words, such as paths, are not broken.

    Control characters are shown and not obeyed: text may come from a model's file or from another computer.
    """
    lines = (
        textwrap.wrap(line, columns, break_long_words=False, break_on_hyphens=False) for line in inert(text).split("\n")
    )
    return "\n".join("\n".join(line) for line in lines)


def inert(text: str) -> str:
    r"""`text` with every control character (C0, DEL, C1) but newline and tab as its code, such as \x1b."""
    return text.translate(_INERT)
