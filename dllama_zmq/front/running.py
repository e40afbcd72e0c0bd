"""The answers that the engine has. Pure."""

from __future__ import annotations

from dllama_zmq.front.request import Answer, Request


class Running:
    """Answers by the engine's number of them, in the order in which it got them.

    One that is withdrawn keeps its place until the engine lets go of it: a step may take seconds, and who begins and
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
        """Those whose answers they are."""
        return list(dict.fromkeys(answer.request for answer in self._of.values()))

    def add(self, answer: Answer) -> None:
        """The engine gets an answer to make, and it a number."""
        self._last_id += 1
        answer.engine_id = self._last_id
        self._of[self._last_id] = answer

    def get(self, engine_id: int) -> Answer | None:
        """The answer with that number."""
        return self._of.get(engine_id)

    def end(self, engine_id: int) -> Answer | None:
        """The engine has ended an answer; its place is free."""
        return self._of.pop(engine_id, None)

    def withdraw(self, answer: Answer) -> bool:
        """Forget an answer; whether it was here, so that the engine is to be told."""
        if self._of.pop(answer.engine_id, None) is None:
            return False
        self._leaving.add(answer.engine_id)
        return True

    def left(self, engine_id: int) -> None:
        """The engine has let go of an answer that was withdrawn."""
        self._leaving.discard(engine_id)

    @property
    def n_places(self) -> int:
        """Places that are taken."""
        return len(self._of) + len(self._leaving)

    @property
    def clients(self) -> set[bytes]:
        """Who has an answer here."""
        return {answer.request.client for answer in self._of.values()}
