"""What every route needs: connections to the front, settings, and the known state of the model and the cluster."""

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
_STATUS_S = 0.25  # a status may be this old
_RECENT_S = 1.0
OWN = ""
"""The user name of the API server's own requests."""


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
        """The answer to `question`, whose id is set here. Raises RootLost if none arrives within `wait_s`."""
        async with self.links.of(user).request(_numbered(question)) as mailbox:
            message = await mailbox.get(wait_s)
        if message is None:
            raise RootLost(f"the root did not answer within {wait_s:.0f} s")
        if not isinstance(message, answer):
            raise ProtocolError(f"the root answered {type(question).__name__} with {type(message).__name__}")
        return message

    async def follow(self, user: str, request: Message, answer: type[M]) -> M:
        """The answer to a request that is queued. Raises Problem if nodes are missing when it arrives."""
        begun, silence_s = False, SILENCE_S
        async with self.links.of(user).request(_numbered(request), cancels=True) as mailbox:
            while True:
                message = await mailbox.get(silence_s)
                if isinstance(message, answer):
                    mailbox.open = False
                    return message
                if message is None:
                    raise RootLost(f"no message from the root for {silence_s:.0f} s: it is in a long step, or stuck")
                if isinstance(message, Started):
                    begun = True
                elif isinstance(message, Queued) and message.note and not begun:
                    raise not_ready(message.note)

    async def model(self) -> Model:
        """The cluster's model; it never changes."""
        if self._model is None:
            self._model = await self.ask(OWN, ModelRequest(1), Model)
        return self._model

    async def status(self, wait_s: float = _ANSWER_S) -> Status:
        """The cluster's status: at most _STATUS_S old, or the last one that the root sent."""
        if self._status is None or time.monotonic() > self._status_at + _STATUS_S:
            status = await self.ask(OWN, StatusRequest(1), Status, wait_s)
            now = self._status_at = time.monotonic()
            if self._status is None or self._status.uptime_s != status.uptime_s:
                self._silent_since = None
            elif self._silent_since is None:  # the front repeats the last status while the root is in a step
                self._silent_since = now
            self._status = status
        return self._status

    async def recent_status(self, wait_s: float) -> Status:
        """As `status`; but a status of up to _RECENT_S ago is returned at once, while a new one is requested.

        The front needs 50 ms for a status while the root is in a step.
        """
        now = time.monotonic()
        if self._status is None or now > self._status_at + _RECENT_S:
            return await self.status(wait_s)
        if now > self._status_at + _STATUS_S and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._look(wait_s))
        return self._status

    async def _look(self, wait_s: float) -> None:
        with suppress(DllamaError):  # whoever asks when the last status is too old gets the error
            await self.status(wait_s)

    @property
    def silence(self) -> str:
        """The problem if the root sends no new status; "" if there is none."""
        silent_s = 0.0 if self._silent_since is None else time.monotonic() - self._silent_since
        if silent_s < self.settings.step_s:
            return ""
        return f"the root has been in one step for {silent_s:.0f} s, longer than limits.step_s: it is slow or stuck"


def _numbered(message: Message) -> Callable[[int], Message]:
    """A function that sets the id of `message`."""
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    return lambda number: type(message)(**(fields | {"id": number}))
