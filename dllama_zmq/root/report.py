"""The cluster as one Status message: what `status`, `netstat` and `up` show."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

from dllama_zmq.bus.client_messages import NodeStatus, Status
from dllama_zmq.bus.session import ROOT, State
from dllama_zmq.root.root import N_SLOTS, Root


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What the root does not know of itself: the cluster's name, the model's path, when it all began."""

    name: str
    version: str
    model: str
    started: float = field(default_factory=time.monotonic)


def cluster_status(request_id: int, facts: ClusterFacts, root: Root, active: int, queued: int) -> Status:
    """Everything that is known of the cluster now."""
    ledger, settings = root.ledger, root.settings
    nodes = [_root_node(root)]
    for member, row in zip(root.roster.members, root.progress(), strict=True):
        nodes.append(
            NodeStatus(
                name=row.name,
                state=row.state.value,
                reason=row.reason,
                pid=member.pid if member.state is not State.ABSENT else 0,
                weight_bytes=root.plan.weight_bytes(member.node),
                kv_bytes=root.plan.kv_bytes(member.node, root.seq_len, N_SLOTS, root.settings.kv_type),
                sent_bytes=row.sent_bytes,
                total_bytes=row.total_bytes,
                seconds=row.seconds,
                doing=row.doing,
                percent=row.percent,
                compute_s=dict(ledger.compute_s.get(row.name, {})),
                wait_s=dict(ledger.wait_s.get(row.name, {})),
                waited_for_s=dict(ledger.waited_for_s.get(row.name, {})),
                link_s=dict(ledger.link_s.get(row.name, {})),
            )
        )
    return Status(
        id=request_id,
        name=facts.name,
        version=facts.version,
        state="ready" if root.ready else "forming",
        note=root.missing_sentence()[:4000],
        pid=os.getpid(),
        uptime_s=time.monotonic() - facts.started,
        model=facts.model[-4000:],
        sync=settings.sync,
        kernels=root.kernels_name,
        seq_len=root.seq_len,
        active=active,
        queued=queued,
        steps=dict(ledger.steps),
        tokens=dict(ledger.tokens),
        sampled=dict(ledger.sampled),
        nodes=nodes,
        traffic=ledger.traffic(root.link.meter) if root.link is not None else [],
    )


def _root_node(root: Root) -> NodeStatus:
    return NodeStatus(
        name=ROOT,
        state=State.READY.value,
        reason="",
        pid=os.getpid(),
        weight_bytes=root.plan.weight_bytes(0),
        kv_bytes=root.plan.kv_bytes(0, root.seq_len, N_SLOTS, root.settings.kv_type),
        sent_bytes=0,
        total_bytes=0,
        seconds=0.0,
        doing="",
        percent=0,
        compute_s=dict(root.ledger.compute_s.get(ROOT, {})),
        wait_s=dict(root.ledger.wait_s.get(ROOT, {})),
        waited_for_s=dict(root.ledger.waited_for_s.get(ROOT, {})),
        link_s={},
    )
