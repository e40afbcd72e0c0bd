"""What `bench` finds out about the machine."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from dllama_zmq.bench import machine
from dllama_zmq.bench.machine import MemoryReader, blas_name, bytes_to_read, cpu_name
from dllama_zmq.bench.rows import product_row
from dllama_zmq.kernels import choose_kernels
from dllama_zmq.spec import FloatType

X86 = "processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7B13\n\nprocessor\t: 1\nmodel name\t: another\n"
PI = "processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"


def test_the_cpu_is_named_as_the_kernel_names_it(tmp_path: Path) -> None:
    for text, name in ((X86, "AMD EPYC 7B13"), (PI, "Raspberry Pi 4 Model B Rev 1.4")):
        (tmp_path / "cpuinfo").write_text(text)
        assert cpu_name(tmp_path / "cpuinfo") == name


def test_a_cpu_without_a_name_is_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
    assert cpu_name(tmp_path / "cpuinfo") == cpu_name(tmp_path / "no-such-file") == platform.machine()


def test_memory_products_and_blas_are_measured_in_every_round_and_in_their_units(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "MAX_READ_BYTES", 32 << 20)
    monkeypatch.setattr(machine, "WEIGHT_BYTES", 2 << 20)
    monkeypatch.setattr(machine, "BLAS_SHAPES", ((128, 256), (256, 704)))
    # Bounds that no machine which runs these tests comes near: a factor of 1000 would cross them.
    found = product_row(2, "auto", FloatType.Q4_K)
    assert found["threads"] == 2
    assert 0.1 < found["read_gb_per_s"] < 1e4
    assert 0.01 < found["blas_gmac_per_s"] < 1e5
    assert 2 <= len(found["samples_tokens_per_s"]) == found["repetitions"] <= 12
    assert all(1e7 < 0.9 * machine.WEIGHT_BYTES * speed < 1e13 for speed in found["samples_tokens_per_s"])
    assert blas_name()


def test_memory_is_read_by_simd_where_it_can_run_and_by_numpy_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MAX_READ_BYTES", 32 << 20)
    memory = MemoryReader(2)
    assert (memory.read_by, memory.n_bytes) == (choose_kernels("auto", 1).name, 32 << 20)
    assert 0 < memory.pass_s() < 10
    monkeypatch.setattr("dllama_zmq.kernels.simd_obstacle", lambda: "it is not wanted")
    memory = MemoryReader(2)
    assert memory.read_by == "numpy"
    assert 0 < memory.pass_s() < 10


def test_at_most_a_quarter_of_the_free_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_memory_bytes", lambda: 160 << 20)
    assert MemoryReader(1).n_bytes == 40 << 20


@pytest.mark.parametrize(
    ("threads", "cache_mib", "free_mib", "mib"),
    [
        (1, 32, None, 256),
        (2, 32, None, 256),
        (4, 32, None, 512),
        (1, 8, 16_000, 256),
        (2, 96, 16_000, 768),
        (16, 96, 16_000, 1024),
        (1, None, 16_000, 1024),
        (1, None, None, 1024),
        (4, 32, 400, 100),
    ],
)
def test_a_pass_reads_four_times_what_the_caches_of_its_threads_hold(
    threads: int, cache_mib: int | None, free_mib: int | None, mib: int
) -> None:
    cache, free = (None if n is None else n << 20 for n in (cache_mib, free_mib))
    assert bytes_to_read(threads, cache, free) == mib << 20
