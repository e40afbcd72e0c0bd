"""What `doctor` finds of clock rates, heat, power and huge pages on computers laid out as real ones are."""

from __future__ import annotations

from pathlib import Path

import pytest
from computers import CPU, computer, cures, levels_and_texts

from dllama_zmq.doctor import computer as checks


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


# --- clock rates ------------------------------------------------------------------------------------------------------


def test_a_pis_governor_is_shown_with_its_rate(tmp_path: Path) -> None:
    pi = computer(tmp_path, policy("ondemand", "cpufreq-dt", 1_800_000, 1_800_000))
    assert levels_and_texts(checks.clock_rates(pi)) == [("ok", "CPUs 0-3: governor ondemand, up to 1.8 GHz")]


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
        (
            policy("userspace", "acpi-cpufreq", 3_000_000, 3_000_000),
            "CPUs 0-3: governor userspace keeps the rate low",
            "scaling_governor",
        ),
        (
            policy("powersave", "amd-pstate-epp", 3_000_000, 3_000_000, energy_performance_preference="balance_power"),
            "CPUs 0-3: governor powersave with preference balance_power keeps the rate low",
            "energy_performance_preference",
        ),
    ],
    ids=["powersave", "preference", "limit", "userspace", "half a preference"],
)
def test_a_setting_that_keeps_the_clock_slow_is_a_warning_with_the_command_that_mends_it(
    tmp_path: Path, files: dict[str, object], text: str, cure: str
) -> None:
    (found,) = checks.clock_rates(computer(tmp_path, files))
    assert (found.level, found.text) == ("warning", text)
    assert cure in found.cure


def test_powersave_of_a_cpu_that_scales_by_itself_is_no_fault(tmp_path: Path) -> None:
    files = policy("powersave", "intel_pstate", 3e6, 3e6, energy_performance_preference="balance_performance")
    laptop = computer(
        tmp_path, {key: int(value) if isinstance(value, float) else value for key, value in files.items()}
    )
    assert levels_and_texts(checks.clock_rates(laptop)) == [("ok", "CPUs 0-3: governor powersave, up to 3.0 GHz")]


def test_a_limit_that_is_nearly_the_most_is_no_fault(tmp_path: Path) -> None:
    pi = computer(tmp_path, policy("schedutil", "cpufreq-dt", 1_790_000, 1_800_000))
    assert [found.level for found in checks.clock_rates(pi)] == ["ok"]


def test_cores_of_several_kinds_are_distinguished_and_a_boost_that_is_off_is_found(tmp_path: Path) -> None:
    files = policy("schedutil", "cpufreq-dt", 1_800_000, 1_800_000)
    files |= policy("schedutil", "cpufreq-dt", 2_400_000, 2_400_000, number=4) | {f"{CPU}/cpufreq/boost": 0}
    files |= policy("schedutil", "cpufreq-dt", 3_000_000, 3_000_000, number=10)
    found = list(checks.clock_rates(computer(tmp_path, files)))
    assert levels_and_texts(found) == [
        ("ok", "CPUs 0-3: governor schedutil, up to 1.8 GHz"),
        ("ok", "CPUs 4-7: governor schedutil, up to 2.4 GHz"),
        ("ok", "CPUs 10-13: governor schedutil, up to 3.0 GHz"),
        ("warning", "boost (turbo) is off"),
    ]
    assert found[-1].cure == f"echo 1 | sudo tee /{CPU}/cpufreq/boost"


@pytest.mark.parametrize(("no_turbo", "expected"), [(0, []), (1, [f"echo 0 | sudo tee /{CPU}/intel_pstate/no_turbo"])])
def test_intels_boost_has_a_switch_of_its_own(tmp_path: Path, no_turbo: int, expected: list[str]) -> None:
    assert cures(checks.clock_rates(computer(tmp_path, {f"{CPU}/intel_pstate/no_turbo": no_turbo}))) == expected


# --- heat and power ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degrees", "level"), [(55, "ok"), (76, "warning"), (80, "problem"), (84, "problem")])
def test_how_near_the_warmest_zone_is_to_being_slowed_down(tmp_path: Path, degrees: float, level: str) -> None:
    files = zone(0, "x86_pkg_temp", degrees, passive=80, critical=100) | zone(1, "acpitz", 40, critical=110)
    expected = f"{degrees:.0f} °C; throttled from 80 °C on (x86_pkg_temp)"
    assert levels_and_texts(checks.heat(computer(tmp_path, files))) == [(level, expected)]


def test_the_zone_that_is_nearest_to_its_limit_counts_and_limits_of_nothing_do_not(tmp_path: Path) -> None:
    files = zone(0, "gpu", 90, critical=110) | zone(1, "cpu", 97, passive=0, critical=100)
    expected = "97 °C; throttled from 100 °C on (cpu)"
    assert levels_and_texts(checks.heat(computer(tmp_path, files))) == [("warning", expected)]


@pytest.mark.parametrize("throttled", [[(0, 0), (412, 93_400), (12, 800)], [(12, 800), (412, 93_400), (0, 0)]])
def test_a_laptop_that_was_throttled_says_how_often_and_how_long(
    tmp_path: Path, throttled: list[tuple[int, int]]
) -> None:
    files = {
        f"{CPU}/cpu{cpu}/thermal_throttle/core_throttle_{name}": number
        for cpu, (count, total_ms) in enumerate(throttled)
        for name, number in (("count", count), ("total_time_ms", total_ms))
    }
    assert levels_and_texts(checks.heat(computer(tmp_path, dict(files)))) == [
        ("warning", "cores were throttled 412 times since the start, 93 s in all")
    ]


THROTTLED = [
    (0x0, [("ok", "enough voltage, never throttled")]),
    (0x50000, [("warning", "under-voltage since the start"), ("warning", "throttled since the start")]),
    (0x50005, [("problem", "under-voltage now"), ("problem", "throttled now")]),
    (0x80008, [("problem", "throttled by heat now")]),
    (0x20002, [("problem", "throttled now")]),
]


def throttled_words(bits: int, expected: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(level, f"{text} (get_throttled {bits:#x})" if level != "ok" else text) for level, text in expected]


@pytest.mark.parametrize(("bits", "expected"), THROTTLED)
def test_under_voltage_and_throttling_of_a_pi_are_read_from_sys(
    tmp_path: Path, bits: int, expected: list[tuple[str, str]]
) -> None:
    pi = computer(tmp_path, {"sys/devices/platform/soc/soc:firmware/get_throttled": f"{bits:x}"})
    assert levels_and_texts(checks.power(pi)) == throttled_words(bits, expected)


@pytest.mark.parametrize(("bits", "expected"), THROTTLED)
def test_or_asked_of_vcgencmd(tmp_path: Path, bits: int, expected: list[tuple[str, str]]) -> None:
    program = '#!/bin/sh\ntest "$1" = get_throttled && echo throttled=' + f"{bits:#x}"
    files = {"proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0", "usr/bin/vcgencmd": program}
    pi = computer(tmp_path, files)
    (pi / "usr/bin/vcgencmd").chmod(0o755)
    assert levels_and_texts(checks.power(pi)) == throttled_words(bits, expected)


def test_a_program_of_that_name_on_another_computer_is_not_asked(tmp_path: Path) -> None:
    pc = computer(
        tmp_path, {"proc/device-tree/model": "Some Board", "usr/bin/vcgencmd": "#!/bin/sh\necho throttled=0x5"}
    )
    (pc / "usr/bin/vcgencmd").chmod(0o755)
    assert levels_and_texts(checks.power(pc)) == []


@pytest.mark.parametrize("program", ["exit 1", "echo VCHI initialization failed", "exec sleep 60"])
def test_a_firmware_that_does_not_answer_says_nothing_within_two_seconds(tmp_path: Path, program: str) -> None:
    files = {"proc/device-tree/model": "Raspberry Pi 4 Model B\0", "usr/bin/vcgencmd": f"#!/bin/sh\n{program}"}
    pi = computer(tmp_path, files)
    (pi / "usr/bin/vcgencmd").chmod(0o755)
    assert levels_and_texts(checks.power(pi)) == []


@pytest.mark.parametrize(("alarm", "level"), [(0, "ok"), (1, "warning")])
def test_without_the_firmware_the_voltage_sensor_is_read(tmp_path: Path, alarm: int, level: str) -> None:
    files = {"sys/class/hwmon/hwmon2/name": "rpi_volt", "sys/class/hwmon/hwmon2/in0_lcrit_alarm": alarm}
    assert [found.level for found in checks.power(computer(tmp_path, files))] == [level]


# --- huge pages -------------------------------------------------------------------------------------------------------


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
    assert levels_and_texts(checks.huge_pages(computer(tmp_path, dict(files)))) == expected
