"""How many threads each node of this host gets: its cores, shared among its nodes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Threads = int | Literal["auto"]

_CPUS = Path("/sys/devices/system/cpu")


def physical_cores() -> int:
    """Cores that this process may use; two hardware threads of one core count once, for they share its arithmetic."""
    cpus = os.sched_getaffinity(0)
    return max(1, len({_siblings(cpu) for cpu in cpus}))


def shared(wanted: Sequence[Threads], cores: int) -> tuple[list[int], bool]:
    """Threads of a host's nodes: as `wanted`, an equal share of `cores` for "auto"; whether cores are too few."""
    share = max(1, cores // max(1, len(wanted)))
    threads = [share if n == "auto" else n for n in wanted]
    return threads, sum(threads) > cores


def _siblings(cpu: int) -> str:
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
