"""Computers as `doctor` sees them: folders whose /proc and /sys are laid out as those of real ones."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dllama_zmq.doctor import Finding

CPU = "sys/devices/system/cpu"


def computer(folder: Path, files: dict[str, object]) -> Path:
    """A folder with these files, each with a newline at its end."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


def levels_and_texts(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    """Level and text of each."""
    return [(one.level, one.text) for one in findings]


def cures(findings: Iterable[Finding]) -> list[str]:
    return [one.cure for one in findings]
