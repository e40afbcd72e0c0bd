"""What `plan` says of numbers of nodes: memory against what there is, speed by given rates, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from dllama_zmq.bench.cases import Nodes
from dllama_zmq.bench.outlook import (
    Host,
    Speeds,
    Wanted,
    advice,
    fastest,
    impossible,
    outlook,
    to_measure,
    too_little,
)
from dllama_zmq.bench.speed import Encryption, Link, Rates
from dllama_zmq.errors import PlanError
from dllama_zmq.shapes import shape
from dllama_zmq.sharding import Plan, node_memory

LLAMA8B = shape("llama3-8b")
GB = 10**9
RATES = {
    Nodes(1, 2): Rates(60e9, 300e9, 20e-6),
    Nodes(1, 1): Rates(30e9, 150e9, 20e-6),
    Nodes(2, 1): Rates(60e9, 280e9, 60e-6),
}


def wanted(
    here_bytes: int | None, elsewhere_bytes: int | None, counts: Sequence[int] = (1, 2, 4), sync="f32"
) -> Wanted:
    """Llama 3 8B, a node of two threads on each computer."""

    def hosts(n_nodes: int) -> list[Host]:
        others = [Host(f"pi{i}", [f"worker{i}"], 2, elsewhere_bytes) for i in range(1, n_nodes)]
        return [Host("this computer", ["root"], 2, here_bytes), *others]

    return Wanted("big.gguf", LLAMA8B, 4096, "f16", sync, "none", counts, hosts)


def speeds(mbit: float = 1000, trip_s: float = 0.2e-3, assumed: bool = False) -> Speeds:
    return Speeds(rates=RATES, link=Link(trip_s, mbit * 1e6 / 8), assumed=assumed)


def test_the_memory_of_each_node_is_the_plan_s_own_estimate() -> None:
    found = outlook(wanted(None, None), 2, None)
    plan = Plan.make(LLAMA8B, 2)
    for node, need in enumerate(found.memory):
        memory = node_memory(plan, node, 4096)
        assert need.total_bytes == memory.total
        assert (need.weight_bytes, need.kv_bytes) == (memory.weights, memory.kv_cache)
        assert need.weight_bytes + need.kv_bytes + need.other_bytes == need.total_bytes
        # 32 layers, 4 of 8 KV heads of 128, keys and values in f16, 4096 positions
        assert need.kv_bytes == 32 * 4 * 128 * 2 * 2 * 4096
    assert [need.node for need in found.memory] == ["root", "worker1"]


def test_a_number_of_nodes_fits_if_every_computer_has_what_its_nodes_need() -> None:
    needs = outlook(wanted(None, None), 2, None).memory
    root, worker = (need.total_bytes for need in needs)
    assert outlook(wanted(root, worker), 2, None).fits is True
    assert outlook(wanted(root - 1, worker), 2, None).fits is False
    assert outlook(wanted(root, worker - 1), 2, None).fits is False
    assert outlook(wanted(root, None), 2, None).fits is None
    assert outlook(wanted(root - 1, None), 2, None).fits is False


def test_nodes_of_one_computer_count_together() -> None:
    def together(n_nodes: int) -> list[Host]:
        return [Host("this computer", ["root", "worker1"], 1, 4 * GB)]

    asked = Wanted("big.gguf", LLAMA8B, 4096, "f16", "f32", "none", [2], together)
    found = outlook(asked, 2, None)
    assert found.hosts[0].total_bytes == sum(need.total_bytes for need in found.memory)
    assert found.fits is False
    assert "for the 2 of them on this computer" in too_little(asked, found)
    assert to_measure(asked) == [Nodes(2, 1)]


def test_bytes_of_a_token_are_those_of_each_worker_s_link_and_of_the_root_s() -> None:
    found = outlook(wanted(None, None), 4, None)
    payload = (2 * 64 + 1) * 4096 * 4  # 64 sums, 64 partial sums and x
    assert payload < found.worker_wire_bytes < 1.01 * payload
    assert found.root_wire_bytes == pytest.approx(3 * found.worker_wire_bytes, rel=1e-3)
    assert outlook(wanted(None, None), 1, None).root_wire_bytes == 0


def test_only_what_leaves_the_root_s_computer_has_what_curve_adds() -> None:
    def hosts(n_nodes: int) -> list[Host]:
        return [
            Host("this computer", ["root", "worker1"], 1, None),
            Host("pi2", ["worker2"], 2, None),
            Host("pi3", ["worker3"], 2, None),
        ]

    sealed, bare = (outlook(Wanted("m", LLAMA8B, 512, "f16", "f32", s, [4], hosts), 4, None) for s in ("curve", "none"))
    n_bytes = 33 * (3 + 2 * 64 + 2 * 64 + 4)  # for each frame of a token, to one worker and back
    assert sealed.worker_wire_bytes - bare.worker_wire_bytes == n_bytes
    assert sealed.root_wire_bytes - bare.root_wire_bytes == 2 * n_bytes


def test_nodes_that_cannot_be_are_named_with_the_reason() -> None:
    assert [(one.nodes, one.why) for one in impossible(LLAMA8B)] == [(64, "32 heads cannot be split over 64 nodes.")]
    with pytest.raises(PlanError, match=r"^big.gguf: 32 heads cannot be split over 64 nodes. .* over 1, 2, 4, 8, 16"):
        outlook(wanted(None, None), 64, None)


def test_an_exchange_between_computers_takes_what_it_adds_between_two_nodes_here() -> None:
    assert speeds().message_s == pytest.approx(40e-6)
    found = outlook(wanted(None, None), 2, speeds())
    assert found.decoding is not None
    assert found.decoding.exchange_s == pytest.approx(65 * (20e-6 + 40e-6))
    assert found.decoding.round_trip_s == pytest.approx(65 * 0.2e-3)
    assert found.decoding_per_s == found.decoding.tokens_per_s


def test_costs_in_the_measured_link_are_not_counted_again() -> None:
    measured = Speeds(rates=RATES, link=Link(0.2e-3, 125e6), measured=True)
    assert measured.message_s == 0.0
    assert to_measure(wanted(None, None), measured=True) == [Nodes(1, 2)]
    slow_alone = RATES | {Nodes(1, 1): Rates(30e9, 150e9, 90e-6)}
    assert Speeds(rates=slow_alone, link=Link(0.2e-3, 125e6)).message_s == 0.0


def test_encryption_is_part_of_a_link_between_computers() -> None:
    encrypted = Speeds(rates=RATES, link=Link(0.2e-3, 125e6), encryption=Encryption(5e-6, 1e-9))
    found, is_open = (outlook(wanted(None, None), 2, speed).decoding for speed in (encrypted, speeds()))
    assert found is not None
    assert is_open is not None
    assert found.round_trip_s == pytest.approx(65 * (0.2e-3 + 2 * 5e-6))
    assert found.bytes_s == pytest.approx(is_open.bytes_s * (1 / 125e6 + 1e-9) * 125e6)


def test_nodes_of_one_computer_have_no_link() -> None:
    def here(n_nodes: int) -> list[Host]:
        return [Host("this computer", ["root", "worker1"][:n_nodes], 1, None)]

    asked = Wanted("big.gguf", LLAMA8B, 16, "f16", "f32", "none", [1, 2], here)
    assert to_measure(asked) == [Nodes(1, 1), Nodes(2, 1)]
    found = outlook(asked, 2, speeds(assumed=True))
    assert found.decoding is not None
    assert (found.decoding.round_trip_s, found.decoding.bytes_s) == (0.0, 0.0)
    assert not any("--link" in one for one in advice(asked, [found], speeds(assumed=True), cores=2))
    # A prompt has no more tokens than there is room for.
    longer = outlook(replace(asked, n_positions=4096), 2, speeds())
    assert found.prompt is not None
    assert longer.prompt is not None
    assert found.prompt.compute_s < longer.prompt.compute_s / 2


def test_the_fastest_is_said_where_there_is_a_choice() -> None:
    roomy = wanted(64 * GB, 64 * GB)
    assert advice_for(roomy, speeds())[0].startswith("fastest to decode: ")
    assert not any("fastest" in one for one in advice_for(wanted(64 * GB, 64 * GB, counts=[2]), speeds()))


def test_rates_that_are_needed_are_those_of_every_computer_and_of_an_exchange_here() -> None:
    assert to_measure(wanted(None, None)) == [Nodes(1, 1), Nodes(1, 2), Nodes(2, 1)]
    assert to_measure(wanted(None, None, counts=[1])) == [Nodes(1, 2)]


def test_the_fastest_is_chosen_among_those_that_may_fit() -> None:
    few = wanted(4 * GB, None)  # a node of two fits here, the only one does not
    found = [outlook(few, n, speeds()) for n in (1, 2, 4)]
    assert [one.fits for one in found] == [False, None, None]
    best = fastest(found)
    assert best is not None
    assert best.decoding_per_s == max(one.decoding_per_s or 0 for one in found[1:])
    assert fastest([found[0]]) is None
    assert fastest([outlook(few, 2, None)]) is None


def advice_for(asked: Wanted, speed: Speeds | None = None) -> list[str]:
    return advice(asked, [outlook(asked, n, speed) for n in asked.counts], speed, cores=2)


def test_too_little_memory_is_said_with_what_would_do() -> None:
    (here,) = advice_for(wanted(4 * GB, 4 * GB))
    assert here.startswith("big.gguf needs ")
    assert "this computer has 4.0 GB free; 2 nodes need" in here
    (there,) = advice_for(wanted(5 * GB, 2 * GB, counts=[2]))
    assert there.startswith("2 nodes: pi1 needs ")
    assert "for worker1 and has 2.0 GB: free some there" in there


def test_an_unknown_figure_is_named_with_the_flag_that_gives_it() -> None:
    said = advice_for(wanted(64 * GB, None), speeds(assumed=True))
    assert any("GB each on 2 nodes" in one and "--memory SIZE" in one for one in said)
    assert any("the link is assumed; give yours with --link RATE,TIME" in one for one in said)
    assert not any("--link" in one for one in advice_for(wanted(64 * GB, 64 * GB), speeds()))


def test_a_slow_link_is_said_with_what_helps() -> None:
    bytes_said = advice_for(wanted(64 * GB, 64 * GB), speeds(mbit=100, trip_s=1e-5))
    assert any("mostly by its bytes: --sync q80" in one for one in bytes_said)
    q80_said = advice_for(wanted(64 * GB, 64 * GB, sync="q80"), speeds(mbit=10, trip_s=1e-5))
    assert any("a faster link helps" in one for one in q80_said)
    trips_said = advice_for(wanted(64 * GB, 64 * GB), speeds(mbit=10_000, trip_s=3e-3))
    assert any("mostly by its round trips of 3.00 ms" in one for one in trips_said)


def test_more_threads_than_cores_are_said() -> None:
    def here(n_nodes: int) -> list[Host]:
        return [Host("this computer", [f"n{i}" for i in range(n_nodes)], 1, None)]

    asked = Wanted("m", LLAMA8B, 512, "f16", "f32", "none", [1, 2, 4, 8], here)
    assert advice_for(asked)[-1] == "4 or 8 nodes share 2 cores of this computer: add nodes with computers"
