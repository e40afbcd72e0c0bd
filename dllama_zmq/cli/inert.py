"""Text of a model on a terminal: its control characters are shown, and do nothing.

A model writes what its training or its prompt has put into it, escape codes too: on a terminal they could move the
cursor, rename the window, or put words into what the user types next.
"""

from __future__ import annotations

_KEPT = "\n\t"
_INERT = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in _KEPT}


def inert(text: str) -> str:
    r"""`text` with every control character (C0, DEL, C1) but newline and tab as its code, such as \x1b."""
    return text.translate(_INERT)
