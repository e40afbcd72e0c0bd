"""Tokens from an engine, without text and clients."""

from __future__ import annotations

from collections.abc import Collection

from dllama_zmq.root.engine import Engine
from dllama_zmq.root.scheduler import Event, Token
from dllama_zmq.sampling import Sampling


def events_of(
    engine: Engine, prompt: Collection[int], max_tokens: int | None, sampling: Sampling | None = None
) -> list[Event]:
    """What happens to a sequence that no stop id ends, from its prompt to its last token; the cluster is ready."""
    sequence = engine.add(prompt, sampling or Sampling(), max_tokens)
    events: list[Event] = []
    while sequence.state != "finished":
        outcome = engine.step()
        for _, error in outcome.failed:
            raise error
        events += outcome.events
    return events


def tokens_of(
    engine: Engine, prompt: Collection[int], max_tokens: int | None, sampling: Sampling | None = None
) -> list[int]:
    """The tokens that follow `prompt`."""
    return [event.token for event in events_of(engine, prompt, max_tokens, sampling) if isinstance(event, Token)]
