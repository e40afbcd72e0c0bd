"""The state of one text while it is generated: its tokens and the pages of its keys and values. Plain data."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import InitVar, dataclass, field
from typing import Literal

from dllama_zmq.constraint.matching import Constraint
from dllama_zmq.root.pooling import MeanPooling
from dllama_zmq.root.sampler import Sampler

State = Literal["waiting", "running", "finished"]


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and its continuation: at most `max_new` tokens, or up to a token of `stop_ids`, which is not kept.

    With `max_new` 0 nothing is sampled, and every prompt token is evaluated, without the prefix cache.

    Only the scheduler changes the fields from `tokens` on. `sampler`, `constraint` and `pooling` are for the engine.
    owner: the client, or anything else by which sequences take turns.
    tokens: the prompt's `n_prompt`, then the generated ones.
    pages: ids of the pages of positions 0, 1, ..., in order; the first `n_computed` positions hold keys and values.
    n_cached: prompt positions found in the prefix cache when the sequence first ran; None before that.
    n_lost: steps since its last token in which a worker was lost; counted by the engine.
    """

    prompt: InitVar[Iterable[int]]
    sampler: Sampler
    max_new: int
    stop_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    pooling: MeanPooling | None = None
    owner: Hashable = None
    tokens: list[int] = field(init=False)
    n_prompt: int = field(init=False)
    state: State = field(init=False, default="waiting")
    n_computed: int = field(init=False, default=0)
    n_cached: int | None = field(init=False, default=None)
    pages: list[int] = field(init=False, default_factory=list)
    n_lost: int = field(init=False, default=0)

    def __post_init__(self, prompt: Iterable[int]) -> None:
        self.tokens = list(prompt)
        self.n_prompt = len(self.tokens)

    @property
    def n_new(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.n_prompt
