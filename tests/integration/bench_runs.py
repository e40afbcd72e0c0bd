"""The shape that tests of `dllama-zmq bench` measure, and what a run must not leave."""

from __future__ import annotations

from pathlib import Path

from command_line import Cli

from dllama_zmq.kernels import choose_kernels
from dllama_zmq.kernels.simd.store import cache_folder

OVERRIDES = {"layers": 2, "dim": 64, "hidden": 128, "heads": 4, "kv-heads": 2, "vocab": 301, "seq-len": 128}
SHAPE = ["--shape", "tinyllama", *(word for name, value in OVERRIDES.items() for word in (f"--{name}", str(value)))]

LITTLE_MEMORY = """
import os
from dllama_zmq.threads import ONE_BLAS_THREAD
os.environ |= ONE_BLAS_THREAD
from dllama_zmq.bench import machine
from dllama_zmq.cli import main
machine.MAX_READ_BYTES, machine.WEIGHT_BYTES, machine.BLAS_SHAPES = 1 << 25, 1 << 21, ((8, 64), (64, 64))
main()
"""
"""`dllama-zmq` as a program for `Cli.started`, whose `bench` measures this computer by less memory: its own measure
takes 2 s of CPU before the first node is started."""


def left_folders(cli: Cli) -> list[Path]:
    return [path for base in ("run", "logs") for path in (cli.home / base).glob("*")]


def share_kernels(cache: Path) -> None:
    """Make the kernels that all tests have compiled by now those of the cache folder `cache`, which has none yet."""
    if choose_kernels("auto", 1).name == "simd":
        (cache / "dllama-zmq").mkdir()
        (cache / "dllama-zmq" / "kernels").symlink_to(cache_folder())
