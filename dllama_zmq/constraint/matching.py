"""The tokens that a grammar allows next, for any number of answers over one vocabulary.

The vocabulary's tables are made once, for the first grammar. A grammar is compiled in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from dllama_zmq.errors import DllamaError, RequestError
from dllama_zmq.quants import U8
from dllama_zmq.tokenizer import Tokenizer
from dllama_zmq.tokenizer.encoders import library_errors

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_STATES = 50_000
"""States of a grammar's automaton, of 1 to 2 kB each. The library itself limits one step to about 20 ms."""
_SLICES = [r'[^"\\\x00-\x1F\x7F]{1,30}']
"""Slices of the vocabulary: tokens that a JSON string may contain are checked together. For 128k tokens they take 12
MB, and a mask within a string of limited length takes 0.06 ms instead of 0.8."""
_MAX_ERROR_CHARACTERS = 500


class Vocabulary:
    """The bytes of a model's tokens, for grammars. Nothing is made before the first grammar."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """vocab_size: ids of the model. Ids that are no tokens of `tokenizer` are never allowed."""
        self._source = tokenizer
        self._vocab_size = vocab_size
        self._n_ids = min(tokenizer.vocab_size, vocab_size)
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None

    def constraint(self, grammar: str, stop_ids: Iterable[int] = ()) -> Constraint:
        """The constraint of one answer; a thread begins to compile it now.

        grammar: as GrammarReader returns it. stop_ids: end the answer, and are allowed where the grammar may end.
        """
        made = Constraint(stop_ids, self._n_ids, self._vocab_size)
        threading.Thread(target=made._begin, args=(self, grammar), name="grammar", daemon=True).start()
        return made

    def compile(self, grammar: str) -> LLMatcher:
        """A matcher at the beginning of an answer. The library releases the interpreter's lock meanwhile."""
        import llguidance  # here, so that only roots with a grammar pay for the import

        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(
                    llguidance.TokenizerWrapper(_Printed(self._source, self._n_ids)), slices=_SLICES
                )
        limits = llguidance.LLParserLimits(max_lexer_states=MAX_STATES, verbose_errors=False)
        return llguidance.LLMatcher(self._tokenizer, grammar, log_level=0, limits=limits)


class Constraint:
    """The tokens that may come next in one answer. Call `accept` once for each of its tokens."""

    def __init__(self, stop_ids: Iterable[int], n_ids: int, vocab_size: int) -> None:
        self._end = n_ids  # the library's end-of-answer token: an id that no token has
        self._found: U8 = np.zeros((n_ids // 32 + 1) * 4, np.uint8)  # whole 32-bit words, for ids 0 to n_ids
        self._n_bytes = (vocab_size + 7) // 8
        self._stops = np.array([token for token in stop_ids if token < n_ids], np.int64)
        self._matcher: LLMatcher | None = None
        self._mask: U8 = self._found
        self._error: DllamaError | None = None
        self._ready = threading.Event()

    def wait(self, wait_s: float = 0.0) -> bool:
        """Whether compiling has ended, successfully or not."""
        return self._ready.wait(wait_s)

    def check(self) -> None:
        """Raise RequestError if the grammar could not be compiled."""
        if self._error is not None:
            raise self._error

    @property
    def mask(self) -> U8:
        """The tokens that may come next, as in `Ask`: bit i % 8 of byte i // 8 is set if id i may."""
        return self._mask

    def accept(self, token: int) -> bool:
        """Advance by the answer's next token, which the mask allows and which is no stop id. True: the answer is
        complete.

        After a complete answer only its end may come. Raises RequestError if the grammar becomes too complex, or if no
        token of the vocabulary can continue the answer.
        """
        assert self._matcher is not None
        with _no_panic():
            goes_on = self._matcher.consume_token(token)
        if not goes_on:
            raise self._refused("the answer cannot be continued")
        return self._look()

    def _begin(self, vocabulary: Vocabulary, grammar: str) -> None:
        """Runs in a thread of its own. Any error is raised in the caller that waits."""
        try:
            with _no_panic():
                self._matcher = vocabulary.compile(grammar)
            if self._matcher.is_error():
                raise self._refused("it cannot be used")
            if self._look():
                raise RequestError("the grammar allows only the empty text")
        except DllamaError as error:
            self._error = error
        finally:
            self._ready.set()

    def _look(self) -> bool:
        """Compute the next mask. Returns whether only the end may come."""
        matcher, found = self._matcher, self._found
        assert matcher is not None
        with _no_panic():
            matcher.unsafe_compute_mask_ptr(found.ctypes.data, found.nbytes)
        if matcher.is_error():
            raise self._refused("the answer cannot be continued")
        mask: U8 = np.zeros(self._n_bytes, np.uint8)
        n_bytes = min(len(found), len(mask))
        mask[:n_bytes] = found[:n_bytes]
        for token in (self._end, *self._stops):
            if token >> 3 < len(mask):
                mask[token >> 3] &= ~np.uint8(1 << (token & 7))
        may_end = matcher.is_accepting()
        if not mask.any():
            if not may_end:
                raise RequestError("the grammar: it requires a token that ends an answer")
            return True
        if may_end:
            for token in self._stops:
                mask[token >> 3] |= np.uint8(1 << (token & 7))
        self._mask = mask
        return False

    def _refused(self, what: str) -> RequestError:
        """An error of the request, with the library's message."""
        assert self._matcher is not None
        why = self._matcher.get_error().replace("<non-verbose/>", "").strip()[:_MAX_ERROR_CHARACTERS]
        if "NoExtension" in why:
            why = "this model has no token that the grammar allows here"
        return RequestError(f"the grammar: {what}: {why}")


def _no_panic() -> AbstractContextManager[None]:
    """Turn any failure inside the library into an error of the request: it must not end the root."""
    return library_errors(RequestError, "the grammar: llguidance fails")


class _Printed:
    """The bytes of the first `n_ids` tokens, in the form that the library takes; special tokens by name."""

    eos_token_id = bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, n_ids: int) -> None:
        self.tokens = [tokenizer.piece(token) for token in range(n_ids)]
        self.special_token_ids = [token for token in tokenizer.silent if token < n_ids]

    def __call__(self, text: bytes) -> list[int]:
        raise NotImplementedError  # called only to tokenize forced bytes, which is off
