"""llama.cpp on a GGUF file, by the functions of its C interface that llama-cpp-python has."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from corpus import LOOKALIKES

from dllama_zmq.quants import F32

STRUCK = "</s>"
"""HTML's end of struck text, in some vocabularies a token. llama.cpp takes it for an end of the text whatever the file
says."""
LOOKALIKES_OF_LLAMA_CPP = [name for name in LOOKALIKES if name != STRUCK]
ROWS = 256
"""Tokens that are evaluated at a time."""
_N_POSITIONS = 2304


class LlamaCpp:
    """A model in llama.cpp; vocabulary_alone: without its weights."""

    def __init__(self, path: Path, vocabulary_alone: bool = False) -> None:
        import llama_cpp  # built by `make test-real` alone

        self._api: Any = llama_cpp
        self._model: Any = llama_cpp.Llama(
            str(path),
            n_ctx=_N_POSITIONS,
            n_batch=ROWS,
            n_threads=1,  # several wait for each other in a loop, which takes minutes where a core is busy
            n_threads_batch=1,
            vocab_only=vocabulary_alone,
            verbose=False,
        )

    def tokens(self, text: str, specials: bool = False) -> list[int]:
        """A text as token ids, without BOS. specials: names of special tokens in it are these tokens."""
        found: list[int] = self._model.tokenize(text.encode(), add_bos=False, special=specials)
        return found

    def logits(self, tokens: Sequence[int]) -> Iterator[F32]:
        """The logits (R, V) after each of `tokens`, as a text of its own: pieces of ROWS rows, each until the next."""
        self._forget()
        for start in range(0, len(tokens), ROWS):
            yield self._evaluated(tokens[start : start + ROWS], start)

    def greedy(self, prompt: Sequence[int], n_tokens: int) -> tuple[list[int], F32]:
        """The `n_tokens` likeliest tokens after `prompt`, each after those before, and the logits (N, V) of each."""
        self._forget()
        chosen, rows = [], [self._evaluated(prompt, 0)[-1].copy()]
        while True:
            chosen.append(int(rows[-1].argmax()))
            if len(chosen) == n_tokens:
                return chosen, np.stack(rows)
            rows.append(self._evaluated(chosen[-1:], len(prompt) + len(chosen) - 1)[-1].copy())

    def _forget(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._model.ctx), True)

    def _evaluated(self, tokens: Sequence[int], start: int) -> F32:
        batch = self._api.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, start + i, True
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            assert self._api.llama_decode(self._model.ctx, batch) == 0
        finally:
            self._api.llama_batch_free(batch)
        pointer = ctypes.cast(self._api.llama_get_logits(self._model.ctx), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape=(len(tokens), self._model.n_vocab()))

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._model.close()
