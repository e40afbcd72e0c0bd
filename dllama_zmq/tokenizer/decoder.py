"""Token ids to text, one token at a time. Knows bytes and UTF-8; knows no vocabulary."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class IncrementalDecoder:
    """Turns tokens into text as they come, and never shows half a character.

    `drop_space` takes away the space that the encoder put before the first character of a text.
    """

    def __init__(self, printed: Callable[[int], bytes], drop_space: bool) -> None:
        self._printed = printed
        self._drop_space = drop_space
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is complete with this token; bytes that are no UTF-8 become U+FFFD."""
        data = self._printed(token)
        if self._drop_space and data:
            self._drop_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD where a character was cut short. The decoder can go on after it."""
        return self._utf8.decode(b"", final=True)
