"""What every command has beyond typer's: flags whose value may be left out."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand

WATCH_S = 2.0

_LEFT_OUT = {"--watch": (f"{WATCH_S:g}", re.compile(r"-?\.?\d.*"))}
"""By flag: the value that it has alone, and what the next word looks like where that is its value."""


class Command(TyperCommand):
    """A command whose `--watch` may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """click's, with the values that were left out. ctx: the Context of whichever click typer brings."""
        own = {name for parameter in self.params for name in parameter.opts}
        full = []
        for word, following in zip(args, [*args[1:], ""], strict=True):
            alone = _LEFT_OUT.get(word) if word in own else None
            full.append(f"{word}={alone[0]}" if alone and not alone[1].fullmatch(following) else word)
        return super().parse_args(ctx, full)
