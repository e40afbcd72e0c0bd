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


def __getattr__(name: str) -> object:
    # imported when first used, because `dllama-zmq --version` and every worker would pay for what they do not need
    if name == "load":
        from dllama_zmq.local import load

        return load
    if name == "Chat":
        from dllama_zmq.bus.prompts import Chat

        return Chat
    if name == "Client":
        from dllama_zmq.client import Client

        return Client
    if name == "connect":
        from dllama_zmq.launch.registry import connect

        return connect
    if name == "Grammar":
        from dllama_zmq.grammar import Grammar

        return Grammar
    if name == "Sampling":
        from dllama_zmq.sampling import Sampling

        return Sampling
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)  # names that are imported on first use are listed too
