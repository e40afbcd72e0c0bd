"""What is known of this computer and of this program's source. Knows no model."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import dllama_zmq


def cpu_name(cpuinfo: str) -> str:
    """The processor as /proc/cpuinfo (its text) names it; its architecture where it does not."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    for key in ("model name", "Model", "Hardware", "cpu model"):  # x86; Raspberry Pi; other ARM; MIPS and others
        if fields.get(key):
            return fields[key]
    return platform.machine()


def read_proc(name: str) -> str:
    """The text of a file in /proc; empty where there is none."""
    with suppress(OSError):
        return Path("/proc", name).read_text(errors="replace")
    return ""


def source_commit() -> str:
    """The git commit of the source that runs, "-dirty" where files differ from it; empty where it is no checkout."""
    folder = Path(dllama_zmq.__file__).parents[1]
    if not (folder / ".git").exists():  # an installed package may lie in somebody else's checkout
        return ""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude", "*"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, stdin=subprocess.DEVNULL, check=True)
        return done.stdout.strip()
    return ""
