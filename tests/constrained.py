"""Answers under a grammar, of a model in this process, with the reason of their end."""

from __future__ import annotations

import json
from typing import Any

from dllama_zmq import Grammar, Sampling
from dllama_zmq.local import LocalModel
from dllama_zmq.root.scheduler import Finished, Token
from dllama_zmq.root.sequence import Sequence

HOT = 1.5
"""A temperature at which a random model says anything that it may."""


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def hot(seed: int) -> Sampling:
    return Sampling(temperature=HOT, seed=seed)


def reading(model: LocalModel) -> LocalModel:
    """The model, whose process for grammars has been started: so no test leaves it behind."""
    "".join(model.generate("a", 1, grammar=Grammar("json_object")))
    return model


class Answers:
    """Several answers at once, each with its grammar or without."""

    def __init__(self, model: LocalModel) -> None:
        self._model, self._reader = model, model._grammars
        self._tokens: dict[Sequence, list[int]] = {}
        self._ends: dict[Sequence, str | Exception] = {}

    def add(
        self,
        grammar: Grammar | None,
        sampling: Sampling | None = None,
        max_tokens: int = 400,
        prompt: str = "the cat",
        ignore_eos: bool = False,
    ) -> Sequence:
        tokenizer = self._model.tokenizer
        sequence = self._model.engine.add(
            tokenizer.encode(prompt),
            sampling or Sampling(),
            max_tokens,
            () if ignore_eos else tokenizer.eos_ids,
            tokenizer.vocab_size,
            self._reader.read(grammar) if grammar is not None else "",
        )
        self._tokens[sequence] = []
        return sequence

    def step(self) -> None:
        outcome = self._model.engine.step()
        for event in outcome.events:
            if isinstance(event, Token):
                self._tokens[event.sequence].append(event.token)
            elif isinstance(event, Finished):
                self._ends[event.sequence] = event.reason
        self._ends.update(outcome.failed)

    def end(self, sequence: Sequence) -> tuple[str, str]:
        """The text, and why it ended. Raises the error in which it did."""
        while sequence not in self._ends:
            self.step()
        end = self._ends[sequence]
        if isinstance(end, Exception):
            raise end
        return self._model.tokenizer.decode(self._tokens[sequence], continues=True), end


def answer(
    model: LocalModel, grammar: Grammar | None, sampling: Sampling | None = None, **more: Any
) -> tuple[str, str]:
    """One answer, and why it ended."""
    answers = Answers(model)
    return answers.end(answers.add(grammar, sampling, **more))
