"""What a grammar costs for each token: finding the mask of the next one, and sampling under it.

    python tools/bench_masks.py
    python tools/bench_masks.py --tokenizer tokenizer.json --vocab 151936

Without a tokenizer, the vocabulary is drawn: words, numbers, white space and other scripts, of lengths as in published
ones. Each grammar is walked along texts that it allows, always by the longest token that goes on with them, and along
tokens drawn at random from those that are allowed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from dllama_zmq.bench.machine import cpu_name
from dllama_zmq.constraint.matching import Constraint, Vocabulary
from dllama_zmq.constraint.reading import GrammarReader
from dllama_zmq.formats import read_tokenizer
from dllama_zmq.grammar import Grammar
from dllama_zmq.quants import U8
from dllama_zmq.sharding import Ask, best_candidates
from dllama_zmq.tokenizer import Tokenizer
from dllama_zmq.tokenizer.data import TokenizerParts

_COMPILE_S = 60.0
_WALKS = 20
_DRAWN = 150
_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
_SCRIPTS = ("абвгдежзиклмнопрст", "的一是不了人我在有他这中大来上", "ةتثجحخدذرزسشصض", "éèêàçöüßñåø")


def drawn_tokenizer(n: int) -> Tokenizer:
    """A byte-level vocabulary of `n` tokens, 256 of them special."""
    rng = np.random.default_rng(1)
    pieces: dict[bytes, None] = dict.fromkeys(bytes([value]) for value in range(256))
    pieces |= dict.fromkeys(b" " * k for k in range(1, 60))
    pieces |= dict.fromkeys(b"\n" * k + b"\t" * m for k in range(4) for m in range(8) if k + m)
    pieces |= dict.fromkeys(str(number).encode() for number in range(1000))
    marks = "{}[]()\":,.;=+-*/<>_!?'`#$%&|\\^~@"
    pieces |= dict.fromkeys((a + b + c).encode() for a in (" ", "") for b in marks for c in ("", *marks))
    while len(pieces) < n - 256:
        alphabet = _SCRIPTS[rng.integers(len(_SCRIPTS))] if rng.random() < 0.25 else _LETTERS
        length = 1 + rng.poisson(2 if alphabet is not _LETTERS else 5)
        at = np.minimum(rng.exponential(len(alphabet) / 3, length).astype(int), len(alphabet) - 1)
        word = "".join(alphabet[i] for i in at)
        word = word.capitalize() if rng.random() < 0.2 else word
        pieces[((" " if rng.random() < 0.6 else "") + word).encode()] = None
    names = {f"<|special {i}|>": n - 256 + i for i in range(256)}
    table = {**dict(enumerate(list(pieces)[: n - 256])), **{i: name.encode() for name, i in names.items()}}
    return Tokenizer(
        TokenizerParts(
            "a drawn vocabulary",
            table,
            frozenset(names.values()),
            names,
            plain_encoder=lambda text: [],
            special_encoder=lambda text: [],
            bos_id=None,
            eos_ids=(n - 256,),
            add_bos=False,
        )
    )


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "format": "email"},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,12}$"}},
        "note": {"type": "string", "maxLength": 500},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
    },
    "required": ["name", "age", "mail", "tags", "note", "next"],
    "additionalProperties": False,
}
_WORDS = "the quick brown fox jumps over the lazy dog, twice: été 中文 "


def person(depth: int) -> dict[str, object]:
    return {
        "name": _WORDS[:19],
        "age": 41,
        "mail": "fox@example.org",
        "tags": ["brown", "quick"],
        "note": _WORDS * 4,
        "next": person(depth - 1) if depth else None,
    }


CASES = {
    "any JSON object": (Grammar("json_object"), json.dumps(person(2), ensure_ascii=False)),
    "a schema with all of these": (
        Grammar("json_schema", json.dumps(PERSON)),
        json.dumps(person(2), ensure_ascii=False),
    ),
    "a string of 2 to 2000 characters": (
        Grammar("json_schema", '{"type": "string", "minLength": 2, "maxLength": 2000}'),
        json.dumps(_WORDS * 20, ensure_ascii=False),
    ),
    "one of 500 words": (
        Grammar("json_schema", json.dumps({"type": "array", "items": {"enum": [f"word {i}" for i in range(500)]}})),
        json.dumps([f"word {i}" for i in range(0, 300, 7)]),
    ),
    "a regular expression": (
        Grammar("regex", r"[A-Z][a-z]+( [A-Z][a-z]+)*: \d{4}-\d\d-\d\d( .*)?"),
        "Quick Brown Fox: 2024-10-11 " + _WORDS * 10,
    ),
    "one that counts letters and words": (
        Grammar("regex", r"(\p{L}{1,12}[ ,:.]{1,2}){20,400}"),
        _WORDS.replace(",", ", ").replace("  ", " ") * 15,
    ),
}


class Walk:
    """Tokens of one vocabulary under one grammar, each with its seconds."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, grammar: str) -> None:
        self._pieces = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
        self._ids = {piece: token for token, piece in enumerate(self._pieces) if token not in tokenizer.silent}
        self._longest = max(map(len, self._ids))
        self._vocabulary, self._grammar = vocabulary, grammar
        self.seconds: list[float] = []

    def id_of(self, piece: bytes) -> int:
        return self._ids[piece]

    def begun(self) -> Constraint:
        constraint = self._vocabulary.constraint(self._grammar)
        if not constraint.wait(_COMPILE_S):
            raise TimeoutError(f"the grammar took longer than {_COMPILE_S:.0f} s")
        constraint.check()
        return constraint

    def along(self, text: bytes) -> None:
        constraint = self.begun()
        while text:
            ends = range(min(self._longest, len(text)), 0, -1)
            tokens = (self._ids.get(text[:end]) for end in ends)
            token = next(token for token in tokens if token is not None and allows(constraint.mask, token))
            text = text[len(self._pieces[token]) :]
            if self._accept(constraint, token):
                return

    def drawn(self, rng: np.random.Generator) -> None:
        constraint = self.begun()
        for _ in range(_DRAWN):
            allowed = np.flatnonzero(np.unpackbits(constraint.mask, bitorder="little"))
            if self._accept(constraint, int(rng.choice(allowed))):
                return

    def _accept(self, constraint: Constraint, token: int) -> bool:
        began = time.perf_counter()
        over = constraint.accept(token)
        self.seconds.append(time.perf_counter() - began)
        return over


def allows(mask: U8, token: int) -> bool:
    return bool(mask[token >> 3] >> (token & 7) & 1)


def row(name: str, seconds: Iterable[float]) -> str:
    us = np.array(list(seconds)) * 1e6
    p50, p99 = np.percentile(us, [50, 99])
    return f"| {name:<48} | {len(us):6} | {us.mean():7.1f} | {p50:7.1f} | {p99:7.1f} | {us.max():7.1f} |"


def seconds_of(work: Callable[[], object], n: int = 200) -> list[float]:
    found = []
    for _ in range(n):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return found


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer's file or folder")
    parser.add_argument("--vocab", type=int, default=128256, help="ids of the model (128256)")
    args = parser.parse_args()
    tokenizer = read_tokenizer(args.tokenizer) if args.tokenizer else drawn_tokenizer(args.vocab)
    vocabulary, reader = Vocabulary(tokenizer, args.vocab), GrammarReader(tokenizer)
    texts = {name: (reader.read(grammar), text.encode()) for name, (grammar, text) in CASES.items()}
    began, before = time.perf_counter(), resident_bytes()
    vocabulary.compile(texts["any JSON object"][0])
    print(f"{cpu_name()}; {args.vocab} ids of {tokenizer.source}")
    made_s, made_bytes = time.perf_counter() - began, resident_bytes() - before
    compiled = seconds_of(lambda: vocabulary.compile(texts["a schema with all of these"][0]), 20)
    print(f"the vocabulary: {made_s:.2f} s and {made_bytes / 1e6:.0f} MB, once", end="; ")
    print(f"compiling the schema below: {statistics.median(compiled) * 1e3:.1f} ms")
    print(f"\n| {'us for each token':<48} | tokens |    mean |     p50 |     p99 |     max |")
    print(f"| {'-' * 48} | -----: | ------: | ------: | ------: | ------: |")
    rng = np.random.default_rng(2)
    for name, (grammar, text) in texts.items():
        for how in ("texts", "drawn"):
            walk = Walk(tokenizer, vocabulary, grammar)
            for _ in range(_WALKS):
                walk.along(text) if how == "texts" else walk.drawn(rng)
            print(row(f"{name}, {how}", walk.seconds))
    logits = rng.standard_normal((1, args.vocab), dtype=np.float32)
    for what, k, temperature in (("greedy", 1, 0.0), ("sampled", 64, 0.8)):
        for mask in (None, *masks(texts["a string of 2 to 2000 characters"][0], vocabulary, tokenizer)):
            asks = [Ask(k, temperature, mask=mask)]
            of = "" if mask is None else f", of {np.unpackbits(mask).sum()} tokens"
            print(row(f"candidates of one node, {what}{of}", seconds_of(partial(best_candidates, logits, asks, 0))))


def masks(grammar: str, vocabulary: Vocabulary, tokenizer: Tokenizer) -> list[U8]:
    """Those at the beginning of a string, and within it."""
    walk = Walk(tokenizer, vocabulary, grammar)
    constraint = walk.begun()
    found = [constraint.mask]
    constraint.accept(walk.id_of(b'"'))
    return [*found, constraint.mask]


if __name__ == "__main__":
    main()
