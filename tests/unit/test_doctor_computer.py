"""What `doctor` finds on computers whose /proc and /sys are laid out as those of real ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from dllama_zmq.doctor import Finding, hardware, listeners, resources
from dllama_zmq.kernels.simd.target import missing

GB = 1 << 30
CPU = "sys/devices/system/cpu"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


def computer(folder: Path, files: dict[str, object]) -> Path:
    """A folder with these files, each with a newline at its end."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return folder


def policy(governor: str, driver: str, limit: int, most: int, number: int = 0, **more: str) -> dict[str, object]:
    """A set of CPUs that share a clock, 4 of them, as cpufreq shows it; rates in kHz."""
    folder = f"{CPU}/cpufreq/policy{number}"
    fields = {
        "scaling_governor": governor,
        "scaling_driver": driver,
        "scaling_max_freq": limit,
        "cpuinfo_max_freq": most,
    }
    cpus = " ".join(str(number + i) for i in range(4))
    return {f"{folder}/{name}": text for name, text in {**fields, "affected_cpus": cpus, **more}.items()}


def zone(number: int, kind: str, temp: float, **trips: float) -> dict[str, object]:
    """A thermal zone, in degrees Celsius."""
    folder = f"sys/class/thermal/thermal_zone{number}"
    files: dict[str, object] = {f"{folder}/type": kind, f"{folder}/temp": round(temp * 1000)}
    for at, (name, degrees) in enumerate(trips.items()):
        files[f"{folder}/trip_point_{at}_type"], files[f"{folder}/trip_point_{at}_temp"] = name, round(degrees * 1000)
    return files


def told(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    """Level and text of each."""
    return [(one.level, one.text) for one in findings]


def cures(findings: Iterable[Finding]) -> list[str]:
    return [one.cure for one in findings]


# --- clock rates ------------------------------------------------------------------------------------------------------


def test_a_pis_governor_is_told_with_its_rate(tmp_path: Path) -> None:
    pi = computer(tmp_path, policy("ondemand", "cpufreq-dt", 1_800_000, 1_800_000))
    assert told(hardware.clock_rates(pi)) == [("ok", "CPUs 0-3: governor ondemand, up to 1.8 GHz")]


@pytest.mark.parametrize(
    ("files", "text", "cure"),
    [
        (
            policy("powersave", "cpufreq-dt", 1_500_000, 1_500_000),
            "CPUs 0-3: governor powersave keeps the rate low",
            "scaling_governor",
        ),
        (
            policy("powersave", "intel_pstate", 3_000_000, 3_000_000, energy_performance_preference="power"),
            "CPUs 0-3: governor powersave with preference power keeps the rate low",
            "energy_performance_preference",
        ),
        (
            policy("schedutil", "cpufreq-dt", 600_000, 1_500_000),
            "CPUs 0-3: governor schedutil is limited to 0.6 GHz of 1.5 GHz",
            "echo 1500000 | sudo tee",
        ),
    ],
    ids=["powersave", "preference", "limit"],
)
def test_what_keeps_the_clock_slow_is_a_warning_with_the_command_that_mends_it(
    tmp_path: Path, files: dict[str, object], text: str, cure: str
) -> None:
    (found,) = hardware.clock_rates(computer(tmp_path, files))
    assert (found.level, found.text) == ("warning", text)
    assert cure in found.cure


def test_powersave_of_a_cpu_that_scales_by_itself_is_no_fault(tmp_path: Path) -> None:
    files = policy("powersave", "intel_pstate", 3e6, 3e6, energy_performance_preference="balance_performance")
    laptop = computer(
        tmp_path, {key: int(value) if isinstance(value, float) else value for key, value in files.items()}
    )
    assert told(hardware.clock_rates(laptop)) == [("ok", "CPUs 0-3: governor powersave, up to 3.0 GHz")]


def test_cores_of_two_kinds_are_told_apart_and_a_boost_that_is_off_is_found(tmp_path: Path) -> None:
    files = policy("schedutil", "cpufreq-dt", 1_800_000, 1_800_000)
    files |= policy("schedutil", "cpufreq-dt", 2_400_000, 2_400_000, number=4) | {f"{CPU}/cpufreq/boost": 0}
    assert told(hardware.clock_rates(computer(tmp_path, files))) == [
        ("ok", "CPUs 0-3: governor schedutil, up to 1.8 GHz"),
        ("ok", "CPUs 4-7: governor schedutil, up to 2.4 GHz"),
        ("warning", "boost (turbo) is off"),
    ]


# --- heat and power ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degrees", "level"), [(55, "ok"), (76, "warning"), (80, "problem"), (84, "problem")])
def test_how_near_the_warmest_zone_is_to_being_slowed_down(tmp_path: Path, degrees: float, level: str) -> None:
    files = zone(0, "x86_pkg_temp", degrees, passive=80, critical=100) | zone(1, "acpitz", 40, critical=110)
    expected = f"{degrees:.0f} °C; from 80 °C on it is slowed down (x86_pkg_temp)"
    assert told(hardware.heat(computer(tmp_path, files))) == [(level, expected)]


def test_a_laptop_that_was_throttled_says_how_often_and_how_long(tmp_path: Path) -> None:
    files = {
        f"{CPU}/cpu{cpu}/thermal_throttle/core_throttle_{name}": number
        for cpu, (count, total_ms) in enumerate([(0, 0), (412, 93_400), (12, 800)])
        for name, number in (("count", count), ("total_time_ms", total_ms))
    }
    assert told(hardware.heat(computer(tmp_path, dict(files)))) == [
        ("warning", "a core was slowed down 412 times since the start, 93 s in all")
    ]


THROTTLED = [
    (0x0, [("ok", "enough voltage, never throttled")]),
    (0x50000, [("warning", "under-voltage since the start"), ("warning", "throttled since the start")]),
    (0x50005, [("problem", "under-voltage now"), ("problem", "throttled now")]),
    (0x80008, [("problem", "slowed down by heat now")]),
    (0x20002, [("problem", "throttled now")]),
]


def throttled_words(bits: int, expected: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(level, f"{text} (get_throttled {bits:#x})" if level != "ok" else text) for level, text in expected]


@pytest.mark.parametrize(("bits", "expected"), THROTTLED)
def test_what_a_pis_firmware_says_is_read_from_sys(tmp_path: Path, bits: int, expected: list[tuple[str, str]]) -> None:
    pi = computer(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": f"{bits:x}"})
    assert told(hardware.power(pi)) == throttled_words(bits, expected)


@pytest.mark.parametrize(("bits", "expected"), THROTTLED)
def test_or_asked_of_vcgencmd(tmp_path: Path, bits: int, expected: list[tuple[str, str]]) -> None:
    program = '#!/bin/sh\ntest "$1" = get_throttled && echo throttled=' + f"{bits:#x}"
    files = {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0", "usr/bin/vcgencmd": program}
    pi = computer(tmp_path, files)
    (pi / "usr/bin/vcgencmd").chmod(0o755)
    assert told(hardware.power(pi)) == throttled_words(bits, expected)


@pytest.mark.parametrize("program", ["exit 1", "echo VCHI initialization failed", "exec sleep 60"])
def test_a_firmware_that_does_not_answer_says_nothing_within_two_seconds(tmp_path: Path, program: str) -> None:
    files = {"proc/device-tree/model": "Raspberry Pi 4 Model B\0", "usr/bin/vcgencmd": f"#!/bin/sh\n{program}"}
    pi = computer(tmp_path, files)
    (pi / "usr/bin/vcgencmd").chmod(0o755)
    assert told(hardware.power(pi)) == []


@pytest.mark.parametrize(("alarm", "level"), [(0, "ok"), (1, "warning")])
def test_without_the_firmware_the_voltage_sensor_is_read(tmp_path: Path, alarm: int, level: str) -> None:
    files = {"sys/class/hwmon/hwmon2/name": "rpi_volt", "sys/class/hwmon/hwmon2/in0_lcrit_alarm": alarm}
    assert [found.level for found in hardware.power(computer(tmp_path, files))] == [level]


# --- memory, cores, limits --------------------------------------------------------------------------------------------


def memory(total_gb: float, free_gb: float, swap_gb: float = 0, swap_free_gb: float = 0) -> dict[str, object]:
    rows = {"MemTotal": total_gb, "MemAvailable": free_gb, "SwapTotal": swap_gb, "SwapFree": swap_free_gb}
    return {"proc/meminfo": "\n".join(f"{key}: {round(gb * GB / 1024)} kB" for key, gb in rows.items())}


def grouped(**files: object) -> dict[str, object]:
    """A process in the group /box of version 2."""
    found: dict[str, object] = {"proc/self/cgroup": "0::/box", "proc/self/mountinfo": V2_MOUNT}
    return found | {f"sys/fs/cgroup/box/{name.replace('_', '.')}": text for name, text in files.items()}


def test_memory_that_is_nearly_full_or_swapped_out_is_a_warning(tmp_path: Path) -> None:
    assert told(resources.memory(computer(tmp_path / "pi", memory(8, 6)))) == [("ok", "6.4 GB of 8.6 GB free")]
    found = told(resources.memory(computer(tmp_path / "full", memory(8, 1, 2, 1))))
    assert found == [("warning", "1.1 GB of 8.6 GB free"), ("warning", "1.1 GB are swapped out")]


def test_a_containers_memory_is_what_its_group_allows(tmp_path: Path) -> None:
    files = memory(64, 60) | grouped(memory_max=4 * GB, memory_current=GB, memory_stat="inactive_file 0")
    found = told(resources.memory(computer(tmp_path, files)))
    assert found == [("ok", "3.2 GB of 68.7 GB free; a control group allows 4.3 GB")]
    files |= grouped(memory_current=4 * GB - 1000)
    assert [level for level, _ in told(resources.memory(computer(tmp_path, files)))] == ["warning"]


def cores(n: int) -> dict[str, object]:
    """That many cores without hardware threads; those of this process are among them."""
    cpus = [*sorted(os.sched_getaffinity(0)), *range(1000, 1000 + n)][:n]
    return {f"{CPU}/cpu{cpu}/topology/thread_siblings_list": cpu for cpu in cpus}


def test_cores_that_a_container_may_not_use_are_counted(tmp_path: Path) -> None:
    n = len(os.sched_getaffinity(0))
    assert told(resources.cores(computer(tmp_path / "all", cores(n))))[0][0] == "ok"
    (found,) = resources.cores(computer(tmp_path / "some", cores(n + 2)))
    assert (found.level, found.text) == ("warning", f"{n} of {n + 2} cores usable")
    (found,) = resources.cores(computer(tmp_path / "half", cores(n) | grouped(cpu_max="150000 100000")))
    assert found.level == "warning"
    assert found.text.endswith("usable; a control group allows 1.5 CPUs")


def test_few_threads_of_a_container_are_a_problem(tmp_path: Path) -> None:
    assert told(resources.limits(computer(tmp_path / "many", grouped(pids_max="max")))) == []
    found = told(resources.limits(computer(tmp_path / "few", grouped(pids_max=32))))
    assert found == [("problem", "a control group allows 32 threads")]


@pytest.mark.parametrize(
    ("enabled", "expected"),
    [
        ("always [madvise] never", [("ok", "madvise, of 2 MiB")]),
        ("always madvise [never]", [("warning", "transparent huge pages are off, so weights are read more slowly")]),
    ],
)
def test_huge_pages_that_are_off_are_a_warning(tmp_path: Path, enabled: str, expected: list[tuple[str, str]]) -> None:
    folder = "sys/kernel/mm/transparent_hugepage"
    files = {f"{folder}/enabled": enabled, f"{folder}/hpage_pmd_size": 2 << 20}
    assert told(hardware.huge_pages(computer(tmp_path, dict(files)))) == expected


def test_what_a_system_does_not_have_is_left_out(tmp_path: Path) -> None:
    for look in (hardware.clock_rates, hardware.heat, hardware.power, hardware.huge_pages, resources.memory):
        assert told(look(tmp_path)) == []
    assert [found.level for found in resources.cores(tmp_path)] == ["ok"]


def test_a_folder_need_not_exist_and_one_that_is_not_ones_own_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = resources.disks([("logs", tmp_path / "a" / "b")])
    assert (found.level, found.text.startswith(f"logs in {tmp_path}/a/b: ")) == ("ok", True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    (found,) = resources.disks([("logs", tmp_path / "a" / "b")])
    assert (found.level, found.text) == ("warning", f"logs in {tmp_path}/a/b: you cannot write {tmp_path}")


@pytest.mark.parametrize(
    ("architecture", "features", "expected"),
    [
        ("x86_64", ["sse4.2"], "AVX2, FMA, F16C"),
        ("x86_64", ["avx2", "fma", "f16c"], "VNNI (AVX-512 or AVX)"),
        ("x86_64", ["avx2", "fma", "f16c", "avxvnni"], ""),
        ("x86_64", ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512vnni"], ""),
        ("aarch64", ["neon"], "dot product (ARMv8.2: Raspberry Pi 5, Cortex-A76 and later)"),
        ("aarch64", ["neon", "dotprod"], ""),
        ("riscv64", [], ""),
    ],
)
def test_the_instructions_that_a_cpu_lacks(architecture: str, features: list[str], expected: str) -> None:
    assert missing(architecture, features) == expected


# --- who listens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1"])
def test_who_listens_at_a_port_is_found_by_its_process(ip: str) -> None:
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        server = socket.create_server((ip, 0), family=family)
    except OSError:
        pytest.skip("this computer has no IPv6")
    with server:
        port = server.getsockname()[1]
        found = listeners.listener_at(port)
        assert found is not None
        assert found.pid == os.getpid()
        assert listeners.is_of(os.getpid(), os.getppid())
        assert not listeners.is_of(os.getppid(), os.getpid())
    assert listeners.listener_at(port) is None


def test_another_users_process_is_known_by_its_user_alone(tmp_path: Path) -> None:
    line = "0: 0100007F:15C2 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1 0 100 0 0 10 0"
    made = computer(tmp_path, {"proc/net/tcp": f"  sl  local_address\n{line}", "proc/77/comm": "sshd"})
    assert str(listeners.listener_at(0x15C2, made)) == "a process of user root"
    (made / "proc/77/fd").mkdir()
    (made / "proc/77/fd/3").symlink_to("socket:[4711]")
    assert str(listeners.listener_at(0x15C2, made)) == "sshd (process 77)"
    assert listeners.listener_at(0x15C3, made) is None
