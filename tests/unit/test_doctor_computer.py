"""What `doctor` finds of memory, cores, limits, disks and listeners on computers laid out as real ones are."""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from computers import CPU, computer, levels_and_texts

from dllama_zmq.doctor import computer as checks
from dllama_zmq.doctor import ports
from dllama_zmq.kernels.simd.target import missing

GB = 1 << 30
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"


# --- memory, cores, limits --------------------------------------------------------------------------------------------


def memory(total_gb: float, free_gb: float, swap_gb: float = 0, swap_free_gb: float = 0) -> dict[str, object]:
    rows = {"MemTotal": total_gb, "MemAvailable": free_gb, "SwapTotal": swap_gb, "SwapFree": swap_free_gb}
    return {"proc/meminfo": "\n".join(f"{key}: {round(gb * GB / 1024)} kB" for key, gb in rows.items())}


def grouped(**files: object) -> dict[str, object]:
    """A process in the group /box of version 2."""
    found: dict[str, object] = {"proc/self/cgroup": "0::/box", "proc/self/mountinfo": V2_MOUNT}
    return found | {f"sys/fs/cgroup/box/{name.replace('_', '.')}": text for name, text in files.items()}


def test_memory_that_is_nearly_full_or_swapped_out_is_a_warning(tmp_path: Path) -> None:
    assert levels_and_texts(checks.memory(computer(tmp_path / "pi", memory(8, 6)))) == [("ok", "6.4 GB of 8.6 GB free")]
    found = levels_and_texts(checks.memory(computer(tmp_path / "full", memory(8, 1, 2, 1))))
    assert found == [("warning", "1.1 GB of 8.6 GB free"), ("warning", "1.1 GB are swapped out")]


def test_a_containers_memory_is_what_its_group_allows(tmp_path: Path) -> None:
    files = memory(64, 60) | grouped(memory_max=4 * GB, memory_current=GB, memory_stat="inactive_file 0")
    found = levels_and_texts(checks.memory(computer(tmp_path, files)))
    assert found == [("ok", "3.2 GB of 68.7 GB free; a control group allows 4.3 GB")]
    files |= grouped(memory_current=4 * GB - 1000)
    assert [level for level, _ in levels_and_texts(checks.memory(computer(tmp_path, files)))] == ["warning"]


def cores(n: int) -> dict[str, object]:
    """That many cores without hardware threads; those of this process are among them."""
    cpus = [*sorted(os.sched_getaffinity(0)), *range(1000, 1000 + n)][:n]
    return {f"{CPU}/cpu{cpu}/topology/thread_siblings_list": cpu for cpu in cpus}


def test_cores_that_a_container_may_not_use_are_counted(tmp_path: Path) -> None:
    n = len(os.sched_getaffinity(0))
    assert levels_and_texts(checks.cores(computer(tmp_path / "all", cores(n))))[0][0] == "ok"
    (found,) = checks.cores(computer(tmp_path / "some", cores(n + 2)))
    assert (found.level, found.text) == ("warning", f"{n} of {n + 2} cores usable")
    (found,) = checks.cores(computer(tmp_path / "half", cores(n) | grouped(cpu_max="150000 100000")))
    assert found.level == "warning"
    assert found.text.endswith("usable; a control group allows 1.5 CPUs")
    (found,) = checks.cores(computer(tmp_path / "odd", cores(n) | grouped(cpu_max=f"{n}50000 100000")))
    assert found.level == "warning"  # no core is missing, and a part of one is given


def test_few_open_files_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    assert levels_and_texts(checks.limits(tmp_path)) == [("problem", "64 open files at most (`ulimit -Hn`)")]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, resource.RLIM_INFINITY))
    assert levels_and_texts(checks.limits(tmp_path)) == []


def test_a_disk_that_is_nearly_full_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=999, f_frsize=1_000_000))
    assert levels_and_texts(checks.disk("logs", tmp_path)) == [("warning", f"logs in {tmp_path}: 999.0 MB free")]


def test_few_threads_of_a_container_are_a_problem(tmp_path: Path) -> None:
    assert levels_and_texts(checks.limits(computer(tmp_path / "many", grouped(pids_max="max")))) == []
    found = levels_and_texts(checks.limits(computer(tmp_path / "few", grouped(pids_max=32))))
    assert found == [("problem", "a control group allows only 32 threads")]


def test_values_that_a_system_does_not_have_are_left_out(tmp_path: Path) -> None:
    for look in (checks.clock_rates, checks.heat, checks.power, checks.huge_pages, checks.memory):
        assert levels_and_texts(look(tmp_path)) == []
    assert [found.level for found in checks.cores(tmp_path)] == ["ok"]


def test_a_folder_need_not_exist_and_one_that_is_not_ones_own_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = checks.disk("logs", tmp_path / "a" / "b")
    assert (found.level, found.text.startswith(f"logs in {tmp_path}/a/b: ")) == ("ok", True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    (found,) = checks.disk("logs", tmp_path / "a" / "b")
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
        found = ports.listener_at(port)
        assert found is not None
        assert found.pid == os.getpid()
        assert ports.is_of(os.getpid(), os.getppid())
        assert not ports.is_of(os.getppid(), os.getpid())
    assert ports.listener_at(port) is None


def test_another_users_process_is_known_by_its_user_alone(tmp_path: Path) -> None:
    line = "0: 0100007F:15C2 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1 0 100 0 0 10 0"
    made = computer(tmp_path, {"proc/net/tcp": f"  sl  local_address\n{line}", "proc/77/comm": "sshd"})
    assert str(ports.listener_at(0x15C2, made)) == "a process of user root"
    (made / "proc/77/fd").mkdir()
    (made / "proc/77/fd/3").symlink_to("socket:[4711]")
    assert str(ports.listener_at(0x15C2, made)) == "sshd (process 77)"
    assert ports.listener_at(0x15C3, made) is None


def test_a_port_over_which_somebody_is_only_connected_has_no_listener(tmp_path: Path) -> None:
    line = "0: 0100007F:15C2 0100007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 4711 1 0 100 0 0 10 0"
    assert ports.listener_at(0x15C2, computer(tmp_path, {"proc/net/tcp": f"  sl  local_address\n{line}"})) is None


def test_who_has_started_a_process_is_found_also_in_a_container_and_under_any_name(tmp_path: Path) -> None:
    made = computer(tmp_path, {"proc/77/stat": "77 (odd) 9 name) S 42 77", "proc/42/stat": "42 (front) S 1 42"})
    assert ports.is_of(77, 42, made)
    assert ports.is_of(77, 1, made)  # a container's first process
    assert not ports.is_of(77, 9, made)
