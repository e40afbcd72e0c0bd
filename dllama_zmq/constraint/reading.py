"""Grammars of clients, checked and put into one notation. Of the vocabulary it knows only special tokens."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from dllama_zmq.constraint.matching import MAX_STATES
from dllama_zmq.errors import RequestError
from dllama_zmq.grammar import JSON_SPACE, Grammar
from dllama_zmq.tokenizer import Tokenizer
from dllama_zmq.tokenizer.child import BUSY_S, Children

READ_S = 2.0
"""Time limit for a grammar in seconds of CPU time; a schema of 120 kB takes 0.02 s."""
MEMORY_BYTES = 64 << 20
"""Memory limit of compiling a grammar; a schema of 120 kB takes 5 MB."""
_MAX_ERROR_CHARACTERS = 1000


class GrammarReader:
    """Reads grammars in a child process, which is started for the first one.

    tokenizer: a grammar in Lark's notation may use its special tokens as symbols, by name or as <[ID]>.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _children(self) -> Children:
        tokenizer = self._tokenizer
        ids = sorted(tokenizer.silent)
        names = [tokenizer.piece(token).decode("utf-8", "replace") for token in ids]
        first = {"names": names, "ids": ids, "max_states": MAX_STATES}
        return Children(Path(__file__).with_name("grammar_child.py"), first)

    def read(self, grammar: Grammar) -> str:
        """The grammar in the notation of `Vocabulary.constraint`.

        Raises RequestError if it is invalid or unsupported, or takes too much time or memory.
        """
        grammar.check()
        request: dict[str, object] = {"kind": grammar.kind, "text": grammar.text, "space": JSON_SPACE}
        request |= {"seconds": READ_S, "bytes": MEMORY_BYTES}
        answer = self._children.ask(request, READ_S + BUSY_S)
        what = f"the grammar ({grammar.kind})"
        if answer is None:
            raise RequestError(
                f"{what} takes longer than {READ_S:g} s or more than {MEMORY_BYTES >> 20} MiB to compile; give a "
                "simpler one"
            )
        if "error" in answer:
            raise RequestError(f"{what} cannot be used: {answer['error'].strip()[:_MAX_ERROR_CHARACTERS]}")
        text: str = answer["text"]
        return text
