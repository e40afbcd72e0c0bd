"""The cache of slices is bounded, checked when read, and costs nothing but itself when its folder is bad."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dllama_zmq.kept_files import KeptFiles


def a_slice(seed: int, size: int = 1000) -> tuple[str, np.ndarray]:
    data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    return hashlib.sha256(data).hexdigest(), data


def keep(cache: KeptFiles, sha256: str, data: np.ndarray) -> bool:
    """Whether it could be kept."""
    part = cache.part(sha256, len(data), begin=True)
    if part is None:
        return False
    if not part.append(data):
        return False
    part.keep()
    return cache.has(sha256, len(data))


def test_a_kept_slice_is_there_for_the_next_worker(tmp_path: Path) -> None:
    sha256, data = a_slice(1)
    assert keep(KeptFiles(tmp_path / "slices"), sha256, data)
    later = KeptFiles(tmp_path / "slices")
    assert later.has(sha256, len(data))
    np.testing.assert_array_equal(later.read(sha256, len(data)), data)
    assert [path.name for path in (tmp_path / "slices").iterdir()] == [sha256]
    for path in (tmp_path / "slices", tmp_path / "slices" / sha256):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("cut", [False, True], ids=["altered", "truncated between look and read"])
def test_a_file_that_is_not_what_its_name_says_is_removed(
    cut: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sha256, data = a_slice(1)
    keep(KeptFiles(tmp_path), sha256, data)
    cache = KeptFiles(tmp_path)
    assert cache.has(sha256, len(data))
    (tmp_path / sha256).write_bytes(data[:500].tobytes() + (b"" if cut else bytes(500)))
    with caplog.at_level(logging.WARNING):
        assert cache.read(sha256, len(data)) is None
    assert f"{tmp_path / sha256} has been altered" in caplog.text
    assert not (tmp_path / sha256).exists()
    assert keep(cache, sha256, data)


def test_a_truncated_file_is_not_there(tmp_path: Path) -> None:
    sha256, data = a_slice(1)
    keep(KeptFiles(tmp_path), sha256, data)
    os.truncate(tmp_path / sha256, 999)
    assert not KeptFiles(tmp_path).has(sha256, len(data))
    assert keep(KeptFiles(tmp_path), sha256, data)


@pytest.mark.parametrize("suffix", ["", ".part"])
@pytest.mark.parametrize("kind", ["symbolic link", "pipe", "folder"])
def test_a_name_that_is_no_file_is_neither_read_nor_written_to(kind: str, suffix: str, tmp_path: Path) -> None:
    sha256, data = a_slice(1)
    folder, elsewhere = tmp_path / "slices", tmp_path / "elsewhere"
    folder.mkdir(mode=0o700)
    elsewhere.write_bytes(data.tobytes())
    at = folder / f"{sha256}{suffix}"
    if kind == "symbolic link":
        at.symlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(at)
    else:
        at.mkdir()
    cache = KeptFiles(folder)
    assert not cache.has(sha256, len(data))
    assert cache.part(sha256, len(data), begin=False) is None
    assert cache.read(sha256, len(data)) is None
    keep(cache, sha256, data)
    assert elsewhere.read_bytes() == data.tobytes()
    assert not at.is_symlink()


@contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    """As on a full disk: what is written beyond is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_costs_the_cache_and_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (first, one), (second, two) = a_slice(1, 100), a_slice(2)
    cache = KeptFiles(tmp_path)
    assert keep(cache, first, one)
    with files_of_at_most(500), caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert not keep(cache, second, two)
    assert caplog.text.count("no more weights are kept in") == 1
    assert "File too large" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [first]  # nothing half stays on a full disk
    np.testing.assert_array_equal(cache.read(first, 100), one)


def test_a_disk_that_is_full_for_two_slices_at_once_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = KeptFiles(tmp_path)
    parts = [cache.part(a_slice(seed)[0], 1000, begin=True) for seed in (1, 2)]
    with files_of_at_most(500), caplog.at_level(logging.WARNING):
        for part in parts:
            assert part is not None
            assert not part.append(a_slice(1)[1])
    assert caplog.text.count("no more weights are kept in") == 1


@pytest.mark.parametrize("bad", ["a file is there", "others can write", "a group can write", "it is another user's"])
def test_a_folder_that_cannot_be_used_costs_the_cache_and_one_line(
    bad: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, own = tmp_path / "slices", os.getuid()
    if bad == "a file is there":
        folder.write_bytes(b"")
    else:
        folder.mkdir()
        folder.chmod({"others can write": 0o702, "a group can write": 0o720}.get(bad, 0o700))
    if bad == "it is another user's":
        monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with caplog.at_level(logging.WARNING):
        cache = KeptFiles(folder)
        for seed in range(3):
            assert not keep(cache, *a_slice(seed))
    assert caplog.text.count(f"no more weights are kept in {folder} for the next start") == 1


def test_the_slices_that_were_not_used_for_longest_make_room(tmp_path: Path) -> None:
    slices = [a_slice(seed) for seed in range(5)]
    for age, (sha256, data) in enumerate(slices[:3]):
        assert keep(KeptFiles(tmp_path, 3000), sha256, data)
        os.utime(tmp_path / sha256, (1000 + age, 1000 + age))
    assert KeptFiles(tmp_path, 3000).has(*_sized(slices[0]))  # it was the oldest, and is used now
    assert keep(KeptFiles(tmp_path, 3000), *slices[3])
    assert {path.name for path in tmp_path.iterdir()} == {slices[i][0] for i in (0, 2, 3)}
    assert keep(KeptFiles(tmp_path, 3000), *slices[4])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 3000


def test_a_worker_removes_none_of_its_own_slices_for_another_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a cache that is smaller than a node would never have what is read first."""
    slices = [a_slice(seed) for seed in range(5)]
    with caplog.at_level(logging.WARNING):
        kept = [keep(cache, *one) for cache in [KeptFiles(tmp_path, 3000)] for one in slices]
    assert kept == [True, True, True, False, False]
    assert "3000 bytes are all that it may hold" in caplog.text
    again = KeptFiles(tmp_path, 3000)
    assert [again.has(*_sized(one)) for one in slices] == kept


def test_slices_that_a_worker_has_found_there_are_not_removed_for_its_next_ones(tmp_path: Path) -> None:
    slices = [a_slice(seed) for seed in range(5)]
    for one in slices[:3]:
        assert keep(KeptFiles(tmp_path, 3000), *one)
    cache = KeptFiles(tmp_path, 3000)
    assert all(cache.has(*_sized(one)) for one in slices[:2])
    assert [keep(cache, *one) for one in slices[3:]] == [True, False]
    assert {path.name for path in tmp_path.iterdir()} == {slices[i][0] for i in (0, 1, 3)}


def test_the_beginning_of_a_slice_that_a_worker_resumes_is_not_evicted_for_its_next_slices(tmp_path: Path) -> None:
    (sha256, data), other = a_slice(1), a_slice(2)
    begun = KeptFiles(tmp_path).part(sha256, len(data), begin=True)
    assert begun is not None
    assert begun.append(data[:400])
    begun.close()
    cache = KeptFiles(tmp_path, 1500)
    part = cache.part(sha256, len(data), begin=False)
    assert part is not None
    assert not keep(cache, *other)
    assert part.append(data[400:])
    part.keep()
    np.testing.assert_array_equal(cache.read(sha256, len(data)), data)


def test_to_ask_for_a_beginning_that_is_not_there_makes_no_room(tmp_path: Path) -> None:
    kept = a_slice(1)
    assert keep(KeptFiles(tmp_path, 1000), *kept)
    assert KeptFiles(tmp_path, 1000).part(a_slice(2)[0], 1000, begin=False) is None
    assert KeptFiles(tmp_path, 1000).has(*_sized(kept))


def test_files_of_others_in_the_folder_stay_and_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(bytes(5000))
    os.utime(tmp_path / "notes.txt", (1000, 1000))
    for seed in range(3):
        assert keep(KeptFiles(tmp_path, 1000), *a_slice(seed))
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", a_slice(2)[0]}


def test_without_a_bound_half_of_what_the_disk_would_have_free_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert keep(KeptFiles(tmp_path), *a_slice(0))
    monkeypatch.setattr(os, "statvfs", lambda folder: SimpleNamespace(f_bavail=3, f_frsize=1000))
    cache = KeptFiles(tmp_path)  # of 4000 bytes
    assert cache.has(*_sized(a_slice(0)))
    assert [keep(cache, *a_slice(seed)) for seed in (1, 2)] == [True, False]


def test_without_room_nothing_is_kept_or_made(tmp_path: Path) -> None:
    cache = KeptFiles(tmp_path / "slices", 0)
    assert not keep(cache, *a_slice(1))
    assert not (tmp_path / "slices").exists()


def test_two_workers_write_a_slice_only_once_and_the_beginning_goes_to_who_has_it(tmp_path: Path) -> None:
    sha256, data = a_slice(1)
    one, other = KeptFiles(tmp_path), KeptFiles(tmp_path)
    part = one.part(sha256, len(data), begin=True)
    assert part is not None
    assert part.append(data[:400])
    assert other.part(sha256, len(data), begin=True) is None
    assert part.append(data[400:])
    part.keep()
    assert other.has(sha256, len(data))
    np.testing.assert_array_equal(other.read(sha256, len(data)), data)


def test_the_beginning_of_a_slice_is_there_for_the_next_worker(tmp_path: Path) -> None:
    sha256, data = a_slice(1)
    part = KeptFiles(tmp_path).part(sha256, len(data), begin=True)
    assert part is not None
    assert part.append(data[:400])
    part.close()
    later = KeptFiles(tmp_path).part(sha256, len(data), begin=False)
    assert later is not None
    found = np.zeros(len(data), np.uint8)
    assert later.read(found) == 400
    np.testing.assert_array_equal(found[:400], data[:400])
    assert later.append(data[400:])
    later.keep()
    np.testing.assert_array_equal(KeptFiles(tmp_path).read(sha256, len(data)), data)


def test_a_beginning_that_is_longer_than_its_slice_is_begun_anew(tmp_path: Path) -> None:
    sha256, data = a_slice(1)
    (tmp_path / f"{sha256}.part").write_bytes(bytes(len(data) + 500))
    part = KeptFiles(tmp_path).part(sha256, len(data), begin=False)
    assert part is not None
    assert part.append(data)
    part.keep()
    np.testing.assert_array_equal(KeptFiles(tmp_path).read(sha256, len(data)), data)


def test_a_slice_that_another_worker_makes_whole_while_this_one_opens_it_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256, data = a_slice(1)
    (tmp_path / f"{sha256}.part").write_bytes(data.tobytes())
    lock = fcntl.flock

    def made_whole_before(descriptor: int, how: int) -> None:
        (tmp_path / f"{sha256}.part").rename(tmp_path / sha256)
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", made_whole_before)
    cache = KeptFiles(tmp_path)
    assert cache.part(sha256, len(data), begin=True) is None
    np.testing.assert_array_equal(cache.read(sha256, len(data)), data)


def test_a_beginning_that_another_worker_removes_while_this_one_looks_does_not_cost_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache, (sha256, data) = KeptFiles(tmp_path), a_slice(1)
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "lexists", lambda path: True)  # it was there a moment ago
        assert cache.part(sha256, len(data), begin=False) is None
    assert keep(cache, sha256, data)
    assert not caplog.text


def test_a_slice_that_another_worker_removes_or_makes_whole_meanwhile_does_not_end_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gone = "0" * 64 + ".part"
    with monkeypatch.context() as patch:
        listed = os.listdir
        patch.setattr(os, "listdir", lambda folder: [gone, *listed(folder)])  # there when the folder is listed
        cache = KeptFiles(tmp_path)
    sha256, data = a_slice(1)
    part = cache.part(sha256, len(data), begin=True)
    assert part is not None
    assert part.append(data)
    (tmp_path / f"{sha256}.part").unlink()
    part.keep()
    assert not cache.has(sha256, len(data))
    assert keep(cache, *a_slice(2))
    assert not caplog.text


def _sized(one: tuple[str, np.ndarray]) -> tuple[str, int]:
    return one[0], len(one[1])


def test_a_mapped_file_stays_valid_when_it_is_removed(tmp_path: Path) -> None:
    sha256, data = a_slice(1)
    keep(KeptFiles(tmp_path), sha256, data)
    mapped = KeptFiles(tmp_path).map(sha256, len(data))
    (tmp_path / sha256).unlink()
    assert mapped is not None
    np.testing.assert_array_equal(mapped, data)
    assert not mapped.flags.writeable


@pytest.mark.parametrize("why", ["no such file", "another size", "others can write there", "nothing is to be kept"])
def test_what_cannot_be_trusted_is_not_mapped(why: str, tmp_path: Path) -> None:
    sha256, data = a_slice(1)
    keep(KeptFiles(tmp_path), sha256, data)
    if why == "no such file":
        (tmp_path / sha256).unlink()
    elif why == "another size":
        (tmp_path / sha256).write_bytes(bytes(len(data) + 1))
    elif why == "others can write there":
        tmp_path.chmod(0o777)
    cache = KeptFiles(tmp_path, 0 if why == "nothing is to be kept" else None)
    assert cache.map(sha256, len(data)) is None


def test_a_mapped_file_is_not_removed_to_make_room(tmp_path: Path) -> None:
    kept, (other, data) = a_slice(1), a_slice(2)
    assert keep(KeptFiles(tmp_path, 1500), *kept)
    cache = KeptFiles(tmp_path, 1500)
    assert cache.map(*_sized(kept)) is not None
    assert not keep(cache, other, data)
    assert {path.name for path in tmp_path.iterdir()} == {kept[0]}
