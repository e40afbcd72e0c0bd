"""Roots that answer clients, in threads of the test's process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from integration.nodes import Context, inproc
from served import a_front, served

from dllama_zmq.bus.links import Endpoints
from dllama_zmq.formats import ModelFile, read_tokenizer
from dllama_zmq.node_config import Limits
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.serving import Serving
from dllama_zmq.tokenizer import Tokenizer

SOON_S = 20.0


@contextlib.contextmanager
def a_service(
    context: Context, model: ModelFile, workers: list[str], places: Endpoints, **limits: float
) -> Iterator[tuple[Serving, str]]:
    """The engine's side of a root with places for these workers, and the address of clients, until the block ends."""
    with (
        a_root(context, model, workers, places, **limits) as root,
        a_front(context, root, tokenizer_of(model)) as (serving, address, _),
    ):
        serving.open([address])
        yield serving, address


@contextlib.contextmanager
def serving(
    context: Context, model: ModelFile, workers: list[str], busy_s: float = 0.0, at: str = "", **limits: float
) -> Iterator[str]:
    """The address of a root with places for these workers, until the block ends. It answers nobody for `busy_s`.

    at: that address.
    """
    with (
        a_root(context, model, workers, inproc(), **limits) as root,
        served(context, root, tokenizer_of(model), at, busy_s=busy_s) as address,
    ):
        yield address


@contextlib.contextmanager
def a_root(
    context: Context, model: ModelFile, workers: list[str], places: Endpoints, **limits: float
) -> Iterator[Root]:
    """A root with places for these workers, until the block ends."""
    settings = RootSettings(names=workers, kernels="numpy", spin_s=0.0, limits=Limits(**limits))
    root = Root(context, model, settings, places)
    try:
        yield root
    finally:
        root.close("the test is over")


def tokenizer_of(model: ModelFile) -> Tokenizer:
    """The one beside the model's file."""
    return read_tokenizer(Path(model.path).with_suffix(".t"))
