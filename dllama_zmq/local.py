"""A model in this process: `load(...)`, on one node, or on several nodes on the real bus over inproc sockets."""

from __future__ import annotations

import logging
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import get_args

import zmq

from dllama_zmq.bus import sockets
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.constraint.matching import Vocabulary
from dllama_zmq.constraint.reading import GrammarReader
from dllama_zmq.errors import FormatError, RemoteError, RequestError, UsageError
from dllama_zmq.formats import ModelFile, open_model, read_tokenizer
from dllama_zmq.grammar import Grammar
from dllama_zmq.host import free_memory_bytes, require_open_files
from dllama_zmq.kernels import KernelChoice, KVType
from dllama_zmq.quants import F32
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.fitting import Wish, check_fits
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.scheduler import Event, Finished, Token
from dllama_zmq.root.sequence import Sequence as Generation
from dllama_zmq.sampling import GREEDY, Sampling
from dllama_zmq.sharding import Plan, context_length
from dllama_zmq.sources import model_at, tokenizer_beside
from dllama_zmq.spec import WEIGHTS_FLOAT, ModelSpec, Sync, Weights
from dllama_zmq.stop_strings import check_stop
from dllama_zmq.tokenizer import Tokenizer
from dllama_zmq.worker import Worker, WorkerSettings

_FILES = 10  # files of a node, opened by libzmq and for the kernels' code, as counted in /proc

logger = logging.getLogger(__name__)

_END_S = 5.0
_MAX_SEQUENCES = 16


class LocalModel:
    """A model ready to run; made by `load`. Use it in a `with` block, or `close` it.

    engine: evaluates many sequences of token ids at once, for callers that want more than text and logits.
    """

    def __init__(self, root: Root, tokenizer: Tokenizer | str, shut_down: Callable[[], None]) -> None:
        """tokenizer: the tokenizer, or why there is none."""
        self._root = root
        self._tokenizer = tokenizer
        vocabulary = None if isinstance(tokenizer, str) else Vocabulary(tokenizer, root.spec.vocab_size)
        self.engine = Engine(root, _MAX_SEQUENCES, vocabulary)
        self._events: dict[Generation, deque[Event | Exception]] = {}  # of the texts that are being generated
        self._finish = weakref.finalize(self, shut_down)  # also when it is collected or the interpreter ends

    @property
    def spec(self) -> ModelSpec:
        """The model's numbers."""
        return self._root.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises RequestError if none was found."""
        if isinstance(self._tokenizer, str):
            raise RequestError(f"this model has no tokenizer ({self._tokenizer}); pass load(..., tokenizer=PATH)")
        return self._tokenizer

    @cached_property
    def _grammars(self) -> GrammarReader:
        return GrammarReader(self.tokenizer)

    def logits(self, token_ids: Sequence[int]) -> F32:
        """Logits (T, vocab) float32 after each of `token_ids` (T,), as a text of its own."""
        self._form()
        return self.engine.logits(token_ids)

    def embed(self, prompt: str | Sequence[int]) -> F32:
        """The embedding (D,) float32 of a text or of token ids: the mean of the last hidden states of its tokens.

        It is a vector of length 1.
        """
        sequence = self.engine.embed(self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
        for _ in self._events_of(sequence):
            pass
        assert sequence.pooling is not None
        return sequence.pooling.vector()

    def generate(
        self,
        prompt: str,
        max_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
        grammar: Grammar | None = None,
    ) -> Iterator[str]:
        """Yield the text that follows `prompt` in pieces; `"".join(...)` gives the whole. Greedy by default.

        stop: the text ends before the first of these strings. grammar: the text is a sentence of it if it ends by
        itself.
        """
        if sampling.logprobs is not None:
            raise RequestError("logprobs: a loaded model yields only text; use a Client of a running cluster")
        check_stop(stop)
        tokenizer = self.tokenizer
        prompt_ids, decoder = tokenizer.encode(prompt), tokenizer.decoder(continues=True, stop=stop)
        read = "" if grammar is None else self._grammars.read(grammar)
        sequence = self.engine.add(prompt_ids, sampling, max_tokens, tokenizer.eos_ids, tokenizer.vocab_size, read)
        with closing(self._events_of(sequence)) as events:
            for event in events:
                text = decoder.push(event.token) if isinstance(event, Token) else ""
                if isinstance(event, Finished):
                    text = decoder.flush()
                if text:
                    yield text
                if decoder.stopped:
                    return

    def _events_of(self, sequence: Generation) -> Generator[Event, None, None]:
        """The events of a sequence up to its end; each step is one of all open sequences. Closing it cancels it."""
        events = self._events[sequence] = deque()
        try:
            event: Event | Exception | None = None
            while not isinstance(event, Finished):
                while not events:
                    self._form()
                    outcome = self.engine.step()
                    for of_any in outcome.events:
                        self._events[of_any.sequence].append(of_any)
                    for failed, error in outcome.failed:
                        self._events[failed].append(error)
                event = events.popleft()
                if isinstance(event, Exception):
                    raise event
                yield event
        finally:
            self.engine.cancel(sequence)
            del self._events[sequence]

    def close(self) -> None:
        """Stop the nodes and free everything. May be called twice."""
        self._finish()

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _form(self) -> None:
        self._root.wait_ready(time.monotonic() + self._root.settings.limits.join_s)


def load(
    model: str | Path,
    tokenizer: str | Path | None = None,
    nodes: int = 1,
    sync: Sync = "f32",
    kernels: KernelChoice = "auto",
    kv_cache: KVType = "f16",
    threads: int = 1,
    weights: Weights | None = None,
    max_seq_len: int | None = None,
    force: bool = False,
) -> LocalModel:
    """Open `model` (a file or folder, "demo", or "hf:REPO[:FILE]") and run it in this process over `nodes` nodes.

    tokenizer: a file or folder; None: the model's own, if it has one. threads: compute threads of each node. With nodes
    > 1 the real bus runs over inproc sockets, with a thread for each worker. weights: the type in which a folder's
    weights are read, quantized if needed; None: as they are stored. max_seq_len: positions to keep room for; None:
    4096, or the model's own context if that is less. force: continue even if memory seems too small.

    Raises FormatError, PlanError, UsageError; RemoteError or WorkerLost if a node does not become ready.
    """
    _check_words("sync", sync, Sync)
    _check_words("kernels", kernels, KernelChoice)
    _check_words("kv_cache", kv_cache, KVType)
    _check_number("nodes", nodes, 1024)
    _check_number("threads", threads, 1024)
    if weights is not None:
        _check_words("weights", weights, Weights)
    if max_seq_len is not None:
        _check_number("max_seq_len", max_seq_len, 1 << 24)
    path = model_at(model)
    tokenizer_path = Path(tokenizer) if tokenizer is not None else tokenizer_beside(path)
    with ExitStack() as cleanup:
        file = cleanup.enter_context(open_model(path, None if weights is None else WEIGHTS_FLOAT[weights]))
        plan = Plan.make(file.spec, nodes, str(path))  # refused before anything is started
        if not force:
            wish = Wish(plan, range(nodes), context_length(file.spec, max_seq_len), kv_cache, path.name)
            check_fits(wish, free_memory_bytes(), "force=True")
        for note in file.notes:
            logger.warning("%s", note)
        if max_seq_len is not None and max_seq_len > file.spec.seq_len:
            logger.warning("max_seq_len is %d; %s has %d positions at most", max_seq_len, path, file.spec.seq_len)
        words: Tokenizer | str
        try:
            words = read_tokenizer(tokenizer_path)
            words.check_fits(file.spec, path)
            if warning := words.mismatch_warning(file.spec, path):
                logger.warning("%s", warning)
        except FormatError as error:
            if tokenizer is not None:
                raise
            words = str(error)
        names = [f"worker{i}" for i in range(1, nodes)]
        settings = RootSettings(
            names=names,
            reserved=names,
            sync=sync,
            kernels=kernels,
            kv_type=kv_cache,
            threads=threads,
            oversubscribed=nodes > 1,  # nodes share the interpreter: one that waits must block, not spin
            max_seq_len=max_seq_len,
            check_memory=False,  # checked above, for all nodes together
        )
        root = _start(file, settings, cleanup)
        return LocalModel(root, words, cleanup.pop_all().close)


def _check_words(name: str, value: object, choices: object) -> None:
    if value not in get_args(choices):
        raise UsageError(f"{name} is {value!r}; expected one of {', '.join(get_args(choices))}")


def _check_number(name: str, value: object, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise UsageError(f"{name} is {value!r}; expected a whole number, 1 to {most}")


class _Node:
    """A worker in a thread. error: the exception that ended it."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], settings: WorkerSettings) -> None:
        self.worker = Worker(context, settings)
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, name=settings.name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.worker.run()
        except Exception as error:
            self.error = error


def _start(file: ModelFile, settings: RootSettings, cleanup: ExitStack) -> Root:
    """Start a root and its workers in threads, and wait until all are ready; `cleanup` ends them."""
    require_open_files((_FILES + settings.threads) * (1 + len(settings.names)))
    context = sockets.Context()
    nodes: list[_Node] = []
    cleanup.callback(_end, context, nodes)
    bus = f"inproc://{secrets.token_hex(8)}"
    root = Root(context, file, settings, Endpoints([f"{bus}-steps"], [f"{bus}-replies"]))
    cleanup.callback(root.close, "closed")  # runs first: the workers leave at its Bye
    for name in settings.names:
        worker = WorkerSettings(
            root=f"{bus}-replies",
            name=name,
            threads=settings.threads,
            oversubscribed=settings.oversubscribed,
            watch=False,
            model=file.path,
        )
        nodes.append(_Node(context, worker))

    def check() -> None:
        for node in nodes:
            if node.error is not None:
                raise RemoteError(node.thread.name, str(node.error)) from node.error

    root.wait_ready(time.monotonic() + settings.limits.join_s + settings.limits.load_s, check)
    return root


def _end(context: zmq.Context[zmq.Socket[bytes]], nodes: Sequence[_Node]) -> None:
    """End the workers, and then the context if they have ended: it would wait for their sockets forever."""
    for node in nodes:
        node.worker.stop()
    until = time.monotonic() + _END_S
    for node in nodes:
        node.thread.join(max(0.0, until - time.monotonic()))
    if late := [node.thread.name for node in nodes if node.thread.is_alive()]:
        logger.warning("%s did not end within %.0f s, and keeps its memory until it does", ", ".join(late), _END_S)
    else:
        context.destroy()  # `term` would wait forever for the sockets of a root that is half made
