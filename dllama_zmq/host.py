"""This computer's name, free memory, usable cores, caches and open files, within control groups and limits.

Knows no model. `root` is the folder of /proc and /sys. Sources: proc(5), cgroups(7), and
Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of Linux.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from dllama_zmq.errors import ClusterError, DllamaError

ROOT = Path("/")
_MEMORY_FILES = {
    1: (["memory.limit_in_bytes"], "memory.usage_in_bytes", ["total_inactive_file", "total_active_file"]),
    2: (["memory.max", "memory.high"], "memory.current", ["inactive_file", "active_file", "slab_reclaimable"]),
}
"""By version: files of limits, of usage, and entries of memory.stat that are reclaimable. Linux throttles a group above
`high` almost to a standstill."""

_NO_LIMIT_BYTES = 1 << 60
"""Version 1 writes a number near 2^63 where there is no limit."""
_NEVER_OVERCOMMIT = 2
"""In vm.overcommit_memory: unused mappings count too."""


class _Group(Struct, frozen=True):
    """A control group of this process, and its version, 1 or 2."""

    folder: Path
    version: int


class GroupLimits(Struct, frozen=True):
    """Bytes of memory, CPUs on average, and processes with threads that control groups allow; None: no limit."""

    memory_bytes: int | None
    cpus: float | None
    tasks: int | None


def host_name() -> str:
    """This computer's host name, at most 64 characters."""
    return socket.gethostname()[:64]


def free_memory_bytes(root: Path = ROOT) -> int | None:
    """Bytes that processes here can still use without swapping; None if the system does not say.

    The least of MemAvailable and of what the control groups of this process leave. If the kernel does not overcommit,
    also of what it has not promised yet. Cached pages of files count as free, because the kernel reclaims them.
    """
    free = [left for group in _groups("memory", root) if (left := _memory_left(group)) is not None]
    lines = [line.partition(":") for line in read(root / "proc/meminfo").splitlines()]
    meminfo = {key: int(value.split()[0]) * 1024 for key, _, value in lines if value.endswith(" kB")}
    if "MemAvailable" in meminfo:
        free.append(meminfo["MemAvailable"])
    if number_in(root / "proc/sys/vm/overcommit_memory") == _NEVER_OVERCOMMIT and "CommitLimit" in meminfo:
        free.append(max(0, meminfo["CommitLimit"] - meminfo["Committed_AS"]))
    return min(free, default=None)


def is_stopped(pid: int, root: Path = ROOT) -> bool:
    """Whether a signal has stopped that process (SIGSTOP); False if the system does not say."""
    _, _, after_name = read(root / f"proc/{pid}/stat").rpartition(")")  # the name may hold anything
    return after_name.split()[:1] == ["T"]


def give_memory_back() -> None:
    """Return unused memory to the system: glibc keeps large arrays that were freed."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    if trim is not None:
        trim(0)


def usable_cores(root: Path = ROOT) -> int:
    """Cores that this process may keep busy, at least 1.

    The hardware threads of a core count once, because they share its arithmetic. A CPU quota (`docker run --cpus`) is
    rounded down: with one thread more, the kernel would stop all threads for a part of every 0.1 s.
    """
    cores = len({_siblings(cpu, root) for cpu in os.sched_getaffinity(0)})
    quotas = [quota for group in _groups("cpu", root) if (quota := _cpu_quota(group)) is not None]
    return max(1, int(min([cores, *quotas])))


def group_limits(root: Path = ROOT) -> GroupLimits:
    """The least of what this process's control groups allow."""
    memory = [
        limit
        for group in _groups("memory", root)
        for name in _MEMORY_FILES[group.version][0]
        if (limit := number_in(group.folder / name)) is not None and limit < _NO_LIMIT_BYTES
    ]
    cpus = [quota for group in _groups("cpu", root) if (quota := _cpu_quota(group)) is not None]
    tasks = [most for group in _groups("pids", root) if (most := number_in(group.folder / "pids.max")) is not None]
    return GroupLimits(min(memory, default=None), min(cpus, default=None), min(tasks, default=None))


def largest_cache_bytes(root: Path = ROOT) -> int | None:
    """Bytes of the largest cache of a core, which other cores may share; None if the system does not say.

    Source: Documentation/ABI/testing/sysfs-devices-system-cpu of Linux.
    """
    sizes = [read(path).strip() for path in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << 10 for size in sizes if size.endswith("K") and size[:-1].isdigit()), default=None)


def require_open_files(more: int) -> None:
    """Make sure that this process can open `more` files, raising its soft limit if needed.

    Raises ClusterError if the hard limit forbids it. Call it before making a ZeroMQ context: libzmq aborts the process
    if it cannot open an epoll or a socket.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        wanted = len(os.listdir("/proc/self/fd")) - 1 + more  # less the one that lists the folder
    except FileNotFoundError:  # not Linux
        return
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise ClusterError(
            f"a process may have {hard} files open here (`ulimit -n`), and this one needs {wanted}; "
            "try `ulimit -n 1024`"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else hard, hard))


def refused_by_system(error: BaseException) -> str:
    """For an error caused by a limit of this computer: what ran out, the limit, and what to do. Else ""."""
    number, place = getattr(error, "errno", None), getattr(error, "filename", None)
    if number == errno.EMFILE:
        return f"too many open files: a process may have {_limit(resource.RLIMIT_NOFILE)} here; try `ulimit -n 1024`"
    if number == errno.ENFILE:
        return "too many open files on this computer; end other programs, or raise fs.file-max"
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    library = limit != resource.RLIM_INFINITY and _is_of_a_library(error)
    if isinstance(error, MemoryError) or number == errno.ENOMEM or library:
        most = "" if limit == resource.RLIM_INFINITY else f": a process may have {limit // 1024} kB here (`ulimit -v`)"
        return f"not enough memory{most}; use more nodes, a smaller max_seq_len or a smaller model"
    if number in (errno.ENOSPC, errno.EDQUOT) and place is not None:
        return f"{place}: no space is left there; free some, or choose another place"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return f"too many threads: a user may have {_limit(resource.RLIMIT_NPROC)} processes here (`ulimit -u`)"
    return ""


def _is_of_a_library(error: BaseException | None) -> bool:
    """Whether the loader could not map a library: dlopen(3) gives no number, and llvmlite hides what it says."""
    while error is not None:
        if isinstance(error, OSError) and "failed to map segment" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def in_words(error: Exception) -> str:
    """One sentence for people on any error."""
    if isinstance(error, DllamaError):
        return str(error)
    if words := refused_by_system(error):
        return words
    if isinstance(error, OSError):
        return f"{error.filename or 'the system'}: {error.strerror or error}"
    hint = "set DLLAMA_ZMQ_DEBUG=1 to see where, and please report it"
    return f"a defect of dllama-zmq: {type(error).__name__}: {error}; {hint}"


def _limit(which: int) -> str:
    soft, _ = resource.getrlimit(which)
    return "any number of" if soft == resource.RLIM_INFINITY else str(soft)


def _siblings(cpu: int, root: Path) -> str:
    return read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").strip() or str(cpu)


def _groups(controller: str, root: Path) -> Iterator[_Group]:
    """This process's control groups of `controller`, of both versions: its own first, then those above it."""
    mounts = list(_mounts(root))
    for line in read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        for mount_version, options, mount_root, mount_point in mounts:
            if mount_version == version and (version == 2 or controller in options):
                top = root / mount_point.lstrip("/")
                folder = _inside(path, mount_root, top)
                for above in (folder, *folder.parents):
                    yield _Group(above, version)
                    if above == top:
                        break
                break


def _mounts(root: Path) -> Iterator[tuple[int, list[str], str, str]]:
    """Mounted control group hierarchies: version, controllers, the group at the mount point, the mount point."""
    for line in read(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            version = 2 if kind[0] == "cgroup2" else 1
            yield version, kind[2].split(","), _unescaped(fields[3]), _unescaped(fields[4])


def _unescaped(path: str) -> str:
    """A path of mountinfo without its escapes, such as \\040 for a space."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, character)
    return path


def _inside(path: str, mount_root: str, top: Path) -> Path:
    """The folder of the group `path` under the mount point `top`, which shows the hierarchy from `mount_root` down.

    A container sees its own group at the mount point, but /proc may give the group's name on the host.
    """
    inside = Path(path)
    with suppress(ValueError):
        inside = inside.relative_to(mount_root)
    if ".." in inside.parts:  # the process was moved out of the namespace's hierarchy
        return top
    folder = top / str(inside).lstrip("/")
    return folder if folder.is_dir() else top


def _memory_left(group: _Group) -> int | None:
    """Bytes that a group's limit leaves: the limit less the usage that is not reclaimable."""
    limit_names, usage_name, reclaimable = _MEMORY_FILES[group.version]
    limits = [limit for name in limit_names if (limit := number_in(group.folder / name)) is not None]
    usage = number_in(group.folder / usage_name)
    if not limits or usage is None:
        return None
    pages = dict(line.split(" ", 1) for line in read(group.folder / "memory.stat").splitlines() if " " in line)
    reclaimable_bytes = sum(int(pages.get(name, 0)) for name in reclaimable)
    return max(0, min(limits) - max(0, usage - reclaimable_bytes))


def _cpu_quota(group: _Group) -> float | None:
    """CPUs that a group may use on average; None without a quota."""
    if group.version == 2:
        quota, _, period = read(group.folder / "cpu.max").strip().partition(" ")
        values = [_whole(quota), _whole(period)]
    else:
        values = [number_in(group.folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota_us, period_us = values
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def number_in(path: Path) -> int | None:
    """The number in a small file; None if it says "max" or is missing."""
    return _whole(read(path).strip())


def _whole(text: str) -> int | None:
    return int(text) if text.lstrip("-").isdecimal() else None


def read(path: Path) -> str:
    """The text of a small file of /proc or /sys; empty if it cannot be read, which counts as no limit."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
