"""Random blocks of every type are as large as they are asked to be, and their rows add up to nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.random import SFC64, Generator

from dllama_zmq.formats.random_model import random_blocks
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType


@pytest.mark.parametrize("rms", [1.0, 4096**-0.5 / 12])  # of an embedding, and of an `attention.o` in 72 layers
@pytest.mark.parametrize("kind", list(FloatType))
def test_random_blocks_have_the_rms_that_was_asked_for_and_a_mean_near_zero(kind: FloatType, rms: float) -> None:
    matrix = BlockMatrix(random_blocks(Generator(SFC64(0)), kind, 256, 2048, rms), kind)
    values = matrix.dequantize().astype(np.float64)
    assert matrix.shape == (256, 2048)
    assert np.sqrt(np.square(values).mean()) == pytest.approx(rms, rel=0.02)
    # The 32 values of an offset are as one: their mean over a row is off by some 32 / √2048, over all rows by a 16th.
    assert np.abs(values.mean(1)).max() < 0.5 * rms
    assert abs(values.mean()) < 0.02 * rms
