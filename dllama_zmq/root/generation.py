"""One request from its prompt's tokens to its last: prefill in chunks, then decode token by token.

Knows steps and tokens; knows nothing of clients and sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dllama_zmq.bus.client_messages import StepStats
from dllama_zmq.errors import ClusterDefect, RequestError
from dllama_zmq.kernels import Batch
from dllama_zmq.root.root import Root
from dllama_zmq.root.sampler import Sampler, more_than
from dllama_zmq.root.sampling import Sampling
from dllama_zmq.sharding import PREFILL_TOKENS, Ask
from dllama_zmq.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate. max_tokens None: until the model ends it or the context is full."""

    tokens: Sequence[int]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Prefilled:
    """`done` of the prompt's `total` tokens have been evaluated; `figures`: of the last chunk, of `n_tokens`."""

    done: int
    total: int
    n_tokens: int
    figures: StepStats


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and the text it completes (may be empty: a character can take several tokens).

    `figures` are those of the step that gave it; None for the first, which the last step of the prompt gives.
    """

    token: int
    text: str
    figures: StepStats | None


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
        whose = "this model's own context is" if root.seq_len == root.spec.seq_len else "there is room for"
        cure = "" if root.seq_len == root.spec.seq_len else f", or raise max_seq_len (at most {root.spec.seq_len})"
        raise RequestError(
            f"the prompt has {len(request.tokens)} tokens; {whose} {root.seq_len}, of which an answer needs at least "
            f"one: shorten the prompt{cure}"
        )
    if request.max_tokens is not None and request.max_tokens < 1:
        raise RequestError(f"max_tokens is {request.max_tokens}; expected 1 or more")


def generate(root: Root, tokenizer: Tokenizer, request: GenerationRequest) -> Iterator[Event]:
    """Run `request` on a formed cluster; close the iterator to stop early.

    Raises RequestError before the first step, WorkerLost or RemoteError in any.
    """
    check_request(root, request)
    tokens, n_prompt = request.tokens, len(request.tokens)
    sampler = Sampler(request.sampling)
    root.set_phase("prompt")
    for start in range(0, n_prompt - PREFILL_TOKENS, PREFILL_TOKENS):
        end = start + PREFILL_TOKENS
        _, figures = root.evaluate(Batch.alone(start, PREFILL_TOKENS), tokens[start:end], {})
        yield Prefilled(end, n_prompt, PREFILL_TOKENS, figures)
    start = (n_prompt - 1) // PREFILL_TOKENS * PREFILL_TOKENS
    batch = Batch.alone(start, n_prompt - start)
    token, figures = _evaluate_and_choose(root, sampler, batch, tokens[start:], tokenizer.vocab_size)
    yield Prefilled(n_prompt, n_prompt, batch.n_rows, figures)
    decoder = tokenizer.decoder(continues=True)
    of_step = None
    n_most = min(request.max_tokens or root.seq_len, root.seq_len - n_prompt)
    for n_generated in range(1, n_most + 1):
        if token in tokenizer.eos_ids and not request.ignore_eos:
            yield Finished("stop", decoder.flush())
            return
        yield Token(token, decoder.push(token), of_step)
        if n_generated < n_most:
            root.set_phase("prediction")
            batch = Batch.alone(n_prompt + n_generated - 1, 1)
            token, of_step = _evaluate_and_choose(root, sampler, batch, [token], tokenizer.vocab_size)
    yield Finished("length", decoder.flush())


def _evaluate_and_choose(
    root: Root, sampler: Sampler, batch: Batch, tokens: Sequence[int], n_ids: int
) -> tuple[int, StepStats]:
    """One step, and the token below `n_ids` that follows its last row; the figures are of all that choosing asked
    for."""
    k, last = sampler.sampling.first_k(), batch.n_rows - 1
    (row,), figures = root.evaluate(batch, tokens, {last: Ask(k, sampler.sampling.temperature)})
    token = sampler.choose(row.below(n_ids))
    while token is None:
        if k == 0:
            raise ClusterDefect("no token could be chosen from the logits of the whole vocabulary")
        k = more_than(k, root.spec.vocab_size)
        (row,), asked_again = root.more({last: k})
        figures += asked_again
        token = sampler.choose(row.below(n_ids))
    return token, figures
