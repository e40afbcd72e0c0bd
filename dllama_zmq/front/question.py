"""One client's question about a text or the model. Knows no socket."""

from __future__ import annotations

from dataclasses import dataclass

from dllama_zmq.bus.messages import Message
from dllama_zmq.bus.prompts import held_bytes
from dllama_zmq.bus.text_messages import Detokenize, ModelRequest, Tokenize
from dllama_zmq.front.texts import Texts


@dataclass(slots=True, eq=False)
class Question:
    """A question that waits for a thread to answer it."""

    client: bytes
    asked: Tokenize | Detokenize | ModelRequest

    @property
    def id(self) -> int:
        """The client's number for it."""
        return self.asked.id

    @property
    def size(self) -> int:
        """Its approximate bytes, for the bound on everything that waits."""
        if isinstance(self.asked, ModelRequest):
            return 0
        return held_bytes(self.asked.tokens if isinstance(self.asked, Detokenize) else self.asked.prompt)

    def work(self, texts: Texts) -> Message:
        """The answer; may take seconds."""
        return texts.answer(self.asked)
