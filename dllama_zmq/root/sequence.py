"""One text while it is generated: its tokens, and where their keys and values are. Does nothing by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from typing import Literal

from dllama_zmq.constraint.matching import Constraint
from dllama_zmq.root.pooling import MeanPooling
from dllama_zmq.root.sampler import Sampler

State = Literal["waiting", "running", "finished"]


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what follows it: at most `max_new` tokens, or until one of `stop_ids`, which does not become one.

    With `max_new` 0 nothing is chosen, and each token of the prompt is evaluated, whatever the prefix cache has.

    Only the scheduler changes the fields from `tokens` on. `sampler`, `constraint` and `pooling` are for the engine.
    tokens: the prompt's `n_prompt`, then the generated ones.
    pages: ids of the pages of positions 0, 1, ..., in order; the first `n_computed` positions hold keys and values.
    n_cached: how many of these the prefix cache had when the sequence first ran; None before that.
    n_lost: steps of it since its last token in which a worker was lost; the engine's.
    """

    prompt: InitVar[Iterable[int]]
    sampler: Sampler
    max_new: int
    stop_ids: frozenset[int] = frozenset()
    constraint: Constraint | None = None
    pooling: MeanPooling | None = None
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
