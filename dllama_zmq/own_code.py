"""How this package starts itself in another process: with the very code that runs now.

`python -m` imports from the current folder first, so a command that is run in another checkout of this repository would
start that one's nodes.
"""

from __future__ import annotations

import os
import sys


def own_code() -> dict[str, str]:
    """An environment in which Python finds its modules where this process found them, and nowhere else."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "PYTHONSAFEPATH": "1"}
