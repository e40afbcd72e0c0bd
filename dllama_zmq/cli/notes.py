"""Lines on stderr."""

from __future__ import annotations

import shutil
import sys
import textwrap

from dllama_zmq.cli.inert import inert


def note(text: str) -> None:
    """Print a line on stderr; a terminal wraps it between words."""
    if sys.stderr.isatty():
        text = wrapped(text, shutil.get_terminal_size().columns)
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def wrapped(text: str, columns: int) -> str:
    """`text` for a terminal, in lines of at most `columns` characters. Longer words, such as paths, are not broken.

    Control characters are shown and not obeyed: text may come from a model's file or from another computer.
    """
    lines = (
        textwrap.wrap(line, columns, break_long_words=False, break_on_hyphens=False) for line in inert(text).split("\n")
    )
    return "\n".join("\n".join(line) for line in lines)
