"""Kinds of flags: numbers, choices, models. Their errors say what is expected; the help omits ranges."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, get_args

import typer
from typer import Argument, Option

from dllama_zmq.cli import completion

KernelChoice = Literal["auto", "simd", "numpy"]
MAX = 1 << 62  # the largest number in a request


def whole(least: int, most: int = MAX, words: str = "") -> Callable[[str], int]:
    """A parser of whole numbers from `least` to `most`. words: what is expected, for errors."""
    expected = words or f"a whole number, {least} or more"

    def parse(text: str) -> int:
        try:
            value = int(str(text))
        except ValueError:
            raise typer.BadParameter(f"expected {expected}, got {text!r}") from None
        if not least <= value <= most:
            limit = f"at most {most}" if value > most else expected
            raise typer.BadParameter(f"expected {limit}, got {text!r}")
        return value

    return parse


def real(text: str) -> float:
    """Parse a number."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"expected a number, got {text!r}") from None


def number(*names: str, help: str, least: int = 1, most: int = MAX, words: str = "", **more: Any) -> Any:
    """A flag that takes a whole number."""
    return Option(*names, metavar="N", parser=whole(least, most, words), help=help, **more)


def size(*names: str, help: str, **more: Any) -> Any:
    """A flag that takes an amount of bytes."""

    def parse(text: str) -> int:
        found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) ?([MGT]B)|0", str(text))
        if found is None:
            raise typer.BadParameter(f"expected a size such as 512MB or 2GB, or 0, got {text!r}")
        return int(float(found[1] or 0) * {"MB": 10**6, "GB": 10**9, "TB": 10**12}[found[2] or "MB"])

    return Option(*names, metavar="SIZE", parser=parse, help=help, **more)


def choice(*names: str, of: object, help: str, **more: Any) -> Any:
    """A flag that takes one of the words of the Literal `of`, in any case."""
    metavar, parse, complete = _one_of(of)
    return Option(*names, metavar=metavar, parser=parse, help=help, autocompletion=complete, **more)


def word(of: object, help: str) -> Any:
    """An argument that is one of the words of the Literal `of`, in any case."""
    metavar, parse, complete = _one_of(of)
    return Argument(metavar=metavar, parser=parse, help=help, autocompletion=complete)


def _one_of(of: object) -> tuple[str, Callable[[str], str], Callable[[str], list[str]]]:
    """How the words of a Literal are shown, parsed and completed."""
    choices: tuple[str, ...] = get_args(of)

    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise typer.BadParameter(f"expected {', '.join(choices[:-1])} or {choices[-1]}, got {text!r}")
        return text.lower()

    return "|".join(choices), parse, lambda incomplete: [one for one in choices if one.startswith(incomplete)]


def model_flag(*names: str, help: str, **more: Any) -> Any:
    """A flag that takes a model."""
    return Option(*names, metavar="MODEL", help=help, autocompletion=completion.models, **more)
