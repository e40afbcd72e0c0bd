"""What an answer may be, as a request says it: on the wire, in Python and on the command line. Knows no token."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from dllama_zmq.errors import RequestError

MAX_GRAMMAR_CHARACTERS = 1 << 16
JSON_SPACE = r" |\n{1,2}[ \t]{0,20}"
"""White space between the tokens of JSON, once at each place where it may be; as in llama.cpp's grammars. Small models
go on with white space for ever where it has no bound."""


class Grammar(msgspec.Struct, frozen=True):
    """The language that an answer is a sentence of. An answer that ends by itself is a whole one.

    kind json_object: any JSON object; `text` is empty. json_schema: JSON that the schema `text` describes, itself JSON.
    regex: what the regular expression `text` matches, from the first to the last character. lark: a context-free
    grammar in the notation of Lark, as llguidance reads it. gbnf: one in the notation of llama.cpp.
    """

    kind: Literal["json_object", "json_schema", "regex", "lark", "gbnf"]
    text: Annotated[str, msgspec.Meta(max_length=MAX_GRAMMAR_CHARACTERS)] = ""

    def check(self) -> None:
        """Raise RequestError where it is too long, or has nothing to say."""
        if len(self.text) > MAX_GRAMMAR_CHARACTERS:
            raise RequestError(
                f"a grammar ({self.kind}) of {len(self.text)} characters; at most {MAX_GRAMMAR_CHARACTERS} are sent"
            )
        if bool(self.text.strip()) == (self.kind == "json_object"):
            expected = "none: any JSON object is meant" if self.kind == "json_object" else "its text"
            raise RequestError(f"a grammar of kind {self.kind} and {len(self.text)} characters; expected {expected}")
