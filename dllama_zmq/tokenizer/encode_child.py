"""Encodes text by a tokenizer.json for the process that started this one. A script: it imports nothing of ours.

A regular expression that came with a file may take for ever on some text, inside a library that nothing interrupts. It
does so here: with little memory, and a parent that ends this process when its time is over. The first line in is
{"files": the texts of one or more tokenizer.json}, each other one {"file", "text", "names_are_text", "seconds"}; each
line out is {}, {"ids"} or {"error"}.
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
    # The kernel ends what a signal cannot stop, should the parent be gone.
    resource.setrlimit(resource.RLIMIT_CPU, (int(used_s + 2 * request["seconds"]) + 2, resource.RLIM_INFINITY))
    tokenizer = loaded[request["file"]]
    tokenizer.encode_special_tokens = request["names_are_text"]
    return {"ids": tokenizer.encode(request["text"], add_special_tokens=False).ids}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that reads our answers
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
        except BaseException as error:  # a panic of the library is no Exception
            answer = {"error": str(error)[:500] or type(error).__name__}
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
