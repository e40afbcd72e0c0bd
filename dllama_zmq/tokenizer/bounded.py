"""Encoders whose time is bounded, for a tokenizer.json with patterns that nobody has looked at. Knows no vocabulary.

What a regular expression may take cannot be told from its text: a group that is repeated explodes on some texts, and
two runs side by side take the square of a text's length. Published tokenizers have such patterns. So they run in a
process of their own (`encode_child.py`), which is ended when its time is over.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from dllama_zmq.errors import FormatError, RequestError
from dllama_zmq.tokenizer.child import START_S, Child
from dllama_zmq.tokenizer.data import Encoder

ENCODE_S = 2.0
"""Seconds that a text may take: a megabyte of ordinary text takes half of one."""


class BoundedEncoders:
    """The tokenizer.json `files` in a process of their own. Raises FormatError where it cannot load or run them."""

    def __init__(self, files: Sequence[str], source: str) -> None:
        self._source = source
        self._child = Child("encode_child.py", first=json.dumps({"files": files}).encode() + b"\n")
        try:
            answered = self._ask(0, "a", False, START_S)
        except RequestError as error:
            raise FormatError(f"{error}. Get the file again.") from error
        if answered is None:
            raise FormatError(
                f"{source}: the tokenizers library cannot run this file: it takes longer than {START_S:g} s or more "
                "memory than it may. Get the file again."
            )

    def encoder(self, file: int, names_are_text: bool = False) -> Encoder:
        """An encoder by `files[file]`. names_are_text: names of special tokens are not those tokens."""

        def encode(text: str) -> list[int]:
            ids = self._ask(file, text, names_are_text, ENCODE_S)
            if ids is None:
                raise RequestError(
                    f"{self._source}: this text takes longer than {ENCODE_S:g} s to become tokens, by a pattern of "
                    "this file that takes very long for some texts; give a shorter text, or one without long runs of "
                    "digits, spaces or the like"
                )
            return ids

        return encode

    def _ask(self, file: int, text: str, names_are_text: bool, seconds: float) -> list[int] | None:
        request = {"file": file, "text": text, "names_are_text": names_are_text, "seconds": seconds}
        answer = self._child.ask(json.dumps(request).encode() + b"\n", seconds)
        if answer is not None and "error" in answer:
            raise RequestError(f"{self._source}: the tokenizers library cannot encode this text: {answer['error']}")
        return None if answer is None else answer["ids"]
