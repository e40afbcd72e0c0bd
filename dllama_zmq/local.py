"""A model in this process: `load(...)`, over one node or over several on the real bus, joined by inproc sockets."""

from __future__ import annotations

import logging
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import zmq

from dllama_zmq.bus.links import Endpoints
from dllama_zmq.cluster import model_at, tokenizer_beside
from dllama_zmq.errors import FormatError, RequestError, UsageError
from dllama_zmq.formats import ModelFile, open_model, read_tokenizer
from dllama_zmq.kernels import KernelChoice, KVType
from dllama_zmq.models import Run
from dllama_zmq.quants import F32
from dllama_zmq.root.generation import PREFILL_TOKENS, Finished, GenerationRequest, Token, generate
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.sampler import Sampling
from dllama_zmq.sharding import Plan
from dllama_zmq.spec import WEIGHTS_FLOAT, ModelSpec, Sync, Weights
from dllama_zmq.tokenizer import Tokenizer
from dllama_zmq.worker import Worker, WorkerSettings

logger = logging.getLogger(__name__)


class LocalModel:
    """A model ready to run; made by `load`. Use it in a `with` block, or `close` it."""

    def __init__(self, root: Root, tokenizer: Tokenizer | str, shut_down: Callable[[], None]) -> None:
        """tokenizer: or why there is none."""
        self._root = root
        self._tokenizer = tokenizer
        self._turn = 0
        self._finish = weakref.finalize(self, shut_down)  # also when it is collected, or the interpreter ends

    @property
    def spec(self) -> ModelSpec:
        """The model's numbers."""
        return self._root.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises RequestError where none was found."""
        if isinstance(self._tokenizer, str):
            raise RequestError(f"this model has no tokenizer ({self._tokenizer}); pass load(..., tokenizer=PATH)")
        return self._tokenizer

    def logits(self, token_ids: Sequence[int]) -> F32:
        """Logits (T, vocab) float32 after each of `token_ids` (T,), as a text of its own."""
        chunks = []
        self._form()
        for start in range(0, len(token_ids), PREFILL_TOKENS):
            chunk = list(token_ids[start : start + PREFILL_TOKENS])
            chunks.append(self._root.logits([Run(0, start, len(chunk))], chunk))
        if not chunks:
            raise RequestError("no tokens: expected at least one")
        return np.concatenate(chunks)

    def generate(
        self,
        prompt: str,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The text that follows `prompt`, piece by piece; `"".join(...)` for the whole. temperature 0 is greedy."""
        sampling = Sampling(temperature, top_p, top_k, seed)
        request = GenerationRequest(self.tokenizer.encode(prompt), max_tokens, sampling)
        self._form()
        turn = self._turn
        for event in generate(self._root, self.tokenizer, request):
            if isinstance(event, Token | Finished) and event.text:
                yield event.text
                if turn != self._turn:
                    raise RequestError("another text was begun meanwhile, and one model holds one: finish them in turn")

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
        self._turn += 1
        self._root.form(time.monotonic() + self._root.settings.limits.join_s)


def load(
    model: str | Path,
    tokenizer: str | Path | None = None,
    nodes: int = 1,
    sync: Sync = "f32",
    kernels: KernelChoice = "auto",
    kv_cache: KVType = "f16",
    threads: int = 1,
    weights: Weights | None = None,
) -> LocalModel:
    """Open `model` (a file or folder, "demo", or "hf:REPO[:FILE]") and run it in this process over `nodes` nodes.

    tokenizer: a file or folder; where None, the one that the model brings with it, if there is one. threads: compute
    threads of each node. With nodes > 1 the real bus runs over inproc sockets, a thread for each worker.
    weights: the type in which a folder's weights are read, quantized on the way; None: as they are stored.
    Raises FormatError, PlanError, UsageError.
    """
    if weights is not None and weights not in WEIGHTS_FLOAT:
        raise UsageError(f"weights is {weights!r}; expected one of {', '.join(WEIGHTS_FLOAT)}")
    path = model_at(model)
    tokenizer_path = Path(tokenizer) if tokenizer is not None else tokenizer_beside(path)
    with ExitStack() as cleanup:
        file = cleanup.enter_context(open_model(path, None if weights is None else WEIGHTS_FLOAT[weights]))
        Plan.make(file.spec, nodes, str(path))  # refused before anything is started
        words: Tokenizer | str
        try:
            words = read_tokenizer(tokenizer_path)
            words.check_fits(file.spec, path)
            if doubt := words.doubt(file.spec, path):
                logger.warning("%s", doubt)
        except FormatError as error:
            if tokenizer is not None:
                raise
            words = str(error)
        names = [f"worker{i}" for i in range(1, nodes)]
        # In one process the nodes share the interpreter: a waiting one must block, not spin.
        settings = RootSettings(
            names=names, sync=sync, kernels=kernels, kv_type=kv_cache, threads=threads, crowded=nodes > 1, spin_s=0.0
        )
        root = _start(file, settings, cleanup)
        root.form(time.monotonic() + root.settings.limits.join_s + root.settings.limits.load_s)
        return LocalModel(root, words, cleanup.pop_all().close)


def _start(file: ModelFile, settings: RootSettings, cleanup: ExitStack) -> Root:
    """A root and its workers in threads; `cleanup` gets what ends them."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    cleanup.callback(context.term)
    bus = f"inproc://{secrets.token_hex(8)}"
    root = Root(context, file, settings, Endpoints([f"{bus}-steps"], [f"{bus}-replies"]))
    stops: list[Callable[[], None]] = []
    for name in settings.names:
        worker_settings = WorkerSettings(
            root=f"{bus}-replies",
            name=name,
            threads=settings.threads,
            crowded=settings.crowded,
            spin_s=0.0,
            watch=False,
        )
        worker = Worker(context, worker_settings)
        thread = threading.Thread(target=worker.run, name=name, daemon=True)
        thread.start()
        cleanup.callback(thread.join, 5.0)
        stops.append(worker.stop)
    for stop in stops:  # run before any join: for those that the root does not know any more
        cleanup.callback(stop)
    cleanup.callback(root.close, "closed")  # runs first: the workers leave when they are told
    return root
