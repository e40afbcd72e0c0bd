"""Write a random model of a published shape, and a tokenizer to go with it: for tests of speed, memory and traffic.

    python tools/make_model.py --shape tinyllama tiny.m --tokenizer tiny.t
    python tools/make_model.py --shape llama3-8b --layers 2 --weights q80 two-layers.m

The weights are drawn as blocks, never quantized: as fast as the disk, in the memory of the largest tensor. They are
scaled so that activations keep their size from layer to layer; the text such a model writes is noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
import string
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dllama_zmq.errors import DllamaError, UsageError
from dllama_zmq.formats import write_m, write_t
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import F32, U8, BlockMatrix
from dllama_zmq.shapes import SHAPES, shape
from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec
from dllama_zmq.tokenizer.data import N_BYTES, TokenizerData

_Q40_RMS = math.sqrt(21.5)  # of the values -8..7, all equally likely
_Q80_RMS = math.sqrt(127 * 128 / 3)  # of the values -127..127
_SCALE_RMS = math.sqrt(13 / 12)  # of scales spread evenly over 0.5 to 1.5, of either sign


def random_tensors(spec: ModelSpec, seed: int) -> Iterator[tuple[str, BlockMatrix]]:
    """Every tensor of the model in file order, one at a time. The same seed gives the same bytes."""
    rng = np.random.Generator(np.random.SFC64(seed))
    for tensor in tensor_table(spec):
        yield tensor.name, random_matrix(rng, tensor, spec)


def random_matrix(rng: np.random.Generator, tensor: TensorSpec, spec: ModelSpec) -> BlockMatrix:
    """A tensor whose product with a vector of unit RMS has about unit RMS (less where it is added to the residual)."""
    rows, columns = tensor.shape(spec)
    if tensor.axes[0] == "one":
        gain = 1 + np.float32(0.1) * rng.standard_normal((1, columns), dtype=np.float32)
        return BlockMatrix.from_array(gain, tensor.float_type)
    is_embedding = tensor.root_only
    rms = 1.0 if is_embedding else 1 / math.sqrt(columns)
    if tensor.axes[0] == "embed":  # added to the residual, twice a layer
        rms /= math.sqrt(2 * spec.n_layers)
    return BlockMatrix(_random_blocks(rng, tensor.float_type, rows, columns, rms), tensor.float_type)


def _random_blocks(rng: np.random.Generator, float_type: FloatType, rows: int, columns: int, rms: float) -> U8:
    if float_type in (FloatType.F32, FloatType.F16):
        return _random_floats(rng, float_type, rows, columns, rms)
    row_bytes = float_type.row_bytes(columns)
    n_bytes = rows * row_bytes
    words = rng.integers(0, 1 << 64, size=-(-n_bytes // 8), dtype=np.uint64)
    data: U8 = words.view(np.uint8)[:n_bytes].reshape(rows, row_bytes)
    blocks = data.reshape(rows, -1, float_type.block_bytes)
    if float_type is FloatType.Q80:
        values = blocks[..., 2:].view(np.int8)
        np.maximum(values, -127, out=values)  # no writer of Q80 makes -128
    unit = rms / _SCALE_RMS / (_Q40_RMS if float_type is FloatType.Q40 else _Q80_RMS)
    # Scales of either sign: Q40's values lean to the negative, and a lean would add up over a row.
    scales = 2 * rng.random(blocks.shape[:2], dtype=np.float32) - 1
    scales += np.copysign(np.float32(0.5), scales)
    blocks[..., :2] = (scales * np.float32(unit)).astype("<f2")[..., None].view(np.uint8)
    return data


def _random_floats(rng: np.random.Generator, float_type: FloatType, rows: int, columns: int, rms: float) -> U8:
    values: F32 = rng.standard_normal((rows, columns), dtype=np.float32)
    values *= np.float32(rms)
    return (values if float_type is FloatType.F32 else values.astype("<f2")).view(np.uint8)


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


def chosen_spec(args: argparse.Namespace) -> ModelSpec:
    """The shape asked for with its overrides. Raises UsageError or FormatError where it cannot be a model."""
    spec = shape(args.shape, FloatType[args.weights.upper()])
    given = {
        field.name: value
        for field in dataclasses.fields(spec)
        if (value := getattr(args, field.name, None)) is not None
    }  # fmt: skip
    spec = dataclasses.replace(spec, **given)
    if "head_dim" not in given and given.keys() & {"dim", "n_heads"}:
        spec = dataclasses.replace(spec, head_dim=spec.dim // spec.n_heads)
    spec.check()
    return spec


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write a random model of a published shape.")
    parser.add_argument("out", type=Path, metavar="OUT.m")
    parser.add_argument("--shape", required=True, help=", ".join(SHAPES))
    parser.add_argument("--weights", choices=["q40", "q80", "f16", "f32"], default="q40")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tokenizer", type=Path, metavar="OUT.t", help="write a vocabulary of the same size too")
    overrides = parser.add_argument_group("instead of the shape's own numbers")
    for flag, field in [
        ("--layers", "n_layers"), ("--dim", "dim"), ("--hidden", "hidden_dim"), ("--heads", "n_heads"),
        ("--kv-heads", "n_kv_heads"), ("--head-dim", "head_dim"), ("--vocab", "vocab_size"), ("--seq-len", "seq_len"),
    ]:  # fmt: skip
        overrides.add_argument(flag, dest=field, type=int, metavar="N")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        spec = chosen_spec(args)
        vocabulary = made_up_vocabulary(spec.vocab_size) if args.tokenizer else None
        write_m(args.out, spec, random_tensors(spec, args.seed))
        if vocabulary:
            write_t(args.tokenizer, vocabulary)
    except (DllamaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size, took_s = args.out.stat().st_size, time.perf_counter() - started
    print(f"{args.out}: {args.shape} {args.weights}, {size:,} bytes ({size / 1e9:.2f} GB) in {took_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
