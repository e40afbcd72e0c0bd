"""Encodes text with a tokenizer.json for its parent process. Run by child_main.py; it imports nothing of this package.

A file's regular expression may run forever on some text, inside a library that cannot be interrupted. The first request
is {"files": texts of tokenizer.json}; each further one is {"file", "text", "names_are_text"}. Answers are {} and
{"ids"}.
"""

from __future__ import annotations

from typing import Any

import tokenizers

MEMORY_BYTES = 3 << 30
LOADED: list[tokenizers.Tokenizer] = []


def answer(request: dict[str, Any]) -> dict[str, Any]:
    if "files" in request:
        LOADED[:] = [tokenizers.Tokenizer.from_str(text) for text in request["files"]]
        for tokenizer in LOADED:
            tokenizer.no_truncation()
            tokenizer.no_padding()
        return {}
    tokenizer = LOADED[request["file"]]
    tokenizer.encode_special_tokens = request["names_are_text"]
    return {"ids": tokenizer.encode(request["text"], add_special_tokens=False).ids}
