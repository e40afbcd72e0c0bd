"""Flags for a published shape: its name, and numbers that replace its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from msgspec import Struct
from msgspec.structs import asdict
from typer import Option

from dllama_zmq.cli import completion
from dllama_zmq.cli.flag_kinds import number
from dllama_zmq.hub import HUB_PREFIX
from dllama_zmq.shapes import SHAPES
from dllama_zmq.sources import DEMO


def shape_flag(help: str) -> Any:
    """The flag for a published shape's name."""
    return Option("--shape", metavar="NAME", help=help, autocompletion=completion.shapes)


def _number(name: str) -> Any:
    return number(f"--{name}", least=0, most=1 << 24, help="")


class ShapeNumbers(Struct, frozen=True, kw_only=True):
    """Numbers that replace the shape's own."""

    panel = "Instead of the shape's own numbers"
    layers: Annotated[int | None, _number("layers")] = None
    dim: Annotated[int | None, _number("dim")] = None
    hidden: Annotated[int | None, _number("hidden")] = None
    heads: Annotated[int | None, _number("heads")] = None
    kv_heads: Annotated[int | None, _number("kv-heads")] = None
    head_dim: Annotated[int | None, _number("head-dim")] = None
    vocab: Annotated[int | None, _number("vocab")] = None
    seq_len: Annotated[int | None, _number("seq-len")] = None

    def given(self) -> dict[str, int]:
        """The numbers that are given, by their names in shapes.OVERRIDES."""
        values = {name.replace("_", "-"): value for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if value is not None}


def is_shape(model: str) -> bool:
    """Whether a word in the place of a model means a published shape: it is one, or it is a word and no path."""
    is_word = not model.startswith(HUB_PREFIX) and "/" not in model and Path(model).suffix not in (".m", ".gguf")
    return model.lower() in SHAPES or (is_word and model != DEMO and not Path(model).exists())
