"""A back end refuses an unchecked matrix in which a value is infinite or NaN, with the words that it carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from contract.back_ends import AVAILABLE, QUANTIZED, with_threads
from numpy.random import SFC64, Generator

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.random_model import random_blocks
from dllama_zmq.kernels import Kernels
from dllama_zmq.quants import U8, BlockMatrix
from dllama_zmq.spec import FloatType

WORDS = "a.gguf: tensor head has values that are infinite or NaN."
ROWS = 35
N_BLOCKS = 3
HALVES_AT = dict.fromkeys((FloatType.Q41, FloatType.Q51, FloatType.Q4_K, FloatType.Q5_K), (0, 2))
HALVES_AT[FloatType.Q6_K] = (208,)
"""Where a block has its f16; at 0, if not said here."""
LARGEST = {FloatType.F32: 0x7F7FFFFF, FloatType.BF16: 0x7F7F}
"""The bits of the largest finite value; of F16, if not said here."""
OF_A_ROW = [(0, 0), (15, 2), (16, 1), (31, 0), (32, 2), (34, 1)]
"""Rows of whole tiles and of the last one, which has three; blocks, or thirds of a row."""


@pytest.fixture(params=AVAILABLE)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    with with_threads(request.param, 2) as kernels:
        yield kernels


def sound(kind: FloatType) -> U8:
    columns = N_BLOCKS * kind.block_values if kind.is_quantized else 57
    return random_blocks(Generator(SFC64(1)), kind, ROWS, columns, 1.0)


def places(kind: FloatType) -> Iterator[tuple[int, int]]:
    """Rows, and bytes in them that begin an f16 scale or offset, or a value."""
    for row, third in OF_A_ROW:
        if kind.is_quantized:
            yield from ((row, third * kind.block_bytes + at) for at in HALVES_AT.get(kind, (0,)))
        else:
            yield from ((row, column * kind.block_bytes) for column in (19 * third, 19 * third + 18))


def written(kind: FloatType, row: int, at: int, bits: int) -> BlockMatrix:
    data = sound(kind)
    n_bytes = 2 if kind.is_quantized else kind.block_bytes
    data[row, at : at + n_bytes] = np.frombuffer(bits.to_bytes(n_bytes, "little"), np.uint8)
    return BlockMatrix(data, kind, unchecked=WORDS)


@pytest.mark.parametrize("kind", list(FloatType), ids=lambda kind: kind.name)
def test_infinities_and_nans_anywhere_are_refused_and_the_largest_finite_values_are_not(kernels, kind):
    largest = LARGEST.get(kind, 0x7BFF)
    sign = 1 << (31 if kind is FloatType.F32 else 15)
    kernels.linear(BlockMatrix(sound(kind), kind, unchecked=WORDS))
    for row, at in places(kind):
        for bits in (largest, sign | largest):
            kernels.linear(written(kind, row, at, bits))
        for bits in (largest + 1, sign | (largest + 1), largest + 2):  # infinity, -infinity, a NaN
            with pytest.raises(FormatError) as refused:
                kernels.linear(written(kind, row, at, bits))
            assert str(refused.value) == WORDS, (row, at, hex(bits))


TAKEN: dict[str, Callable[[Kernels, BlockMatrix, BlockMatrix], object]] = {
    "the last of several": lambda kernels, good, bad: kernels.linear(good, good, bad),
    "one of another type": lambda kernels, good, bad: kernels.linear(cut_of(FloatType.Q80), bad),
    "for the bus": lambda kernels, good, bad: kernels.linear(bad, wire="q80"),
    "a gate": lambda kernels, good, bad: kernels.gated(bad, good),
    "what is gated": lambda kernels, good, bad: kernels.gated(good, bad),
    "an expert": lambda kernels, good, bad: kernels.experts([(good, good, bad)]),
    "part of its columns": lambda kernels, good, bad: kernels.linear(bad.cut(slice(2, 18), slice(32, 64))),
    "a copy": lambda kernels, good, bad: kernels.linear(bad.contiguous()),
    "rows that do not lie one behind another": lambda kernels, good, bad: kernels.linear(
        replace(bad, content=np.asfortranarray(bad.data))
    ),
}


def cut_of(kind: FloatType) -> BlockMatrix:
    return BlockMatrix(random_blocks(Generator(SFC64(1)), kind, ROWS, 768, 1.0), kind)


@pytest.mark.parametrize("how", TAKEN)
def test_it_is_refused_however_it_is_taken(kernels, how):
    kind = FloatType.Q6_K
    good, bad = (replace(cut_of(kind), unchecked=words) for words in ("another", WORDS))
    bad.data[17, 209] |= 0x7C
    with pytest.raises(FormatError) as refused:
        TAKEN[how](kernels, good, bad)
    assert str(refused.value) == WORDS


@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_no_other_byte_makes_a_block_infinite(kernels, kind):
    data = np.full((ROWS, N_BLOCKS, kind.block_bytes), 0xFF, np.uint8)
    for at in HALVES_AT.get(kind, (0,)):
        data[..., at : at + 2] = np.frombuffer(b"\xff\x7b", np.uint8)
    kernels.linear(BlockMatrix(data.reshape(ROWS, -1), kind, unchecked=WORDS))


def test_a_matrix_that_was_looked_at_before_is_taken_as_it_is(kernels):
    matrix = replace(written(FloatType.Q40, 3, 0, 0x7C00), unchecked="")
    kernels.linear(matrix)


@pytest.mark.parametrize("kind", list(FloatType), ids=lambda kind: kind.name)
def test_values_made_of_an_unchecked_matrix_are_looked_at(kind):
    bad = written(kind, *next(places(kind)), LARGEST.get(kind, 0x7BFF) + 1)
    assert not np.isfinite(replace(bad, unchecked="").dequantize()).all()
    with pytest.raises(FormatError) as refused:
        bad.dequantize()
    assert str(refused.value) == WORDS
