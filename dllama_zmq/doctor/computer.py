"""This computer: clock rates, heat, power and huge pages, from /sys and a Raspberry Pi's firmware; cores, memory,
limits and disks, as control groups and the user's limits allow them. What the system lacks is left out.

Sources: Documentation/admin-guide/pm/cpufreq.rst, driver-api/thermal/sysfs-api.rst, admin-guide/mm/transhuge.rst and
ABI/testing/sysfs-devices-system-cpu of Linux; `vcgencmd get_throttled` in Raspberry Pi's documentation.
"""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dllama_zmq.doctor.findings import Finding, ok, problem, warning
from dllama_zmq.host import ROOT, free_memory_bytes, group_limits, number_in, read, usable_cores
from dllama_zmq.reporting import human_bytes, plural

_CPU = "sys/devices/system/cpu"
_POLICIES = f"/{_CPU}/cpufreq/policy*"
_SCALES_BY_ITSELF = ("intel_pstate", "amd-pstate-epp", "amd_pstate_epp")
"""Drivers for which powersave is no fixed rate: the CPU raises it under load, as far as its preference allows."""
_CLOSE = 0.98
_HOT_BELOW_C = 5.0
_VCGENCMD_S = 1.5
_UNDER_VOLTAGE, _CAPPED, _THROTTLED, _TOO_WARM = 1, 2, 4, 8
_POWER = "use the Pi's own power supply, and a short cable"
_COOLING = "add a heat sink or a fan, or improve the air flow"

_MIN_FREE = 0.2
_MUCH_SWAPPED = 0.05
_MIN_TASKS = 64
_MIN_FILES = 256
_MIN_DISK_BYTES = 1_000_000_000


def clock_rates(root: Path = ROOT) -> Iterator[Finding]:
    """Governors and limits of the CPUs' clock rates."""
    kinds: dict[tuple[str, str, str, int | None, int | None], list[str]] = {}
    for policy in sorted((root / _CPU / "cpufreq").glob("policy*"), key=lambda path: (len(path.name), path.name)):
        governor = read(policy / "scaling_governor").strip()
        if governor:
            driver, preference = (
                read(policy / name).strip() for name in ("scaling_driver", "energy_performance_preference")
            )
            rates = number_in(policy / "scaling_max_freq"), number_in(policy / "cpuinfo_max_freq")
            cpus = read(policy / "affected_cpus").split()
            kinds.setdefault((governor, driver, preference, *rates), []).extend(cpus)
    for (governor, driver, preference, limit, most), cpus in kinds.items():
        named = f"{_cpus(cpus)}governor {governor}"
        up_to = f", up to {_ghz(limit or most)}" if limit or most else ""
        if governor == "userspace" or (governor == "powersave" and driver not in _SCALES_BY_ITSELF):
            yield warning(
                "clock rate", f"{named} keeps the rate low", f"echo performance | sudo tee {_POLICIES}/scaling_governor"
            )
        elif preference in ("power", "balance_power"):
            cure = f"echo balance_performance | sudo tee {_POLICIES}/energy_performance_preference"
            yield warning("clock rate", f"{named} with preference {preference} keeps the rate low", cure)
        elif limit and most and limit < _CLOSE * most:
            cure = f"echo {most} | sudo tee {_POLICIES}/scaling_max_freq"
            yield warning("clock rate", f"{named} is limited to {_ghz(limit)} of {_ghz(most)}", cure)
        else:
            yield ok("clock rate", f"{named}{up_to}")
    for name, off in ((f"{_CPU}/intel_pstate/no_turbo", 1), (f"{_CPU}/cpufreq/boost", 0)):
        if number_in(root / name) == off:
            yield warning("clock rate", "boost (turbo) is off", f"echo {1 - off} | sudo tee /{name}")


def heat(root: Path = ROOT) -> Iterator[Finding]:
    """Whether heat slows the CPUs, now or since the start."""
    margins = [zone for path in (root / "sys/class/thermal").glob("thermal_zone*") if (zone := _zone(path)) is not None]
    if margins:
        limit, now, kind = min(margins, key=lambda zone: zone[0] - zone[1])
        text = f"{now:.0f} °C; throttled from {limit:.0f} °C on ({kind})"
        if now >= limit:
            yield problem("heat", text, _COOLING)
        elif now > limit - _HOT_BELOW_C:
            yield warning("heat", text, _COOLING)
        else:
            yield ok("heat", text)
    counts = [
        (total_ms, count)
        for path in (root / _CPU).glob("cpu[0-9]*/thermal_throttle")
        if (count := number_in(path / "core_throttle_count"))
        and (total_ms := number_in(path / "core_throttle_total_time_ms") or 0) is not None
    ]
    if counts:
        total_ms, count = max(counts)
        took = f", {total_ms / 1000:.0f} s in all" if total_ms else ""
        yield warning("heat", f"cores were throttled {count} times since the start{took}", _COOLING)


def power(root: Path = ROOT) -> Iterator[Finding]:
    """Under-voltage and throttling, as a Raspberry Pi's firmware reports them."""
    bits = _throttled(root)
    if bits is None:
        for path in (root / "sys/class/hwmon").glob("hwmon*"):
            if read(path / "name").strip() == "rpi_volt":
                low = number_in(path / "in0_lcrit_alarm")
                yield (
                    warning("power", "under-voltage since the start", _POWER) if low else ok("power", "enough voltage")
                )
        return
    causes = [
        (_UNDER_VOLTAGE, "under-voltage", _POWER),
        (_CAPPED | _THROTTLED, "throttled", f"{_POWER}; {_COOLING}"),
        (_TOO_WARM, "throttled by heat", _COOLING),
    ]
    clean = True
    for mask, what, cure in causes:
        if bits & mask:
            yield problem("power", f"{what} now (get_throttled {bits:#x})", cure)
        elif bits >> 16 & mask:
            yield warning("power", f"{what} since the start (get_throttled {bits:#x})", cure)
        clean = clean and not (bits | bits >> 16) & mask
    if clean:
        yield ok("power", "enough voltage, never throttled")


def huge_pages(root: Path = ROOT) -> Iterator[Finding]:
    """Whether weights can use huge pages; without them, reading the weights misses the TLB."""
    folder = root / "sys/kernel/mm/transparent_hugepage"
    chosen = read(folder / "enabled").partition("[")[2].partition("]")[0]
    if chosen == "never":
        cure = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled"
        yield warning("huge pages", "transparent huge pages are off, so weights are read more slowly", cure)
    elif chosen:
        n_bytes = number_in(folder / "hpage_pmd_size")
        yield ok("huge pages", f"{chosen}{f', of {n_bytes >> 20} MiB' if n_bytes else ''}")


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


def disk(purpose: str, folder: Path) -> Iterator[Finding]:
    """Free space and permission of a folder, which need not exist yet."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
    room = os.statvfs(there)
    free, text = room.f_bavail * room.f_frsize, f"{purpose} in {folder}"
    if not os.access(there, os.W_OK | os.X_OK):
        yield warning("disk", f"{text}: you cannot write {there}", f"make {there} yours, or choose another folder")
    elif free < _MIN_DISK_BYTES:
        yield warning("disk", f"{text}: {human_bytes(free)} free", "make room on that disk")
    else:
        yield ok("disk", f"{text}: {human_bytes(free)} free")


def _zone(path: Path) -> tuple[float, float, str] | None:
    """The passive trip point of a thermal zone and its temperature, both in °C, and its name."""
    now = number_in(path / "temp")
    trips = [
        trip
        for kind in path.glob("trip_point_*_type")
        if read(kind).strip() in ("passive", "hot", "critical")
        and (trip := number_in(path / kind.name.replace("_type", "_temp"))) is not None
        and trip > 0
    ]
    return (min(trips) / 1000, now / 1000, read(path / "type").strip()) if trips and now is not None else None


def _throttled(root: Path) -> int | None:
    """The bits of get_throttled: the lowest 4 are the present, those from 16 on what happened since boot."""
    for path in (root / "sys/devices/platform").glob("soc*/*firmware/get_throttled"):
        with suppress(ValueError):
            return int(read(path).strip(), 16)
    if not read(root / "proc/device-tree/model").startswith("Raspberry Pi"):
        return None
    for folder in ("usr/bin", "opt/vc/bin"):
        if os.access(program := root / folder / "vcgencmd", os.X_OK):
            with suppress(OSError, subprocess.SubprocessError, ValueError):
                words = [str(program), "get_throttled"]
                done = subprocess.run(words, capture_output=True, text=True, timeout=_VCGENCMD_S, check=True)
                return int(done.stdout.strip().removeprefix("throttled="), 16)
    return None


def _cpus(numbers: list[str]) -> str:
    """`CPUs 0-3: ` for consecutive numbers; else they are listed."""
    wanted = sorted(int(number) for number in numbers if number.isdecimal())
    if not wanted:
        return ""
    if len(wanted) == 1:
        return f"CPU {wanted[0]}: "
    if wanted == list(range(wanted[0], wanted[-1] + 1)):
        return f"CPUs {wanted[0]}-{wanted[-1]}: "
    return f"CPUs {','.join(map(str, wanted))}: "


def _ghz(khz: int | None) -> str:
    return f"{(khz or 0) / 1e6:.1f} GHz"
