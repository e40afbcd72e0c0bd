"""One request from its prompt's tokens to its last: prefill in chunks, then decode token by token.

Knows steps and tokens; knows nothing of clients and sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dllama_zmq.errors import RequestError
from dllama_zmq.models import Run
from dllama_zmq.root.root import Root, Timing
from dllama_zmq.root.sampler import Sampler, Sampling, more_than
from dllama_zmq.sharding import RowCandidates
from dllama_zmq.tokenizer import Tokenizer

PREFILL_TOKENS = 32
"""Prompt tokens in one step: between two of them a request can be cancelled and its progress told."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate. max_tokens None: until the model ends it or the context is full."""

    tokens: Sequence[int]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Prefilled:
    """`done` of the prompt's `total` tokens have been evaluated; `timing` is that of the last chunk of `n_tokens`."""

    done: int
    total: int
    n_tokens: int
    timing: Timing


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and the text it completes (may be empty: a character can take several tokens).

    `timing` is that of the step that gave it; None for the first, which the last step of the prompt gives.
    """

    token: int
    text: str
    timing: Timing | None


@dataclass(frozen=True, slots=True)
class Finished:
    """Why generation ended, and text that was still held back."""

    reason: Literal["stop", "length"]
    text: str


Event = Prefilled | Token | Finished


def check_request(root: Root, request: GenerationRequest) -> None:
    """Raise RequestError where the request cannot be answered on this cluster."""
    request.sampling.check()
    if not request.tokens:
        raise RequestError("the prompt is empty, and this tokenizer begins no text of itself; give some text")
    if len(request.tokens) >= root.seq_len:
        raise RequestError(
            f"the prompt has {len(request.tokens)} tokens and this cluster's context {root.seq_len}, "
            "of which an answer needs at least one; shorten the prompt or raise max_seq_len"
        )
    if request.max_tokens is not None and request.max_tokens < 1:
        raise RequestError(f"max_tokens is {request.max_tokens}; expected 1 or more")


def generate(root: Root, tokenizer: Tokenizer, request: GenerationRequest) -> Iterator[Event]:
    """Run `request` in slot 0 of a formed cluster; close the iterator to stop early.

    Raises RequestError before the first step, WorkerLost or RemoteError in any.
    """
    check_request(root, request)
    sampler = Sampler(request.sampling)
    wanted = (0, request.sampling.temperature)
    k = request.sampling.first_k()
    rows: list[RowCandidates] = []
    root.set_phase("prompt")
    for start in range(0, len(request.tokens), PREFILL_TOKENS):
        chunk = request.tokens[start : start + PREFILL_TOKENS]
        done = start + len(chunk)
        last = [(len(chunk) - 1, wanted[1])] if done == len(request.tokens) else []
        rows, timing = root.evaluate([Run(0, start, len(chunk))], chunk, last, k)
        yield Prefilled(done, len(request.tokens), len(chunk), timing)
    decoder = tokenizer.decoder(continues=True)
    position, decode_timing = len(request.tokens), None
    n_most = min(request.max_tokens or root.seq_len, root.seq_len - position)
    for n_generated in range(1, n_most + 1):
        token = _choose(root, sampler, rows[0], k)
        if token in tokenizer.eos_ids and not request.ignore_eos:
            yield Finished("stop", decoder.flush())
            return
        yield Token(token, decoder.push(token), decode_timing)
        if n_generated < n_most:
            root.set_phase("prediction")
            rows, decode_timing = root.evaluate([Run(0, position, 1)], [token], [wanted], k)
            position += 1
    yield Finished("length", decoder.flush())


def _choose(root: Root, sampler: Sampler, row: RowCandidates, k: int) -> int:
    token = sampler.choose(row)
    while token is None:
        k = more_than(k, root.spec.vocab_size)
        token = sampler.choose(root.more(k)[0])
    return token
