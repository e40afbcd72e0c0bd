"""Run one large language model over 2^n ordinary computers: tensor parallelism on a ZeroMQ bus.

import dllama_zmq
with dllama_zmq.load("demo", nodes=4) as model:
    print("".join(model.generate("Once upon a time", max_tokens=50)))

`load` runs a model in this process, one text at a time: `generate` yields text, and `logits` gives logits. `connect`
and `Client` use a cluster with processes of its own: `generate` yields all messages of the root (Queued, Started,
Prefill, TokenText, Done), and `text` returns the whole text. Both are greedy by default. The command line samples, as
`model.generate("Once upon a time", 50, Sampling(temperature=0.8, top_p=0.9))` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Chat", "Client", "Grammar", "Sampling", "__version__", "connect", "load"]

if TYPE_CHECKING:
    from dllama_zmq.bus.prompts import Chat
    from dllama_zmq.client import Client
    from dllama_zmq.grammar import Grammar
    from dllama_zmq.launch.registry import connect
    from dllama_zmq.local import load
    from dllama_zmq.sampling import Sampling


_MODULES = {
    "Chat": "bus.prompts",
    "Client": "client",
    "Grammar": "grammar",
    "Sampling": "sampling",
    "connect": "launch.registry",
    "load": "local",
}
"""Imported when first used, because `dllama-zmq --version` and every worker would pay for what they do not need."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)  # names that are imported on first use are listed too
