"""Encodes text with a tokenizer.json for its parent process. A script: it imports nothing of this package.

A file's regular expression may run forever on some text, inside a library that cannot be interrupted. Here it has
limits of memory and CPU time. The first line is {"files": texts of tokenizer.json}; each further line is {"file",
"text", "names_are_text", "seconds"}. Answers are {}, {"ids"} or {"error"}.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from typing import Any

import tokenizers

MEMORY_BYTES = 3 << 30


def load(request: dict[str, Any]) -> list[tokenizers.Tokenizer]:
    loaded = [tokenizers.Tokenizer.from_str(text) for text in request["files"]]
    for tokenizer in loaded:
        tokenizer.no_truncation()
        tokenizer.no_padding()
    return loaded


def encode(loaded: list[tokenizers.Tokenizer], request: dict[str, Any]) -> dict[str, Any]:
    used_s = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(used_s + request["seconds"]) + 1, resource.RLIM_INFINITY))
    tokenizer = loaded[request["file"]]
    tokenizer.encode_special_tokens = request["names_are_text"]
    return {"ids": tokenizer.encode(request["text"], add_special_tokens=False).ids}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    loaded: list[tokenizers.Tokenizer] = []
    for line in sys.stdin.buffer:
        try:
            request = json.loads(line)
            if "files" in request:
                loaded, answer = load(request), {}
            else:
                answer = encode(loaded, request)
        except BaseException as error:  # a panic of the library is not an Exception
            answer = {"error": str(error)[:500] or type(error).__name__}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
