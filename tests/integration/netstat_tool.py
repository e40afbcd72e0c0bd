"""`dllama-zmq netstat` called in this process, and the model whose traffic it tells."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

from tiny import tiny_spec

from dllama_zmq.cli.app import app
from dllama_zmq.cli.wrong_use import exit_code
from dllama_zmq.spec import SYNC_FLOAT, Sync

SPEC = tiny_spec(n_kv_heads=4, seq_len=512)
STAGES = 2 * SPEC.n_layers


@dataclass(frozen=True)
class Shown:
    """What the tool printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def tool(*args: str) -> Shown:
    """The command called in this process: much faster than starting it."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = exit_code(app, ["netstat", *args])
    return Shown(code, out.getvalue(), err.getvalue())


def row_bytes(sync: Sync) -> int:
    """One token's activations on the bus."""
    return SYNC_FLOAT[sync].row_bytes(SPEC.dim)
