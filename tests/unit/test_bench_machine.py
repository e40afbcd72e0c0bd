"""What `bench` tells of the machine."""

from __future__ import annotations

import platform

import pytest

from dllama_zmq.bench import bandwidth
from dllama_zmq.bench.bandwidth import Reader, read_bandwidth
from dllama_zmq.bench.blas import blas_macs_per_s, blas_name
from dllama_zmq.bench.host import cpu_name, read_proc
from dllama_zmq.bench.product import WEIGHT_BYTES, read_and_multiply
from dllama_zmq.kernels import choose_kernels

X86 = "processor\t: 0\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7B13\n\nprocessor\t: 1\nmodel name\t: another\n"
PI = "processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"


def test_the_cpu_is_named_as_the_kernel_names_it() -> None:
    assert cpu_name(X86) == "AMD EPYC 7B13"
    assert cpu_name(PI) == "Raspberry Pi 4 Model B Rev 1.4"


def test_a_cpu_without_a_name_is_its_architecture() -> None:
    assert cpu_name("processor\t: 0\n") == platform.machine()


def test_what_proc_does_not_have_is_empty() -> None:
    assert read_proc("no-such-file") == ""


def test_bandwidth_and_blas_are_in_units_of_bytes_and_macs_per_second() -> None:
    # Bounds that no machine which runs these tests comes near: a factor of 1000 would cross them.
    assert 1e8 < read_bandwidth(2) < 1e13
    assert 1e7 < blas_macs_per_s(1) < 1e14
    assert blas_name()


def test_memory_is_read_by_simd_where_it_can_run_and_by_numpy_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "MOST_BYTES", 32 << 20)
    reader = Reader(2)
    assert (reader.by, reader.n_bytes) == (choose_kernels("auto", 1).name, 32 << 20)
    assert 0 < reader.pass_s() < 10
    monkeypatch.setattr("dllama_zmq.kernels._simd_obstacle", lambda: "it is not wanted")
    reader = Reader(2)
    assert reader.by == "numpy"
    assert 0 < reader.pass_s() < 10


def test_no_more_than_a_quarter_of_the_free_memory_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "free_memory_bytes", lambda: 160 << 20)
    assert Reader(1).n_bytes == 40 << 20


def test_products_are_counted_in_every_round_beside_a_pass_over_memory() -> None:
    found = read_and_multiply(1, choose_kernels("auto", 1))
    assert 2 <= len(found.products_per_s) <= 12
    assert all(1e7 < WEIGHT_BYTES * speed < 1e13 for speed in found.products_per_s)
    assert 1e8 < found.read_bytes_per_s < 1e13
