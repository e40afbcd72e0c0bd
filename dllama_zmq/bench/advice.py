"""Advice about an outlook, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dllama_zmq.bench.outlook import Outlook, Speeds, Wanted, fastest
from dllama_zmq.reporting import human_bytes, plural
from dllama_zmq.root.fitting import Wish, shortage
from dllama_zmq.sharding import Plan

_MUCH = 0.3  # of a token's time


def advice(wanted: Wanted, outlooks: Sequence[Outlook], speeds: Speeds | None, cores: int) -> list[str]:
    """Sentences, the most useful first. cores: of this computer."""
    found = list(_of_speed(wanted, outlooks, speeds))
    found += dict.fromkeys(too_little(wanted, one) for one in outlooks if one.fits is False)
    return found + list(_of_the_unknown(outlooks, speeds)) + list(_of_cores(wanted, outlooks, cores))


def too_little(wanted: Wanted, one: Outlook) -> str:
    """Which computers lack memory for a number of nodes, and what would fit."""
    here, *others = one.hosts
    if here.fits is False:
        plan = Plan.make(wanted.spec, one.nodes)
        wish = Wish(plan, range(len(here.nodes)), wanted.n_positions, wanted.kv_type, wanted.model)
        return shortage(wish, here.free_bytes)
    short = next(host for host in others if host.fits is False)
    return (
        f"{one.nodes} nodes: {short.host} needs {human_bytes(short.total_bytes)} for {' and '.join(short.nodes)} and "
        f"has {human_bytes(short.free_bytes or 0)}: free some there, use more nodes, or keep fewer positions (-c)"
    )


def _of_speed(wanted: Wanted, outlooks: Sequence[Outlook], speeds: Speeds | None) -> Iterator[str]:
    best = fastest(outlooks)
    if best is None or best.decoding is None or best.prompt is None or speeds is None:
        return
    if len(outlooks) > 1:
        words = f"fastest to decode: {plural(best.nodes, 'node')}"
        prompts = max((one for one in outlooks if one.fits is not False), key=lambda one: one.prompt_per_s or 0.0)
        yield f"{words}; for prompts: {plural(prompts.nodes, 'node')}" if prompts is not best else words
    linked = [(one.nodes, terms) for one in outlooks if (terms := one.decoding) and terms.link_share > _MUCH]
    if not linked:
        return
    n_nodes, worst = linked[0]
    share = f"on {n_nodes} nodes the link takes {worst.link_share:.0%} of a token's time"
    if worst.round_trip_s > worst.bytes_s:
        trip_ms = 1000 * speeds.link.round_trip_s
        yield f"{share}, mostly by its round trips of {trip_ms:.2f} ms: cables and one switch are faster than Wi-Fi"
    elif wanted.sync != "q80":
        yield f"{share}, mostly by its bytes: --sync q80 sends about a quarter of them"
    else:
        yield f"{share}, mostly by its bytes: a faster link helps"


def _of_the_unknown(outlooks: Sequence[Outlook], speeds: Speeds | None) -> Iterator[str]:
    unknown = [one for one in outlooks if one.fits is None]
    if unknown:
        needs = ", ".join(f"{human_bytes(_most_elsewhere(one))} each on {plural(one.nodes, 'node')}" for one in unknown)
        yield f"other computers need as much memory free: {needs}; give theirs with --memory SIZE"
    elsewhere = any(len(one.hosts) > 1 for one in outlooks)
    if elsewhere and speeds is not None and speeds.assumed:
        yield "the link is assumed; give yours with --link RATE,TIME, such as --link 100Mbit,0.5ms"


def _of_cores(wanted: Wanted, outlooks: Sequence[Outlook], cores: int) -> Iterator[str]:
    crowded = [one.nodes for one in outlooks if len(one.hosts[0].nodes) * one.hosts[0].threads > cores]
    if crowded:
        counts = " or ".join(map(str, crowded))
        yield f"{counts} nodes share {plural(cores, 'core')} of this computer: add nodes with computers"


def _most_elsewhere(one: Outlook) -> int:
    return max(host.total_bytes for host in one.hosts if host.fits is None)
