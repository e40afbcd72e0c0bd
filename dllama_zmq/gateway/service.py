"""What every route has: the links to the front, the settings, and what is known of the model and the cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from dllama_zmq.api_config import GatewaySettings
from dllama_zmq.bus.client_messages import Queued, Started, Status, StatusRequest
from dllama_zmq.bus.messages import Message
from dllama_zmq.bus.text_messages import Model, ModelRequest
from dllama_zmq.client import SILENCE_S
from dllama_zmq.errors import DllamaError, ProtocolError, RootLost
from dllama_zmq.gateway.link import Links
from dllama_zmq.gateway.metrics import Metrics
from dllama_zmq.gateway.problems import not_ready

M = TypeVar("M", bound=Message)

_ANSWER_S = 10.0
_STATUS_S = 0.25  # a status is as new as this
_RECENT_S = 1.0
OWN = ""
"""The user of the API server's own questions."""


@dataclass(slots=True)
class Service:
    """One API server. For one event loop."""

    settings: GatewaySettings
    links: Links
    metrics: Metrics = field(default_factory=Metrics)
    started: float = field(default_factory=time.time)
    _model: Model | None = None
    _status: Status | None = None
    _status_at: float = 0.0
    _silent_since: float | None = None
    _asking: asyncio.Task[None] | None = None

    async def ask(self, user: str, question: Message, answer: type[M], wait_s: float = _ANSWER_S) -> M:
        """The answer to `question`, whose id is set here. Raises RootLost where none comes within `wait_s`."""
        async with self.links.of(user).request(_numbered(question)) as mailbox:
            message = await mailbox.get(wait_s)
        if message is None:
            raise RootLost(f"the root has not answered for {wait_s:.0f} s")
        if not isinstance(message, answer):
            raise ProtocolError(f"the root answered {type(question).__name__} with {type(message).__name__}")
        return message

    async def follow(self, user: str, request: Message, answer: type[M]) -> M:
        """The answer to a request that waits for its turn. Raises Problem where nodes are missing when it comes."""
        begun, silence_s = False, SILENCE_S
        async with self.links.of(user).request(_numbered(request), cancels=True) as mailbox:
            while True:
                message = await mailbox.get(silence_s)
                if isinstance(message, answer):
                    mailbox.open = False
                    return message
                if message is None:
                    raise RootLost(f"the root has said nothing for {silence_s:.0f} s: it is in a long step, or hangs")
                if isinstance(message, Started):
                    begun = True
                elif isinstance(message, Queued) and message.note and not begun:
                    raise not_ready(message.note)

    async def model(self) -> Model:
        """The cluster's model, which stays the same."""
        if self._model is None:
            self._model = await self.ask(OWN, ModelRequest(1), Model)
        return self._model

    async def status(self, wait_s: float = _ANSWER_S) -> Status:
        """How the cluster is, at most _STATUS_S ago, or when its root told it last."""
        if self._status is None or time.monotonic() > self._status_at + _STATUS_S:
            status = await self.ask(OWN, StatusRequest(1), Status, wait_s)
            now = self._status_at = time.monotonic()
            if self._status is None or self._status.uptime_s != status.uptime_s:
                self._silent_since = None
            elif self._silent_since is None:  # the front has told it again, for the root is in a step
                self._silent_since = now
            self._status = status
        return self._status

    async def recent_status(self, wait_s: float) -> Status:
        """As `status`; but one of up to _RECENT_S ago is told at once, while a new one is asked for.

        The front takes 50 ms for one while the root is in a step.
        """
        now = time.monotonic()
        if self._status is None or now > self._status_at + _RECENT_S:
            return await self.status(wait_s)
        if now > self._status_at + _STATUS_S and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._look(wait_s))
        return self._status

    async def _look(self, wait_s: float) -> None:
        with suppress(DllamaError):  # it will be told to whoever asks when the last status is too old
            await self.status(wait_s)

    @property
    def silence(self) -> str:
        """What is wrong where the root tells nothing new; "" where nothing is."""
        silent_s = 0.0 if self._silent_since is None else time.monotonic() - self._silent_since
        if silent_s < self.settings.step_s:
            return ""
        return f"the root has been in one step for {silent_s:.0f} s, longer than limits.step_s: it is slow, or hangs"


def _numbered(message: Message) -> Callable[[int], Message]:
    """`message` with the id that it gets."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return lambda number: type(message)(**(fields | {"id": number}))
