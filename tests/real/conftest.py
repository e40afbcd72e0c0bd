"""The files that `make test-real` has fetched, and the programs that compute the same of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from real.llama_cpp_runs import LlamaCpp


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.real)  # of this folder alone: others have another conftest.py


@pytest.fixture(scope="session")
def files() -> Path:
    """The folder of what tools/fetch_real.py fetches."""
    folder = Path(os.environ.get("REAL_FILES", ".real")).absolute()
    assert folder.is_dir(), f"{folder} is not there; `make test-real` fetches it"
    return folder


@pytest.fixture(scope="session")
def gemma(files: Path) -> Path:
    """Gemma 3 270M: Q4_K, Q5_0, Q6_K and Q8_0 side by side."""
    return files / "gemma-3-270m-q4_k_m.gguf"


@pytest.fixture(scope="session")
def deepseek(files: Path) -> Path:
    """The first 199 MB of DeepSeek-R1-Distill-Qwen-7B's Q4_K_M and zeros: all but most weights is as published."""
    return files / "deepseek-r1-distill-qwen-7b-q4_k_m.gguf"


@pytest.fixture(scope="module")
def gemma_in_llama_cpp(gemma: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(gemma) as llama:
        yield llama
