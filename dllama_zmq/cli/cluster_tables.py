"""Tables of `status` and `ps`. Imported for tables alone: commands of scripts would wait for rich for nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dllama_zmq.bus.client_messages import KVStatus, RequestStatus, Status
from dllama_zmq.cli.progress import duration, note_on
from dllama_zmq.cli.slow_nodes import slowness
from dllama_zmq.cluster import OPEN_BUS
from dllama_zmq.launch.registry import Record
from dllama_zmq.reporting import human_bytes

_SECURITY = {"none": [OPEN_BUS], "curve": ["security: curve: encrypted, only known keys may connect"]}


def status_table(found: Status) -> RenderableType:
    """A cluster's nodes, for people."""
    words = (
        f"{found.name}: {found.state}, up {duration(found.uptime_s)}, {found.active} running, {found.queued} waiting",
        f"model: {os.path.normpath(found.model)}",
        *([f"chat and API: {found.api}"] if found.api else []),
        *_SECURITY.get(found.security, []),
        f"sync {found.sync}, kernels {found.kernels}, {found.seq_len} positions",
        _kv_words(found.kv),
        *_refused(found.refused),
    )
    elsewhere = any(node.address for node in found.nodes)
    columns = ["node", *(["address"] if elsewhere else []), "state", "process", "weights", "KV cache", "note"]
    table = Table(*columns, box=None, pad_edge=False)
    for node in found.nodes:
        table.add_row(
            node.name,
            *([node.address] if elsewhere else []),
            node.state,
            str(node.pid or ""),
            human_bytes(node.weight_bytes),
            human_bytes(node.kv_bytes),
            note_on(node),
        )
    return Group(*map(Text, words), table, *map(Text, slowness(found)), *_requests(found.requests))


def _kv_words(kv: KVStatus) -> str:
    """The KV cache in one line."""
    words = f"KV cache: {kv.in_use} of {kv.pages} pages of {kv.page_positions} positions in use, {kv.cached} kept"
    if kv.cached_tokens:
        words += f"; {100 * kv.cached_tokens / kv.prompt_tokens:.0f}% of all prompt tokens were in it already"
    return words


def _refused(refused: Mapping[str, int]) -> list[str]:
    """Refused connections in one line, the most frequent addresses first."""
    if not refused:
        return []
    counts = sorted(refused.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{count} from {address or 'an unknown address'}" for address, count in counts[:5])
    more = f" and {len(counts) - 5} more addresses" if len(counts) > 5 else ""
    return [f"connections refused: {listed}{more}; `dllama-zmq logs root` says why"]


def _requests(requests: Sequence[RequestStatus]) -> list[RenderableType]:
    """The open requests, if there are any."""
    if not requests:
        return []
    table = Table("request", "for", "prompt", "in cache", "tokens", "tokens/s", box=None, pad_edge=False)
    for request in requests:
        is_running = request.state == "running"
        speed = f"{request.tokens_per_s:.1f}" if request.tokens_per_s else ""
        counts = [request.prompt_tokens, request.cached_tokens, request.tokens] if is_running else ["", "", ""]
        table.add_row(request.state, duration(request.seconds), *map(str, counts), speed)
    return [table]


def print_clusters(found: Sequence[tuple[Record, str]]) -> None:
    """Print running clusters with their states and the places of their files."""
    table = Table("name", "state", "nodes", "for", "process", "API", "model", box=None, pad_edge=False)
    for one, state in found:
        row = (
            one.name,
            state,
            one.cluster.n_nodes,
            duration(time.time() - one.since),
            one.pid,
            one.api.removeprefix("http://"),
            Path(one.model).name,
        )
        table.add_row(*map(str, row))
    console = Console(highlight=False, markup=False)
    console.print(table)
    for one, _ in found:
        if not one.private:
            place = one.path if one.path.exists() else f"{one.path.parent} (without a file)"
            console.print(f"{one.name}: {place}", soft_wrap=True)
