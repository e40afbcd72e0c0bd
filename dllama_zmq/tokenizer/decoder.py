"""Token ids to text, one token at a time. Knows bytes and UTF-8; knows no vocabulary."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from typing import Literal

_ESCAPED = re.compile("[\udc80-\udcff]")


class IncrementalDecoder:
    """Turns tokens into text as they come, and never shows half a character.

    `drop` takes away the space that the encoder put before the first character of a text, or all spaces there (one of
    a piece), as SentencePiece does where encoding removes them; the space of a token in `kept` stays. Bytes that are no
    UTF-8 become U+FFFD: one for each with `each_byte`, as in SentencePiece, else one for what could have begun a
    character, as in byte-level tokenizers.
    """

    def __init__(
        self,
        printed: Callable[[int], bytes],
        drop: Literal["none", "one", "all"] = "none",
        kept: frozenset[int] = frozenset(),
        each_byte: bool = False,
    ) -> None:
        self._printed = printed
        self._drop = drop
        self._kept = kept
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape" if each_byte else "replace")

    def push(self, token: int) -> str:
        """The text that is complete with this token."""
        data = self._printed(token)
        if data and self._drop != "none":
            rest = data if token in self._kept else data.removeprefix(b" ")
            if rest or self._drop == "one":
                self._drop = "none"
            data = rest
        return _shown(self._utf8.decode(data))

    def flush(self) -> str:
        """What is left at the end: U+FFFD where a character was cut short. The decoder can go on after it."""
        return _shown(self._utf8.decode(b"", final=True))


def _shown(text: str) -> str:
    """The text with U+FFFD for the halves of surrogate pairs that stand for bytes which are no UTF-8."""
    return text if text.isascii() else _ESCAPED.sub("\ufffd", text)
