"""The shape that tests of `dllama-zmq bench` measure, and what a run must not leave."""

from __future__ import annotations

from pathlib import Path

from command_line import Cli

OVERRIDES = {"layers": 2, "dim": 64, "hidden": 128, "heads": 4, "kv-heads": 2, "vocab": 301, "seq-len": 128}
SHAPE = ["--shape", "tinyllama", *(word for name, value in OVERRIDES.items() for word in (f"--{name}", str(value)))]


def left_folders(cli: Cli) -> list[Path]:
    return [path for base in ("run", "logs") for path in (cli.home / base).glob("*")]
