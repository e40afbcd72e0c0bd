"""`dllama-zmq pull` goes on where it was after a stop or a fault, and keeps no bytes without the hub's checksum."""

from __future__ import annotations

import signal
import time

import pytest
from command_line import finish
from hub_server import COMMIT, Hub, Repo
from puller import BIG, GGUF, TAKES_S, Puller


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["Ctrl-C", "kill"])
def test_a_stopped_pull_resumes_where_it_was(puller: Puller, hub: Hub, number: int, code: int) -> None:
    hub.faults.hold_after = 2_000_000
    with puller.started("org/m") as process:
        assert hub.faults.held.wait(TAKES_S)
        part = puller.folder / "blobs" / f"{hub.repos['org/m'].sha256(GGUF)}.dllama-zmq.incomplete"
        deadline = time.monotonic() + TAKES_S
        while not part.exists() or part.stat().st_size < 2_000_000:
            assert time.monotonic() < deadline
        process.send_signal(number)
        ended = finish(process, TAKES_S, time.monotonic())
    assert ended.code == code, ended.said
    assert (ended.out, "Traceback" in ended.err) == ("", False)
    if code == 130:
        assert ended.err.splitlines()[-1].endswith("the same command resumes the download")
    hub.faults.hold_after = None
    result = puller.run("org/m")
    assert f"  {GGUF} (3.0 MB, 1.0 MB to go)" in result.err
    assert (puller.folder / "snapshots" / COMMIT / GGUF).read_bytes() == BIG
    assert hub.fetched() == [GGUF, f"{GGUF} bytes=2000000-2999999"]
    assert not part.exists()


def test_a_connection_that_ends_early_is_made_again_and_the_transfer_continues(puller: Puller, hub: Hub) -> None:
    hub.faults.cut_after = [1_000_000, 1_500_000]
    assert puller.path("org/m").read_bytes() == BIG
    assert hub.fetched() == [GGUF, f"{GGUF} bytes=1000000-2999999", f"{GGUF} bytes=2500000-2999999"]


def test_a_fault_of_the_hub_that_passes_is_waited_for(puller: Puller, hub: Hub) -> None:
    hub.faults.status = {"/resolve/": [503, 500]}
    assert puller.path("org/m").read_bytes() == BIG


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "2"}, {"RateLimit": '"resolvers";r=0;t=2'}], ids=["Retry-After", "RateLimit"]
)
@pytest.mark.parametrize("asked", ["/api/models/", "/resolve/"])
def test_too_many_requests_are_waited_for_as_the_hub_asks_and_that_is_said_once(
    puller: Puller, hub: Hub, headers: dict[str, str], asked: str
) -> None:
    hub.faults.status, hub.faults.headers = {asked: [429]}, headers
    result = puller.run("org/m")
    assert result.code == 0, result.said
    said = f"{hub.url} has had too many requests from here and asks to wait 2 s; waiting"
    assert result.err.splitlines().count(said) == 1
    assert result.seconds > 2


def test_a_transfer_resumes_where_it_was_after_too_many_requests(puller: Puller, hub: Hub) -> None:
    hub.faults.cut_after, hub.faults.headers = [1_000_000], {"Retry-After": "1"}
    hub.faults.status = {"/resolve/": [0, 429, 429, 429, 429]}  # more often than a fault may come in a row
    assert puller.path("org/m").read_bytes() == BIG


@pytest.mark.parametrize(
    ("asked_s", "says"), [("86400", "try again in 86400 s"), ("soon", "try again in some minutes")]
)
def test_too_long_a_wait_is_not_begun(puller: Puller, hub: Hub, asked_s: str, says: str) -> None:
    hub.faults.status, hub.faults.headers = {"/resolve/": [429]}, {"Retry-After": asked_s}
    assert says in puller.run("org/m").error()


def test_a_server_that_sends_all_or_nothing_is_begun_again(puller: Puller, hub: Hub) -> None:
    hub.faults.cut_after, hub.faults.no_ranges = [1_000_000], True
    assert puller.path("org/m").read_bytes() == BIG


def test_two_pulls_of_one_file_do_not_mix(puller: Puller, hub: Hub) -> None:
    hub.faults.hold_after = 1000
    with puller.started("org/m") as first:
        assert hub.faults.held.wait(TAKES_S)
        assert "another process is downloading" in puller.run("org/m").error()
        hub.faults.let_go.set()
        assert finish(first, TAKES_S, time.monotonic()).code == 0
    assert puller.path("org/m").read_bytes() == BIG


@pytest.mark.parametrize("file", [GGUF, "README.md"], ids=["SHA-256", "Git"])
def test_bytes_without_the_hubs_checksum_are_refused_and_removed(puller: Puller, hub: Hub, file: str) -> None:
    hub.faults.corrupt = True
    assert f"{file} does not have the hub's checksum" in puller.run(f"org/m:{file}").error()
    assert puller.files() == []


def test_a_part_that_is_damaged_is_not_taken_for_the_file(puller: Puller, hub: Hub) -> None:
    part = puller.folder / "blobs" / f"{hub.repos['org/m'].sha256(GGUF)}.dllama-zmq.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1_000_000))
    assert "does not have the hub's checksum" in puller.run("org/m").error()
    assert puller.path("org/m").read_bytes() == BIG


def test_a_disk_without_the_room_is_known_before_anything_is_fetched(puller: Puller, hub: Hub) -> None:
    hub.repos["org/m"].listed_bytes = {GGUF: 1 << 49}
    assert "org/m needs 562950.0 GB more, and " in puller.run("org/m").error(2)
    assert hub.fetched() == []


@pytest.mark.parametrize("name", ["../m.gguf", "/etc/m.gguf", "a/../../m.gguf", "a\nb.gguf", "a\\b.gguf"])
def test_a_listing_with_a_file_that_leads_elsewhere_is_refused(puller: Puller, hub: Hub, name: str) -> None:
    hub.repos["org/m"] = Repo({name: b"x"})
    assert "which is not safe" in puller.run("org/m").error()


@pytest.mark.parametrize("n_bytes", [-1, 1 << 51, None, "7", 1.5])
def test_a_listing_without_a_size_that_can_be_is_refused(puller: Puller, hub: Hub, n_bytes: int) -> None:
    hub.repos["org/m"].listed_bytes = {GGUF: n_bytes}
    assert f"as the size of org/m/{GGUF}" in puller.run("org/m").error()
