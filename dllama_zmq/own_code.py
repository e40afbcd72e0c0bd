"""Starts this package in another process with exactly the code that runs now, and ends that process with this one.

`python -m` imports from the current folder first, so a command in another checkout of this repository would start that
checkout's nodes.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def own_code() -> dict[str, str]:
    """An environment in which Python finds its modules where this process found them, and nowhere else."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONSAFEPATH": "1"}


def signal_at_parents_end(number: int) -> None:
    """Let the kernel send this process a signal when its parent's thread ends. SIGCONT wakes a stopped process."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
