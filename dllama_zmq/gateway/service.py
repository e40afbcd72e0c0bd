"""What every route needs: connections to the front, settings, and the known state of the model and the cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import TypeVar

from msgspec import Struct, field

from dllama_zmq.api_config import GatewaySettings
from dllama_zmq.bus.client_messages import Done, Generate, Queued, Started, Status, StatusRequest
from dllama_zmq.bus.messages import Message
from dllama_zmq.bus.prompts import Chat, text_on_wire
from dllama_zmq.bus.text_messages import Embed, Embedding, Model, ModelRequest, Tokenize, Tokens
from dllama_zmq.client import SILENCE_S
from dllama_zmq.errors import DllamaError, ProtocolError
from dllama_zmq.gateway.link import Links
from dllama_zmq.gateway.metrics import Metrics
from dllama_zmq.gateway.problems import RETRY_S, Problem

M = TypeVar("M", bound=Message)

_ANSWER_S = 10.0
_STATUS_S = 0.25  # a status may be this old
_RECENT_S = 1.0
OWN = ""
"""The user name of the API server's own requests."""


class Service(Struct):
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
        """The answer to `question`. Raises RootLost if none arrives within `wait_s`."""
        async with self.links.of(user).request(question) as mailbox:
            message = await mailbox.get(wait_s)
        if not isinstance(message, answer):
            raise ProtocolError(f"the root answered {type(question).__name__} with {type(message).__name__}")
        return message

    async def tokens(self, user: str, chat: Chat) -> Tokens:
        """The text that the chat template makes of a conversation, and its tokens."""
        return await self.ask(user, Tokenize(1, text_on_wire(chat), None, True), Tokens)

    async def follow(self, user: str, request: Generate | Embed) -> AsyncGenerator[Message, None]:
        """The front's messages about a request that is queued, up to the end of its answers. Closing it cancels it.

        Raises Problem if nodes are missing when it arrives, RootLost if the root is silent for longer than a step may
        take, and the errors of `Client.generate`.
        """
        n_open, has_begun, silence_s = request.n if isinstance(request, Generate) else 1, False, SILENCE_S
        async with self.links.of(user).request(request, cancels=True) as mailbox:
            while n_open:
                message = await mailbox.get(silence_s)
                if isinstance(message, Queued) and message.note and not has_begun:
                    raise Problem(503, message.note, retry_s=RETRY_S)
                if isinstance(message, Queued | Started):
                    has_begun |= isinstance(message, Started)
                    silence_s = max(SILENCE_S, message.silence_s)
                elif isinstance(message, Done | Embedding):
                    n_open -= 1
                    mailbox.open = n_open > 0
                yield message

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
