"""Token ids to text, one token at a time. Knows bytes and UTF-8; knows no vocabulary."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from typing import Literal

from dllama_zmq.stop_strings import StopStrings

_ESCAPED = re.compile("[\udc80-\udcff]")


class IncrementalDecoder:
    """Turns tokens into text one by one, and never shows an incomplete character.

    drop: "one" drops the space that the encoder put before a text; "all" drops one space of each piece before the first
    character, as SentencePiece does if encoding removes spaces. Tokens in `kept` keep their space.
    each_byte: every byte that is not UTF-8 becomes U+FFFD, as in SentencePiece; otherwise every sequence that could
    begin a character does, as in byte-level tokenizers.
    stop: the text ends before the first of these strings.
    """

    def __init__(
        self,
        printed: Callable[[int], bytes],
        drop: Literal["none", "one", "all"] = "none",
        kept: frozenset[int] = frozenset(),
        each_byte: bool = False,
        stop: Iterable[str] = (),
    ) -> None:
        self._printed = printed
        self._drop = drop
        self._kept = kept
        self._utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape" if each_byte else "replace")
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> str:
        """The stop string that was found; "" if none was. Tokens after it have no text."""
        return self._stop.found

    def push(self, token: int) -> str:
        """The text that this token completes."""
        data = self._printed(token)
        if data and self._drop != "none":
            rest = data if token in self._kept else data.removeprefix(b" ")
            if rest or self._drop == "one":
                self._drop = "none"
            data = rest
        return self._stop.push(_shown(self._utf8.decode(data)))

    def flush(self) -> str:
        """The rest at the end: U+FFFD if a character is incomplete. The decoder can be used again."""
        return self._stop.push(_shown(self._utf8.decode(b"", final=True))) + self._stop.flush()


def _shown(text: str) -> str:
    """The text with U+FFFD for the surrogates of bytes that are not UTF-8."""
    return text if text.isascii() else _ESCAPED.sub("\ufffd", text)
