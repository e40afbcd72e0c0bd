"""The status of a cluster as its root tells it, made up field by field."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from dllama_zmq.bus.client_messages import KVStatus, NodeStatus, Status

_NODE = NodeStatus(
    name="root", state="ready", reason="", host="pi", address="", pid=1, threads=1, memory_bytes=8_000_000,
    free_bytes=None, weight_bytes=4_000_000, kv_bytes=0, sent_bytes=0, kept_bytes=0, total_bytes=4_000_000, seconds=0.4,
    doing="", percent=0,
)  # fmt: skip
_STATUS = Status(
    id=1, name="small", version="0", state="forming", note="", pid=1, uptime_s=0.0, model="m", api="", security="local",
    sync="f32", kernels="simd", seq_len=64, active=0, queued=0, requests=[], kv=KVStatus(64, 1, 0, 0, 0, 0, 0),
    oversubscribed=False, steps={}, tokens={}, sampled={}, refused={}, nodes=[], recent={}, traffic=[],
)  # fmt: skip


def a_node(name: str, **changes: Any) -> NodeStatus:
    """A node that is ready, but for `changes`."""
    return replace(_NODE, name=name, **changes)


def a_status(*nodes: NodeStatus, **changes: Any) -> Status:
    """A cluster of these nodes that forms, but for `changes`."""
    return replace(_STATUS, nodes=list(nodes), **changes)
