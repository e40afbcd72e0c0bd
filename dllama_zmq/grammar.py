"""The grammar of an answer in a request: on the wire, in Python and on the command line. Knows no token."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from dllama_zmq.errors import RequestError

MAX_GRAMMAR_CHARACTERS = 1 << 16
JSON_SPACE = r" |\n{1,2}[ \t]{0,20}"
"""White space between the tokens of JSON, at most this at each place, as in llama.cpp's grammars. Without a bound,
small models continue with white space forever."""


class Grammar(msgspec.Struct, frozen=True):
    """A language; the answer is a sentence of it. An answer that ends by itself is a complete sentence.

    kind json_object: any JSON object; `text` is empty. json_schema: JSON that the schema `text` describes, itself JSON.
    regex: what the regular expression `text` matches, from the first to the last character. lark: a context-free
    grammar in the notation of Lark, as llguidance reads it. gbnf: one in the notation of llama.cpp.
    """

    kind: Literal["json_object", "json_schema", "regex", "lark", "gbnf"]
    text: Annotated[str, msgspec.Meta(max_length=MAX_GRAMMAR_CHARACTERS)] = ""

    def check(self) -> None:
        """Raise RequestError if the text is too long, or missing."""
        if len(self.text) > MAX_GRAMMAR_CHARACTERS:
            raise RequestError(
                f"a grammar ({self.kind}) of {len(self.text)} characters; at most {MAX_GRAMMAR_CHARACTERS} are sent"
            )
        if bool(self.text.strip()) == (self.kind == "json_object"):
            expected = "none: any JSON object is meant" if self.kind == "json_object" else "its text"
            raise RequestError(f"a grammar of kind {self.kind} and {len(self.text)} characters; expected {expected}")
