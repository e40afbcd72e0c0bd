"""Text of a model for a terminal, with control characters shown and not obeyed.

A model writes what its training or its prompt contains, even escape codes. On a terminal they could move the cursor,
rename the window, or add text to what the user types next.
"""

from __future__ import annotations

_KEPT = "\n\t"
_INERT = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in _KEPT}


def inert(text: str) -> str:
    r"""`text` with every control character (C0, DEL, C1) but newline and tab as its code, such as \x1b."""
    return text.translate(_INERT)
