"""Chat with a running cluster over HTTP from many clients that may leave at any time, for some minutes.

    python tools/soak_api.py --minutes 10 --clients 32

Every client streams one chat after the other; half of them leave in the middle of an answer. Prints what was answered,
how long /health took, and memory and descriptors of each of the cluster's processes here, before, halfway and after.
Ends with exit code 1 where a request failed, a process is gone, or the cluster still answers somebody who has left.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

WAIT_S = 120.0
IDLE_S = 30.0
HEALTH_EVERY_S = 0.25


_NAMES = (("gateway", "gateway"), ("chat_child", "templates"), ("grammar_child", "grammars"), (" root ", "front"))
"""Of processes that are no nodes, by words of their command lines."""


@dataclass
class Found:
    """What happened: chats by how they ended, seconds of each /health, and errors with their numbers."""

    ended: Counter[str] = field(default_factory=Counter)
    health_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    n_chunks: int = 0


@dataclass(frozen=True)
class Use:
    """A process: its name, resident bytes, and open descriptors."""

    name: str
    resident: int
    descriptors: int


def processes(status: dict[str, Any]) -> dict[int, Use]:
    """The cluster's processes that run on this computer, by pid: the root and all below it."""
    root = psutil.Process(status["nodes"][0]["pid"])
    names = {node["pid"]: node["name"] for node in status["nodes"]}
    uses = {}
    for one in (root, *root.children(recursive=True)):
        with one.oneshot():
            name = names.get(one.pid) or next((name for key, name in _NAMES if key in " ".join(one.cmdline())), "?")
            uses[one.pid] = Use(name, one.memory_info().rss, one.num_fds())
    return uses


async def chats(http: httpx.AsyncClient, number: int, until: float, found: Found) -> None:
    """One client: chats until the time is over."""
    draw = random.Random(f"{number} {until}")
    while time.monotonic() < until:
        prompt = " ".join(draw.choices(("cat", "dog", "tree", "house", "river"), k=draw.randint(1, 60)))
        asked = {"messages": [{"role": "user", "content": prompt}], "max_tokens": draw.randint(8, 64), "stream": True}
        leaves_after = draw.randint(0, 20) if draw.random() < 0.5 else None
        try:
            async with http.stream("POST", "/v1/chat/completions", json=asked) as reply:
                if reply.status_code != 200:
                    found.errors[f"{reply.status_code} {(await reply.aread()).decode()[:300]}"] += 1
                    continue
                found.ended[await _read(reply, leaves_after, found)] += 1
        except httpx.HTTPError as error:
            found.errors[f"{type(error).__name__} {error}"[:120]] += 1


async def _read(reply: httpx.Response, leaves_after: int | None, found: Found) -> str:
    """Read an answer; how it ended."""
    n_read = 0
    async for line in reply.aiter_lines():
        if line == "data: [DONE]":
            return "whole"
        if line.startswith('data: {"error"'):
            found.errors[line[:120]] += 1
            return "failed"
        n_read += line.startswith("data: ")
        found.n_chunks += line.startswith("data: ")
        if leaves_after is not None and n_read > leaves_after:
            return "left"
    found.errors["a stream without an end"] += 1
    return "failed"


async def probe(http: httpx.AsyncClient, until: float, found: Found) -> None:
    """Ask for /health again and again."""
    while time.monotonic() < until:
        start = time.monotonic()
        try:
            reply = await http.get("/health")
            if reply.status_code != 200:
                found.errors[f"/health: {reply.status_code}"] += 1
        except httpx.HTTPError as error:
            found.errors[f"/health: {type(error).__name__}"] += 1
        found.health_s.append(time.monotonic() - start)
        await asyncio.sleep(HEALTH_EVERY_S)


async def cluster(http: httpx.AsyncClient) -> dict[str, Any]:
    """The cluster's status."""
    reply = await http.get("/v1/cluster")
    reply.raise_for_status()
    return dict(reply.json())


async def idle(http: httpx.AsyncClient) -> bool:
    """Whether the cluster has come to answer nobody."""
    until = time.monotonic() + IDLE_S
    while time.monotonic() < until:
        status = await cluster(http)
        if not status["active"] and not status["queued"]:
            return True
        await asyncio.sleep(0.2)
    return False


async def soak(url: str, minutes: float, n_clients: int) -> bool:
    """Run it and print what was found; whether all was well."""
    limits = httpx.Limits(max_connections=n_clients + 4)
    async with httpx.AsyncClient(base_url=url, timeout=WAIT_S, limits=limits) as http:
        found, status = Found(), await cluster(http)
        uses = [processes(status)]
        for _ in range(2):
            until = time.monotonic() + 30 * minutes
            await asyncio.gather(
                probe(http, until, found), *(chats(http, number, until, found) for number in range(n_clients))
            )
            is_idle = await idle(http)
            uses.append(processes(status))
    told = ", ".join(f"{n} {how}" for how, n in sorted(found.ended.items()))
    print(f"{n_clients} clients, {minutes:g} minutes: chats {told}; {found.n_chunks} chunks")
    p99 = statistics.quantiles(found.health_s, n=100)[-1]
    middle, longest = statistics.median(found.health_s), max(found.health_s)
    print(f"/health: median {1000 * middle:.1f} ms, p99 {1000 * p99:.1f} ms, longest {1000 * longest:.1f} ms")
    print(f"{'process':16}{'MB before':>11}{'halfway':>9}{'after':>9}{'descriptors':>13}{'halfway':>9}{'after':>7}")
    for pid, first in uses[0].items():
        a, b, c = (use.get(pid) or Use("gone", 0, 0) for use in uses)
        sizes = f"{a.resident / 1e6:11.1f}{b.resident / 1e6:9.1f}{c.resident / 1e6:9.1f}"
        gone = "  gone" if c.name == "gone" else ""
        print(f"{first.name:16}{sizes}{a.descriptors:13}{b.descriptors:9}{c.descriptors:7}{gone}")
    for words, number in found.errors.most_common():
        print(f"error, {number} times: {words}")
    if not is_idle:
        print(f"error: the cluster still answers {IDLE_S:.0f} s after the last client has left")
    return is_idle and not found.errors and set(uses[0]) <= set(uses[-1])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit status."""
    parser = argparse.ArgumentParser(description="Chats over HTTP from clients that come and go.")
    parser.add_argument("--url", default="http://127.0.0.1:9990")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N")
    parser.add_argument("--clients", type=int, default=32, metavar="N")
    args = parser.parse_args(argv)
    try:
        return 0 if asyncio.run(soak(args.url, args.minutes, args.clients)) else 1
    except httpx.HTTPError as error:
        print(f"error: {args.url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
