"""How many threads each node of this host gets: its cores, shared among its nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

Threads = int | Literal["auto"]


def shared(wanted: Sequence[Threads], cores: int) -> tuple[list[int], bool]:
    """Threads of a host's nodes: as `wanted`, an equal share of `cores` for "auto"; whether cores are too few."""
    share = max(1, cores // max(1, len(wanted)))
    threads = [share if n == "auto" else n for n in wanted]
    return threads, sum(threads) > cores
