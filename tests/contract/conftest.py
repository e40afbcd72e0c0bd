"""The back ends, one after another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from contract.back_ends import AVAILABLE, with_threads

from dllama_zmq.kernels import Kernels


@pytest.fixture(params=AVAILABLE)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """Each back end, with one thread."""
    with with_threads(request.param, 1) as kernels:
        yield kernels


@pytest.fixture(params=[name for name in AVAILABLE if name != "numpy"])
def compiled(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """Each back end that promises more than the reference does: see `back_ends.SAME_BITS`."""
    with with_threads(request.param, 1) as kernels:
        yield kernels
