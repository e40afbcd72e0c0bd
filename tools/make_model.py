"""Write a random model of a published shape, and a tokenizer to go with it: for tests of speed, memory and traffic.

    python tools/make_model.py --shape tinyllama tiny.m --tokenizer tiny.t
    python tools/make_model.py --shape llama3-8b --layers 2 --weights q80 two-layers.m

How the weights are drawn: dllama_zmq/formats/random_model.py.
"""

from __future__ import annotations

import argparse
import itertools
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dllama_zmq.bench.random_file import write_random
from dllama_zmq.cli.progress import Display
from dllama_zmq.errors import DllamaError, UsageError
from dllama_zmq.formats import write_t
from dllama_zmq.shapes import OVERRIDES, SHAPES, shape
from dllama_zmq.spec import FloatType
from dllama_zmq.tokenizer.data import N_BYTES, TokenizerData


def made_up_vocabulary(n_tokens: int) -> TokenizerData:
    """A SentencePiece-like vocabulary: `<unk> <s> </s>`, the 256 bytes, then strings that pairs can merge into."""
    specials = [b"<unk>", b"<s>", b"</s>"]
    n_made_up = n_tokens - len(specials) - N_BYTES
    if n_made_up < 0:
        raise UsageError(f"a vocabulary of {n_tokens} has no room for 3 special and 256 byte pieces; use 259 or more")
    made_up = [text.encode() for text in itertools.islice(_strings(), n_made_up)]
    pieces = [*specials, *(bytes([value]) for value in range(N_BYTES)), *made_up]
    scores = [0.0] * (len(specials) + N_BYTES) + [-float(i) for i in range(n_made_up)]
    return TokenizerData(pieces, scores, bos_id=1, eos_ids=(2,), source="made-up vocabulary")


def _strings() -> Iterator[str]:
    letters = " " + string.ascii_lowercase
    rest = "".join(sorted(set(string.printable) - set(letters) - set(string.whitespace)))
    yield from letters + rest
    for length in itertools.count(2):
        for characters in itertools.product(letters, repeat=length):
            yield "".join(characters)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write a random model of a published shape.")
    parser.add_argument("out", type=Path, metavar="OUT.m")
    parser.add_argument("--shape", required=True, help=", ".join(SHAPES))
    parser.add_argument("--weights", choices=["q40", "q80", "f16", "f32"], default="q40")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", type=Path, metavar="OUT.t", help="write a vocabulary of the same size too")
    overrides = parser.add_argument_group("instead of the shape's own numbers")
    for name in OVERRIDES:
        overrides.add_argument(f"--{name}", dest=name, type=int, metavar="N")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        given = {name: value for name in OVERRIDES if (value := getattr(args, name)) is not None}
        spec = shape(args.shape, FloatType[args.weights.upper()], given)
        vocabulary = made_up_vocabulary(spec.vocab_size) if args.tokenizer else None
        with Display() as display:
            write_random(args.out, spec, args.seed, display)
            if vocabulary:
                display.activity(f"writing {args.tokenizer.name}")
                write_t(args.tokenizer, vocabulary)
    except (DllamaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size, took_s = args.out.stat().st_size, time.perf_counter() - started
    print(f"{args.out}: {args.shape} {args.weights}, {size:,} bytes ({size / 1e9:.2f} GB) in {took_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
