"""Encoders with a time limit, for a tokenizer.json with unknown patterns. Knows no vocabulary.

The running time of a regular expression cannot be predicted from its text: a repeated group can take exponential time,
two adjacent repetitions quadratic time, and published tokenizers have such patterns. So they run in a process of their
own (`encode_child.py`), which is killed after ENCODE_S of CPU time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dllama_zmq.errors import FormatError, RequestError
from dllama_zmq.tokenizer.child import BUSY_S, START_S, Children
from dllama_zmq.tokenizer.data import Encoder

ENCODE_S = 2.0
"""Time limit for a text in seconds of CPU time; 1 MB of ordinary text takes 0.5 s."""
_SCRIPT = Path(__file__).with_name("encode_child.py")
_MAX_ERROR_CHARACTERS = 500


class BoundedEncoders:
    """The tokenizer.json texts `files` in processes of their own. Raises FormatError if it cannot load or run them."""

    def __init__(self, files: Sequence[str], source: str) -> None:
        self._source = source
        self._children = Children(_SCRIPT, first={"files": list(files)})
        try:
            ids = self._ask(0, "a", False, START_S)
        except RequestError as error:
            raise FormatError(f"{error}. Get the file again.") from error
        if ids is None:
            raise FormatError(
                f"{source}: the tokenizers library cannot run this file: it takes longer than {START_S:g} s or too "
                "much memory. Get the file again."
            )

    def encoder(self, file: int, names_are_text: bool = False) -> Encoder:
        """The encoder of `files[file]`. names_are_text: names of special tokens in a text are ordinary text."""

        def encode(text: str) -> list[int]:
            ids = self._ask(file, text, names_are_text, ENCODE_S)
            if ids is None:
                raise RequestError(
                    f"{self._source}: encoding this text takes longer than {ENCODE_S:g} s, because of a slow pattern "
                    "in this file; give a shorter text, or one without long runs of digits, spaces or the like"
                )
            return ids

        return encode

    def _ask(self, file: int, text: str, names_are_text: bool, seconds: float) -> list[int] | None:
        request = {"file": file, "text": text, "names_are_text": names_are_text, "seconds": seconds}
        answer = self._children.ask(request, seconds + BUSY_S)
        if answer is not None and "error" in answer:
            why = answer["error"][:_MAX_ERROR_CHARACTERS]
            raise RequestError(f"{self._source}: the tokenizers library cannot encode this text: {why}")
        return None if answer is None else answer["ids"]
