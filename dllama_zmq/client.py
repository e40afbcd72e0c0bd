"""A client of a running root: generate, status, stop. It has one socket, so it is for one thread."""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from types import TracebackType
from typing import TypeVar

import zmq
from msgspec import Struct

from dllama_zmq.bus import sockets
from dllama_zmq.bus.addresses import endpoint_of, resolve, why_no_answer
from dllama_zmq.bus.client_messages import (
    MAX_ANSWERS,
    TO_CLIENT,
    Cancel,
    Done,
    Error,
    Generate,
    Prefill,
    Queued,
    Started,
    Status,
    StatusRequest,
    Stop,
    Stopping,
    TokenText,
)
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.known_root import peer_for
from dllama_zmq.bus.messages import Frame, Message
from dllama_zmq.bus.prompts import Chat, prompt_on_wire, text_on_wire, tokens_on_wire
from dllama_zmq.bus.security import Peer
from dllama_zmq.bus.text_messages import (
    Detokenize,
    Detokenized,
    Embed,
    Embedding,
    Links,
    LinksRequest,
    Model,
    ModelRequest,
    Tokenize,
    Tokens,
)
from dllama_zmq.errors import ClusterError, DllamaError, ProtocolError, RequestError, RootLost, as_error
from dllama_zmq.grammar import Grammar
from dllama_zmq.host import require_open_files
from dllama_zmq.node_config import Ports, Security
from dllama_zmq.sampling import GREEDY, Sampling
from dllama_zmq.stop_strings import check_stop
from dllama_zmq.trust import Role

SAY_EVERY_S = 2.0
CONNECT_S = 5.0
END_S = 30.0
"""Seconds for a root to stop after it agreed: limits.stop_s of its cluster, which a client does not know."""
_PORT = "its port for clients (5572 unless root.ports says another)"
TEXT_S = 30.0
"""Seconds for an answer about text: other clients' texts may be before it, and a chat template may take 2 s."""
LINKS_S = 120.0
"""The longest wait for Links: there may be many workers, with a long step between two measurements."""
M = TypeVar("M", bound=Message)
_FILES = 10  # files opened by libzmq, as counted in /proc


class Computing(Struct, frozen=True):
    """Made by the client itself: the connection stands, but no message has come for `silent_s` seconds."""

    silent_s: float


Answer = Queued | Started | Prefill | TokenText | Done | Computing

SILENCE_S = 180.0
"""Seconds that a root may be silent before it has said how long that may be (Queued, Started: silence_s)."""


class Client:
    """A connection to the root at `endpoint`: 192.168.1.10, pi1:5572, tcp://127.0.0.1:5572 or ipc://...

    The default port is 5572, that of root.ports.clients. security: none for a root on another computer whose bus is
    open, as its cluster's file says; else this computer must know that root (`dllama-zmq join`), or the keys must be
    given. Raises UsageError for an invalid address, BusError for an unknown host name, TrustError for an unknown root.
    """

    def __init__(self, endpoint: str = "tcp://127.0.0.1:5572", security: Peer | Security | None = "curve") -> None:
        self.endpoint = endpoint = endpoint_of(endpoint, Ports().clients)
        self._security = peer_for(endpoint, security, Role.client) if isinstance(security, str) else security
        require_open_files(_FILES)
        self._context = sockets.Context()
        # Also when it is collected or the interpreter ends: else the context would wait for its sockets forever.
        self._finish = weakref.finalize(self, self._context.destroy)
        self._answered = False
        self._ids = itertools.count(1)
        self._open: dict[int, deque[Message]] = {}
        try:
            self._connection = sockets.Connection(self._context, endpoint, self._security)
        except BaseException:
            self._finish()
            raise

    def generate(
        self,
        prompt: str | Sequence[int] | Chat,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        ignore_eos: bool = False,
        stop: Sequence[str] = (),
        grammar: Grammar | None = None,
        n: int = 1,
        specials: bool = False,
    ) -> Generator[Answer, None, None]:
        """Yield every message of the root about this request; the last one is Done. Close the iterator to cancel.

        prompt: a text, token ids, or a Chat. stop: the text ends before the first of these strings (16 of up to 256
        characters). grammar: what the answer must match. n: number of answers (up to 16); each has a Done, its index,
        and the seed plus its index. specials: the text shows special tokens by name.

        Raises the error that ended the request on the root; RootLost if the root goes away or is silent.
        """
        on_wire = prompt_on_wire(prompt)
        check_stop(stop)
        if not 1 <= n <= MAX_ANSWERS:
            raise RequestError(f"n is {n}; expected 1 to {MAX_ANSWERS} answers")
        if grammar is not None:
            grammar.check()
        request = Generate(next(self._ids), on_wire, max_tokens, sampling, ignore_eos, list(stop), grammar, n, specials)
        with contextlib.closing(self._follow(request, n)) as answers:
            for answer in answers:
                if isinstance(answer, Answer):
                    yield answer

    def embed(self, prompt: str | Sequence[int] | Chat) -> Embedding:
        """The embedding of a prompt: the mean of the last hidden states of its tokens, as a vector of length 1.

        Raises as `generate` does.
        """
        for answer in self._follow(Embed(next(self._ids), prompt_on_wire(prompt)), 1):
            if isinstance(answer, Embedding):
                return answer
        raise ProtocolError("the root has ended an embedding without giving it")

    def _follow(self, request: Generate | Embed, n_ends: int) -> Generator[Message | Computing, None, None]:
        """Send a request and yield all messages about it, up to its last end. Closing the generator cancels it."""
        self._send(request)
        self._open[request.id] = deque()
        try:
            last_word, silence_s = time.monotonic(), SILENCE_S
            while n_ends:
                answer = self._poll(request.id, SAY_EVERY_S)
                silent_s = time.monotonic() - last_word
                if answer is None:
                    if silent_s > silence_s:
                        raise self._silent(silent_s)
                    yield Computing(silent_s)
                    continue
                last_word = time.monotonic()
                if isinstance(answer, Queued | Started):
                    silence_s = max(SILENCE_S, answer.silence_s)
                if isinstance(answer, Done | Embedding):
                    n_ends -= 1
                yield answer
        except DllamaError:
            n_ends = 0
            raise
        finally:
            del self._open[request.id]
            if n_ends:
                with contextlib.suppress(RootLost, ClusterError):
                    self._send(Cancel(request.id), wait_s=0.0)

    def text(
        self, prompt: str | Sequence[int] | Chat, max_tokens: int | None = None, sampling: Sampling = GREEDY
    ) -> str:
        """The whole text that follows `prompt`."""
        answers = self.generate(prompt, max_tokens, sampling)
        return "".join(answer.text for answer in answers if isinstance(answer, TokenText | Done))

    def tokenize(
        self, prompt: str | Chat, bos: bool | None = None, specials: bool = False, wait_s: float = TEXT_S
    ) -> Tokens:
        """The tokens of a text or a chat; for a chat also the text that its template makes of it.

        bos: whether they begin with the BOS; None: as in a prompt. specials: names of special tokens in the text become
        these tokens. Both are for texts only. Raises RequestError if the prompt cannot be tokenized, RootLost if no
        answer comes within `wait_s`.
        """
        return self._asked(Tokenize(next(self._ids), text_on_wire(prompt), bos, specials), Tokens, wait_s)

    def detokenize(self, tokens: Sequence[int], wait_s: float = TEXT_S) -> str:
        """The text of tokens; special tokens print nothing. Raises as `tokenize` does."""
        return self._asked(Detokenize(next(self._ids), tokens_on_wire(tokens)), Detokenized, wait_s).text

    def model(self, wait_s: float = TEXT_S) -> Model:
        """The description of the model. Raises RootLost if no answer comes within `wait_s`."""
        return self._asked(ModelRequest(next(self._ids)), Model, wait_s)

    def status(self, wait_s: float = 5.0) -> Status:
        """The cluster's status. Raises RootLost if no answer comes within `wait_s`: a step may take that long."""
        return self._asked(StatusRequest(next(self._ids)), Status, wait_s)

    def links(self, wait_s: float = LINKS_S) -> Links:
        """Round trip, bytes/s both ways and clock of each worker, measured now: about 0.5 s a worker.

        Running requests continue between two measurements. Raises RootLost if no answer comes within `wait_s`.
        """
        return self._asked(LinksRequest(next(self._ids)), Links, wait_s)

    def stop(self, wait_s: float = 5.0, end_s: float = END_S) -> None:
        """End the cluster; returns when its root has closed this connection, after its workers have left.

        Raises RootLost if the root does not agree within `wait_s`; ClusterError if it is still there `end_s` after it
        agreed.
        """
        request = next(self._ids)
        self._send(Stop(request), min(wait_s, CONNECT_S))
        while not isinstance(self._receive(request, wait_s), Stopping):
            pass
        if not self._connection.lost(end_s):
            raise ClusterError(
                f"the root at {self.endpoint} has agreed to stop, and is still there after {end_s:.0f} s; "
                "`dllama-zmq ps` on its computer names its process"
            )

    def close(self) -> None:
        """Close the connection. The root cancels a running request. May be called twice."""
        self._finish()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, message: Message, wait_s: float = CONNECT_S) -> None:
        try:
            frames = encode(message)
        except OverflowError:
            raise RequestError("a number has more than 64 bits; numbers of a request have at most 64") from None
        self._require_open()
        if self._connection.lost():
            self._connect_again()
        if not self._connection.up(wait_s):
            raise self._nobody()
        self._connection.socket.send_multipart(frames, zmq.NOBLOCK)

    def _asked(
        self,
        question: StatusRequest | LinksRequest | Tokenize | Detokenize | ModelRequest,
        kind: type[M],
        wait_s: float,
    ) -> M:
        """The answer to a question; it must be of type `kind`."""
        self._send(question, min(wait_s, CONNECT_S))
        answer = self._receive(question.id, wait_s)
        if not isinstance(answer, kind):
            asked = type(question).__name__
            raise ProtocolError(f"the root answered {asked} with {type(answer).__name__}; expected {kind.__name__}")
        return answer

    def _receive(self, request: int, wait_s: float) -> Message:
        """The next answer to `request`. Raises RootLost if none comes within `wait_s`."""
        message = self._poll(request, wait_s)
        if message is None:
            raise self._silent(wait_s)
        return message

    def _poll(self, request: int, wait_s: float) -> Message | None:
        """The next answer to `request`, or None after `wait_s`. Answers to other open requests are kept for them."""
        self._require_open()
        until = time.monotonic() + wait_s
        kept = self._open.get(request, deque())
        while not kept:
            frames = sockets.receive(self._connection.socket, min(until, time.monotonic() + 0.25), spin_s=0.0)
            if frames is None:
                lost = self._connection.lost()
                # the root's last messages may have arrived meanwhile
                frames = sockets.receive_now(self._connection.socket)
                if frames is None and lost:
                    error = self._went_away()
                    self._connect_again()
                    raise error
            if frames is not None:
                self._take(frames, request, kept)
            elif time.monotonic() >= until:
                return None
        message = kept.popleft()
        if isinstance(message, Error):
            raise as_error(message.kind, message.text)
        return message

    def _take(self, frames: list[Frame], request: int, kept: deque[Message]) -> None:
        """Keep a message for the request that it answers. kept: messages for `request`, or for no request."""
        message, _ = decode(frames, TO_CLIENT)
        self._answered = True
        message_id = getattr(message, "id", 0)
        if message_id in (0, request):
            kept.append(message)
        elif message_id in self._open:
            self._open[message_id].append(message)

    def _connect_again(self) -> None:
        """Replace a connection that has ended, and drop what was not sent; open requests end with RootLost."""
        while (frames := sockets.receive_now(self._connection.socket)) is not None:
            self._take(frames, 0, deque())
        if self._open:
            end = Error(0, RootLost.__name__, str(self._went_away()))
            for kept in self._open.values():
                kept.append(end)
        self._connection.close()
        self._connection = sockets.Connection(self._context, self.endpoint, self._security)

    def _went_away(self) -> RootLost:
        is_local = self.endpoint.startswith("ipc://")
        if not self._answered and not is_local:
            return self._nobody()
        logs = "; `dllama-zmq logs root` may say why" if is_local else ""
        return RootLost(f"the root at {self.endpoint} went away{logs}")

    def _require_open(self) -> None:
        if self._connection.socket.closed:
            raise ClusterError("this client has been closed; make another one")

    def _nobody(self) -> RootLost:
        if refusal := self._connection.monitor.refusal:
            return RootLost(refusal)
        addresses = resolve(self.endpoint)
        tried = f" (tried {' and '.join(addresses)})" if len(addresses) > 1 else ""
        return RootLost(f"nobody answers at {self.endpoint}{tried}; {why_no_answer(self.endpoint, _PORT)}")

    def _silent(self, wait_s: float) -> RootLost:
        where = "no cluster is running there, or it is in a long step"
        return RootLost(f"no answer from {self.endpoint} for {wait_s:.0f} s: {where}")
