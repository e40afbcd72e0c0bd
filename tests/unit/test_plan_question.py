"""What `plan` makes of a running cluster: its computers, what they have, and its slowest link."""

from __future__ import annotations

import pytest

from dllama_zmq.bench.speed import Link
from dllama_zmq.bus.text_messages import LinkStatus
from dllama_zmq.cli.plan_question import counts_of, link_of, size_of, slowest_link


def test_the_slowest_of_the_links_to_other_computers_counts() -> None:
    links = [
        LinkStatus("here", round_trip_s=1.0, to_bytes_per_s=1.0, from_bytes_per_s=1.0),
        LinkStatus("pi1", round_trip_s=0.3e-3, to_bytes_per_s=1e8, from_bytes_per_s=0.9e8),
        LinkStatus("pi2", round_trip_s=0.5e-3, to_bytes_per_s=0.8e8, from_bytes_per_s=1e8),
        LinkStatus("pi3", note="it is absent"),
    ]
    assert slowest_link(links, {"pi1", "pi2", "pi3"}) == Link(0.5e-3, 0.8e8)
    assert slowest_link(links, {"pi3"}) is None


def test_links_sizes_and_counts_are_read_as_people_write_them() -> None:
    assert link_of("1Gbit") == Link(0.2e-3, 125e6)
    assert link_of("100 Mbit/s,0.5ms") == Link(0.5e-3, 12.5e6)
    fast = link_of("2.5gbit, 80us")
    assert (fast.round_trip_s, fast.bytes_per_s) == (pytest.approx(80e-6), 312.5e6)
    assert (size_of("4GB"), size_of("512 MB"), size_of("1.5g")) == (4_000_000_000, 512_000_000, 1_500_000_000)
    assert counts_of("4, 1,4") == [1, 4]
