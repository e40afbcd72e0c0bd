"""What goes on without a word is told now and then, and not after it has ended."""

from __future__ import annotations

import queue

import pytest

from dllama_zmq.launch.telling import telling


def test_it_is_told_again_and_again_while_it_lasts_and_not_afterwards():
    words: queue.Queue[str] = queue.Queue()
    with telling(words.put, "reading", every_s=0.01):
        assert [words.get(timeout=10) for _ in range(2)] == ["reading (0 s)"] * 2
    while not words.empty():
        words.get()
    with pytest.raises(queue.Empty):
        words.get(timeout=0.1)


def test_what_is_over_soon_is_not_told_and_its_error_passes():
    words: list[str] = []
    with pytest.raises(ValueError, match="broken"), telling(words.append, "reading", every_s=60):
        raise ValueError("broken")
    assert words == []
