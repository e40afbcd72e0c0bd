"""Reads grammars for its parent process. Run by child_main.py; it imports nothing of this package.

The time and memory that compiling a grammar takes cannot be known before, and the library cannot be interrupted:
`{"type": "integer", "multipleOf": 1000003}` takes 4 s and 270 MB. So it is compiled here first, with a vocabulary of
single bytes and under limits; the parent kills this process after a time limit.

The first request is {"names", "ids": of the special tokens, "max_states"}. Each further one is {"kind", "text",
"space", "seconds", "bytes"}; its answer is {"text": the grammar in llguidance's notation} or {"error"}.
"""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import gbnf_to_lark

HEAD = '%llguidance {"no_forcing": true}\n'
"""The library must not tokenize bytes that a grammar forces: the model chooses their tokens. The library has the
vocabulary, but not the rules by which a text is split."""
VOCABULARY: dict[str, Any] = {}
"""What the first request has set: `tokenizer`, `limits` and `ids`."""
_OPTIONS = "x-guidance"
_BY_ID = re.compile(r"<\[(\d{1,9})\]>")  # a token as a symbol of Lark's notation


class Bytes:
    """A vocabulary of the 256 bytes and the special tokens, in the form that the library takes."""

    eos_token_id = bos_token_id = None

    def __init__(self, names: list[str]) -> None:
        self.tokens = [*(bytes([value]) for value in range(256)), *(name.encode() for name in names)]
        self.special_token_ids = list(range(256, len(self.tokens)))

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError


def translated(kind: str, text: str, space: str = "") -> str:
    """A grammar in llguidance's notation, a dialect of Lark's. Raises ValueError.

    space: the white space between tokens of JSON, if the schema does not set it.
    """
    if kind == "json_object":
        return json_grammar({"type": "object"}, space)
    if kind == "json_schema":
        return json_grammar(json.loads(text, parse_constant=_no_json), space)
    if kind == "regex":
        return f"{HEAD}start: /{llguidance.regex_to_lark(text)}/"
    if kind == "gbnf":
        return HEAD + re.sub(r"(?m)^%llguidance.*$", "", gbnf_to_lark(text))
    return HEAD + text


def json_grammar(schema: Any, space: str) -> str:
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        raise ValueError(f"a schema must be an object; got {json.dumps(schema)[:40]}")
    options = schema.get(_OPTIONS, {})
    if isinstance(options, dict):
        schema = {**schema, _OPTIONS: {"whitespace_pattern": space, **options}}
    return f"{HEAD}start: %json {json.dumps(schema)}"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if "names" in request:
        VOCABULARY["tokenizer"] = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(Bytes(request["names"])), slices=[]
        )
        VOCABULARY["limits"] = llguidance.LLParserLimits(max_lexer_states=request["max_states"], verbose_errors=False)
        VOCABULARY["ids"] = request["ids"]
        return {}
    limit_memory(request["bytes"])
    text = translated(request["kind"], request["text"], request["space"])
    lark = _renumbered(text, VOCABULARY["ids"])
    matcher = llguidance.LLMatcher(VOCABULARY["tokenizer"], lark, log_level=0, limits=VOCABULARY["limits"])
    if not matcher.is_error():
        matcher.compute_bitmask()  # fails if there is no first byte
    return {"error": matcher.get_error()} if matcher.is_error() else {"text": text}


def limit_memory(n_bytes: int) -> None:
    """Limit this process's further memory."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + n_bytes, resource.RLIM_INFINITY))


def _renumbered(text: str, ids: list[int]) -> str:
    """The grammar with this process's ids of special tokens, which come after the bytes."""
    here = {token: 256 + place for place, token in enumerate(ids)}
    return _BY_ID.sub(lambda found: f"<[{here.get(int(found[1]), found[1])}]>", text)


def _no_json(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
