"""A route of the API: its paths, its handler, and the types of its request and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllama_zmq.gateway.endpoint import OPENAI, ErrorForm, Handler


@dataclass(frozen=True, slots=True)
class Resource:
    """takes: the type of the body; None: a GET. gives: the type of the answer. streams: the type of an event's data."""

    paths: Sequence[str]
    handler: Handler
    takes: Any = None
    gives: Any = None
    streams: Any = None
    errors: ErrorForm = OPENAI

    @property
    def method(self) -> str:
        """Of HTTP."""
        return "GET" if self.takes is None else "POST"
