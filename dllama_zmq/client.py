"""Talk to a running root: generate, status, stop. One socket; not to be shared between threads."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Generator
from types import TracebackType

import zmq

from dllama_zmq import errors
from dllama_zmq.bus import sockets
from dllama_zmq.bus.client_messages import (
    MAX_PROMPT_CHARACTERS,
    TO_CLIENT,
    AskStatus,
    Cancel,
    Done,
    Error,
    Generate,
    Piece,
    Prefill,
    Queued,
    Started,
    Status,
    Stop,
    Stopping,
)
from dllama_zmq.bus.messages import Message, decode, encode
from dllama_zmq.errors import ClusterError, DllamaError, ProtocolError, RequestError, RootLost

Answer = Queued | Started | Prefill | Piece | Done

SILENCE_S = 180.0
"""How long a root may say nothing during a request. It reports after every step, so this is for the slowest step."""


class Client:
    """A connection to the root at `endpoint`, such as tcp://127.0.0.1:5572 (root.ports.clients) or ipc://..."""

    def __init__(self, endpoint: str = "tcp://127.0.0.1:5572") -> None:
        self.endpoint = endpoint
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._socket = sockets.connect(self._context, zmq.DEALER, endpoint)
        except BaseException:
            self._context.term()
            raise
        self._disconnects = sockets.Disconnects(self._socket)
        self._ids = itertools.count(1)

    def generate(
        self,
        prompt: str,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
        ignore_eos: bool = False,
    ) -> Generator[Answer, None, None]:
        """Everything the root says of this request, the last being Done. Close the iterator to cancel.

        Raises the error that ended the request on the root; RootLost where the root goes away or is silent.
        """
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise RequestError(f"the prompt has {len(prompt)} characters; at most {MAX_PROMPT_CHARACTERS} are sent")
        request = next(self._ids)
        self._send(Generate(request, prompt, max_tokens, temperature, top_p, top_k, seed, ignore_eos))
        finished = False
        try:
            while not finished:
                answer = self._receive(request, SILENCE_S)
                if isinstance(answer, Done):
                    finished = True
                if isinstance(answer, Answer):
                    yield answer
        except (DllamaError, RootLost):
            finished = True
            raise
        finally:
            if not finished:
                self._send(Cancel(request))

    def text(self, prompt: str, max_tokens: int | None = None, temperature: float = 0.0, seed: int = 0) -> str:
        """The text that follows `prompt`, whole."""
        answers = self.generate(prompt, max_tokens, temperature, seed=seed)
        return "".join(answer.text for answer in answers if isinstance(answer, Piece | Done))

    def status(self, wait_s: float = 5.0) -> Status:
        """How the cluster is. Raises RootLost where there is no answer within `wait_s`: a step may take that long."""
        request = next(self._ids)
        self._send(AskStatus(request))
        status = self._receive(request, wait_s)
        if not isinstance(status, Status):
            raise ProtocolError(f"the root answered a question for its status with {type(status).__name__}")
        return status

    def stop(self, wait_s: float = 5.0) -> None:
        """End the cluster. Raises RootLost where the root does not agree within `wait_s`."""
        request = next(self._ids)
        self._send(Stop(request))
        while not isinstance(self._receive(request, wait_s), Stopping):
            pass

    def close(self) -> None:
        """Close the connection. A request that is running is cancelled by the root."""
        if not self._socket.closed:
            self._disconnects.close()
            self._socket.close()
            self._context.term()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: Message) -> None:
        try:
            frames = encode(message)
        except OverflowError:
            raise RequestError("a number of more than 64 bits; no number of a request is as large") from None
        with contextlib.suppress(zmq.Again):
            self._socket.send_multipart(frames, zmq.NOBLOCK)

    def _receive(self, request: int, wait_s: float) -> Message:
        """The next answer to `request`; what belongs to others is dropped."""
        until = time.monotonic() + wait_s
        while True:
            frames = sockets.receive(self._socket, min(until, time.monotonic() + 0.25), spin_s=0.0)
            if frames is None:
                if self._disconnects.happened():
                    raise RootLost(f"the root at {self.endpoint} went away; `dllama-zmq logs root` may say why")
                if time.monotonic() >= until:
                    raise RootLost(f"no answer from {self.endpoint} for {wait_s:.0f} s; is a cluster running there?")
                continue
            message, _ = decode(frames, TO_CLIENT)
            if getattr(message, "id", 0) not in (0, request):
                continue
            if isinstance(message, Error):
                raise _as_error(message)
            return message


def _as_error(message: Error) -> DllamaError:
    """The error that a root reported, as the class it had there."""
    kind = getattr(errors, message.kind, ClusterError)
    if kind is errors.RemoteError or not (isinstance(kind, type) and issubclass(kind, DllamaError)):
        kind = ClusterError
    return kind(message.text)
