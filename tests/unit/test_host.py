"""Free memory and cores of a computer, read from made-up /proc and /sys that hold what kernels and containers write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dllama_zmq.host import free_memory_bytes, host_name, is_stopped, largest_cache_bytes, usable_cores

MB = 1 << 20
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)


class Tree:
    """A folder with /proc and /sys of a computer with 16,000 MB to be had."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self.write("proc/meminfo", f"MemTotal: 20000 kB\nMemFree: 100 kB\nMemAvailable: {16000 * 1024} kB\n")

    def write(self, name: str, text: object) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")

    def v2(self, path: str, mounted: str = "/") -> None:
        """This process is in group `path` of version 2, mounted from `mounted` on."""
        self.write("proc/self/cgroup", f"0::{path}")
        self.write("proc/self/mountinfo", "29 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + V2_MOUNT.format(root=mounted))

    def v1(self, path: str, mounted: str = "/") -> None:
        self.write("proc/self/cgroup", f"4:memory:{path}\n2:cpu,cpuacct:{path}\n1:name=systemd:/init\n0::/")
        self.write("proc/self/mountinfo", V1_MOUNTS.format(root=mounted))

    def v2_memory(self, group: str, limit: object, used: int, files: int = 0, high: object = "max") -> None:
        """A group of version 2: its limits and what it uses, `files` of it pages of files."""
        folder = f"sys/fs/cgroup/{group}"
        self.write(f"{folder}/memory.max", limit)
        self.write(f"{folder}/memory.high", high)
        self.write(f"{folder}/memory.current", used)
        stat = f"anon {used - files}\ninactive_file {files // 2}\nactive_file {files // 2}\nslab_reclaimable 0"
        self.write(f"{folder}/memory.stat", stat)

    def v1_memory(self, group: str, limit: int, used: int, files: int = 0) -> None:
        folder = f"sys/fs/cgroup/memory/{group}"
        self.write(f"{folder}/memory.limit_in_bytes", limit)
        self.write(f"{folder}/memory.usage_in_bytes", used)
        self.write(f"{folder}/memory.stat", f"inactive_file 0\ntotal_inactive_file {files}\ntotal_active_file 0")

    def cores(self, *siblings: str) -> None:
        """Which hardware threads the CPUs of this process share a core with."""
        for cpu, threads in zip(sorted(os.sched_getaffinity(0)), siblings, strict=False):
            self.write(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", threads)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_without_control_groups_the_free_memory_is_what_the_computer_has(tree: Tree) -> None:
    assert free_memory_bytes(tree.root) == 16000 * MB


@pytest.mark.parametrize(("overcommit", "free_mb"), [(0, 16000), (1, 16000), (2, 700)])
def test_where_the_kernel_never_overcommits_what_it_has_promised_is_not_free(
    tree: Tree, overcommit: int, free_mb: int
) -> None:
    with (tree.root / "proc/meminfo").open("a") as meminfo:
        meminfo.write(f"CommitLimit: {1000 * 1024} kB\nCommitted_AS: {300 * 1024} kB\n")
    tree.write("proc/sys/vm/overcommit_memory", overcommit)
    assert free_memory_bytes(tree.root) == free_mb * MB


def test_a_computer_that_reports_nothing_is_not_guessed_at(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path) is None
    assert usable_cores(tmp_path) >= 1


def test_a_containers_limit_counts_less_what_it_uses_and_cannot_be_taken_back(tree: Tree) -> None:
    tree.v2("/box")
    tree.v2_memory("box", 1000 * MB, used=700 * MB, files=400 * MB)
    assert free_memory_bytes(tree.root) == 700 * MB


def test_a_group_above_with_a_smaller_limit_counts(tree: Tree) -> None:
    tree.v2("/slice/box")
    tree.v2_memory("slice", 800 * MB, used=600 * MB)
    tree.v2_memory("slice/box", 1000 * MB, used=100 * MB)
    assert free_memory_bytes(tree.root) == 200 * MB


def test_a_group_without_a_limit_sets_none(tree: Tree) -> None:
    tree.v2("/box")
    tree.v2_memory("box", "max", used=100 * MB)
    assert free_memory_bytes(tree.root) == 16000 * MB


def test_the_mark_from_which_on_a_group_is_slowed_down_is_a_limit(tree: Tree) -> None:
    tree.v2("/box")
    tree.v2_memory("box", 1000 * MB, used=0, high=300 * MB)
    assert free_memory_bytes(tree.root) == 300 * MB


def test_a_group_that_uses_more_than_its_limit_has_nothing_left(tree: Tree) -> None:
    tree.v2("/box")
    tree.v2_memory("box", 100 * MB, used=200 * MB)
    assert free_memory_bytes(tree.root) == 0


@pytest.mark.parametrize(
    ("path", "mounted"),
    [("/docker/abc", "/docker/abc"), ("/", "/"), ("/../../outside", "/"), ("/docker/unknown", "/docker/abc")],
    ids=["a name of the host's", "a namespace of its own", "moved out of its namespace", "another name"],
)
def test_a_container_finds_its_limit_at_the_mount_point_whatever_its_group_is_called(
    tree: Tree, path: str, mounted: str
) -> None:
    tree.v2(path, mounted)
    tree.v2_memory(".", 512 * MB, used=0)
    assert free_memory_bytes(tree.root) == 512 * MB


def test_version_1_has_the_same_limits_in_other_files(tree: Tree) -> None:
    tree.v1("/docker/abc")
    tree.v1_memory("docker/abc", 1000 * MB, used=900 * MB, files=300 * MB)
    tree.v1_memory("docker", 9223372036854771712, used=900 * MB)
    tree.v1_memory(".", 9223372036854771712, used=9000 * MB)
    assert free_memory_bytes(tree.root) == 400 * MB


def test_a_mount_point_with_a_space_in_its_name_is_found(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "0::/box")
    tree.write("proc/self/mountinfo", "30 23 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw")
    tree.write("my groups/box/memory.max", 5 * MB)
    tree.write("my groups/box/memory.current", 0)
    assert free_memory_bytes(tree.root) == 5 * MB


def test_two_hardware_threads_of_one_core_count_once(tree: Tree) -> None:
    n_cpus = len(os.sched_getaffinity(0))
    tree.cores(*["0-99"] * n_cpus)
    assert usable_cores(tree.root) == 1
    tree.cores(*map(str, range(n_cpus)))
    assert usable_cores(tree.root) == n_cpus


@pytest.mark.parametrize(
    ("quota", "at_most"), [("max 100000", 1 << 20), ("100000 100000", 1), ("190000 100000", 1), ("50000 100000", 1)]
)
def test_a_quota_of_cpus_is_rounded_down_to_one_at_least(tree: Tree, quota: str, at_most: int) -> None:
    tree.v2("/slice/box")
    tree.write("sys/fs/cgroup/slice/box/cpu.max", "max 100000")
    tree.write("sys/fs/cgroup/slice/cpu.max", quota)
    assert usable_cores(tree.root) == min(len(os.sched_getaffinity(0)), at_most)


@pytest.mark.parametrize(("quota", "at_most"), [(-1, 1 << 20), (100000, 1), (150000, 1)])
def test_version_1_has_its_quota_in_two_files(tree: Tree, quota: int, at_most: int) -> None:
    tree.v1("/docker/abc")
    tree.write("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us", quota)
    tree.write("sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us", 100000)
    assert usable_cores(tree.root) == min(len(os.sched_getaffinity(0)), at_most)


def test_this_computer_has_a_name_memory_and_cores() -> None:
    assert host_name()
    assert (free_memory_bytes() or 0) > 10 * MB
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


def test_the_largest_cache_of_a_core_is_that_of_any_level(tree: Tree) -> None:
    assert largest_cache_bytes(tree.root) is None
    for index, size in enumerate(("32K", "32K", "1024K", "32768K", "odd")):
        tree.write(f"sys/devices/system/cpu/cpu0/cache/index{index}/size", size)
    assert largest_cache_bytes(tree.root) == 32 * MB


@pytest.mark.parametrize(
    ("stat", "stopped"),
    [
        ("7 (python3) T 1 7 7 0", True),
        ("7 (a) T (b) S 1 7 7 0", False),  # the name of a program may hold anything
        ("7 (a) S (b) T 1 7 7 0", True),
        ("7 (python3) S 1 7 7 0", False),
        ("7 (python3) D 1 7 7 0", False),  # waits for a disk
        ("7 (python3) t 1 7 7 0", False),  # stopped by a debugger
        ("", False),
    ],
)
def test_a_process_is_stopped_if_its_state_is_t(stat: str, stopped: bool, tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.write("proc/7/stat", stat)
    assert is_stopped(7, tree.root) is stopped
    assert not is_stopped(8, tree.root), "there is no such process"
