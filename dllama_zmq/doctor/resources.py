"""Cores, memory, limits and disks, as this computer, its control groups and the user's limits allow them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path

from dllama_zmq.doctor.findings import Finding, ok, problem, warning
from dllama_zmq.host import ROOT, free_memory_bytes, group_limits, read, usable_cores
from dllama_zmq.reporting import human_bytes, plural

_MIN_FREE = 0.2
_MUCH_SWAPPED = 0.05
_MIN_TASKS = 64
_MIN_FILES = 256
_MIN_DISK_BYTES = 1_000_000_000


def cores(root: Path = ROOT) -> Iterator[Finding]:
    """How many cores a node can use here, and what keeps it from using the others."""
    usable, limits = usable_cores(root), group_limits(root)
    siblings = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    there = len({text for path in siblings if (text := read(path).strip())})
    quota = "" if limits.cpus is None else f"; a control group allows {limits.cpus:g} CPUs"
    text = f"{usable} of {plural(there, 'core')} usable{quota}" if there else f"{plural(usable, 'core')} usable{quota}"
    if limits.cpus is not None and (limits.cpus < 1 or limits.cpus % 1):
        yield warning("cores", text, "give the container or unit whole CPUs: a fraction of one pauses all threads")
    elif usable < there:
        yield warning("cores", text, "give it all cores, if this computer has nothing else to do (taskset, --cpus)")
    else:
        yield ok("cores", text)


def memory(root: Path = ROOT) -> Iterator[Finding]:
    """Free memory, what a control group leaves of it, and what is swapped out."""
    lines = [line.partition(":") for line in read(root / "proc/meminfo").splitlines()]
    meminfo = {key: int(value.split()[0]) * 1024 for key, _, value in lines if value.endswith(" kB")}
    total, limit, free = meminfo.get("MemTotal"), group_limits(root).memory_bytes, free_memory_bytes(root)
    if total is None or free is None:
        return
    allowed = total if limit is None else min(total, limit)
    of = f"; a control group allows {human_bytes(allowed)}" if allowed < total else ""
    text = f"{human_bytes(free)} of {human_bytes(total)} free{of}"
    if free < _MIN_FREE * allowed:
        yield warning(
            "memory", text, "end other programs, or use more nodes; `dllama-zmq inspect` says what each needs"
        )
    else:
        yield ok("memory", text)
    swapped = meminfo.get("SwapTotal", 0) - meminfo.get("SwapFree", 0)
    if swapped > _MUCH_SWAPPED * total:
        cure = "end other programs: weights that are swapped out are read from a disk for each token"
        yield warning("memory", f"{human_bytes(swapped)} are swapped out", cure)


def limits(root: Path = ROOT) -> Iterator[Finding]:
    """The threads and open files that a node may have."""
    tasks, (_, files) = group_limits(root).tasks, resource.getrlimit(resource.RLIMIT_NOFILE)
    if tasks is not None and tasks < _MIN_TASKS:
        cure = f"allow {_MIN_TASKS} (docker: --pids-limit, systemd: TasksMax=)"
        yield problem("limits", f"a control group allows only {plural(tasks, 'thread')}", cure)
    if files != resource.RLIM_INFINITY and files < _MIN_FILES:
        yield problem("limits", f"{plural(files, 'open file')} at most (`ulimit -Hn`)", f"allow {_MIN_FILES} at least")


def disks(folders: Sequence[tuple[str, Path]]) -> Iterator[Finding]:
    """Free space and permission of folders, which need not exist yet, each with its purpose."""
    for purpose, folder in folders:
        there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        room = os.statvfs(there)
        free, text = room.f_bavail * room.f_frsize, f"{purpose} in {folder}"
        if not os.access(there, os.W_OK | os.X_OK):
            yield warning("disk", f"{text}: you cannot write {there}", f"make {there} yours, or choose another folder")
        elif free < _MIN_DISK_BYTES:
            yield warning("disk", f"{text}: {human_bytes(free)} free", "make room on that disk")
        else:
            yield ok("disk", f"{text}: {human_bytes(free)} free")
