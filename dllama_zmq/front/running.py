"""The answers that the engine has. Pure."""

from __future__ import annotations

from dllama_zmq.front.request import Answer, Request


class Running:
    """Answers by their engine number, in the order of submission.

    A withdrawn answer keeps its place until the engine confirms: a step may take seconds, and a client that submits and
    cancels in a loop must not fill the queue to the engine.
    """

    def __init__(self) -> None:
        self._of: dict[int, Answer] = {}
        self._leaving: set[int] = set()
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._of)

    @property
    def requests(self) -> list[Request]:
        """The requests of the answers."""
        return list(dict.fromkeys(answer.request for answer in self._of.values()))

    def add(self, answer: Answer) -> None:
        """Add an answer and give it its engine number."""
        self._last_id += 1
        answer.engine_id = self._last_id
        self._of[self._last_id] = answer

    def get(self, engine_id: int) -> Answer | None:
        """The answer with that number."""
        return self._of.get(engine_id)

    def end(self, engine_id: int) -> Answer | None:
        """Remove an answer that the engine has ended, and free its place."""
        return self._of.pop(engine_id, None)

    def withdraw(self, answer: Answer) -> bool:
        """Withdraw an answer. Returns whether the engine has it and must withdraw it too."""
        if self._of.pop(answer.engine_id, None) is None:
            return False
        self._leaving.add(answer.engine_id)
        return True

    def left(self, engine_id: int) -> None:
        """Free the place of a withdrawn answer that the engine has dropped."""
        self._leaving.discard(engine_id)

    @property
    def n_places(self) -> int:
        """The number of taken places."""
        return len(self._of) + len(self._leaving)

    @property
    def clients(self) -> set[bytes]:
        """The clients with an answer here."""
        return {answer.request.client for answer in self._of.values()}
