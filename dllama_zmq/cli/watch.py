"""`--watch`: repeats a display, in place on a terminal, else one below the other."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from dllama_zmq.errors import UsageError

if TYPE_CHECKING:  # imported only for tables, not for JSON
    from rich.console import Console, RenderableType

T = TypeVar("T")

_MAX_S = 86400
_UNCUT = 4000  # columns if stdout is no terminal, so that lines are not wrapped


def check_watch(watch_s: float | None) -> None:
    """Raise UsageError if `watch_s` is no valid interval."""
    if watch_s is not None and not (math.isfinite(watch_s) and 0 < watch_s <= _MAX_S):
        raise UsageError(f"--watch {watch_s:g}: expected seconds, more than 0 and at most {_MAX_S}")


def watched(
    look: Callable[[], T],
    show: Callable[[T], RenderableType],
    watch_s: float | None,
    console: Console | None = None,
) -> None:
    """Show the result of `look` once, or every `watch_s` seconds until Ctrl-C. Text of `show` is printed as it is."""
    if watch_s is None:
        _print(show(look()), console)
        return
    console = _uncut(console)
    if not console.is_terminal:
        while True:
            _print(show(look()), console)
            time.sleep(watch_s)
    from rich.live import Live

    with Live(console=console, auto_refresh=False) as live:
        while True:
            shown = show(look())
            if isinstance(shown, str):
                _print(shown, console)
            else:
                live.update(shown, refresh=True)
            time.sleep(watch_s)


def _uncut(console: Console | None) -> Console:
    """`console`, by default stdout's, with long lines if it is no terminal."""
    if console is None:
        from rich.console import Console

        console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(console.width, _UNCUT)
    return console


def _print(shown: RenderableType, console: Console | None) -> None:
    if isinstance(shown, str):
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()
    else:
        _uncut(console).print(shown)
