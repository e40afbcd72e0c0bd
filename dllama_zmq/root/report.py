"""Build the Status message that `status`, `netstat` and `up` show."""

from __future__ import annotations

import os
import time
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import asdict

from dllama_zmq.bus.addresses import ip_of
from dllama_zmq.bus.client_messages import KVStatus, NodeStatus, Status
from dllama_zmq.bus.messages import Join
from dllama_zmq.bus.roster import ROOT, State
from dllama_zmq.bus.text_messages import Model
from dllama_zmq.host import free_memory_bytes, host_name
from dllama_zmq.kernels import KV_PAGE
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.root import Root
from dllama_zmq.sharding import NodeMemory, node_memory


class ClusterFacts(Struct, frozen=True):
    """Facts that the root does not know: the name of the cluster, the path of the model, the start time.

    model: the path as text, which need not open the file. created: when the file was written, in seconds since 1970.
    model_name: the name for people; "": that of its file. api: the URL of its API server, or "".
    security: see Status.
    """

    name: str
    version: str
    model: str
    model_name: str = ""
    api: str = ""
    created: int = 0
    security: str = "local"
    started: float = field(default_factory=time.monotonic)


_NOBODY = Join(name="", host="", pid=0, version="", host_name="", threads=0, free_bytes=None)
"""For a place without a worker."""


def model_message(facts: ClusterFacts, root: Root) -> Model:
    """The description of the model for clients; the front adds what its tokenizer knows."""
    path, model = Path(facts.model), root.model
    return Model(
        id=0,
        name=facts.model_name or (path.stem if path.suffix in (".m", ".gguf") else path.name),
        path=facts.model,
        architecture=model.spec.arch,
        n_params=model.n_params,
        size_bytes=model.nbytes,
        seq_len=root.seq_len,
        context=model.spec.seq_len,
        vocab_size=model.spec.vocab_size,
        dim=model.spec.dim,
        bos="",
        eos=[],
        template="",
        specials={},
        created=max(0, facts.created),
    )


def cluster_status(facts: ClusterFacts, engine: Engine) -> Status:
    """The status of the cluster. The front adds the requests and their queue."""
    root = engine.root
    ledger, settings = root.ledger, root.settings
    nodes = [_root_node(root, facts.version)]
    for member, row in zip(root.roster.members, root.progress(), strict=True):
        memory, here = _memory(root, member.node), member.state is not State.ABSENT
        said = member.joined if here and member.joined is not None else _NOBODY
        nodes.append(
            NodeStatus(
                host=said.host_name,
                address=ip_of(member.address) if here else "",
                pid=said.pid,
                threads=said.threads,
                memory_bytes=memory.total,
                free_bytes=said.free_bytes,
                weight_bytes=memory.weights,
                kv_bytes=memory.kv_cache,
                round_trip_s=root.link.peers.round_trip_s(member.identity) if here and root.link else None,
                version=said.version,
                **asdict(row) | {"state": row.state.value},
            )
        )
    return Status(
        id=0,
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
        active=0,
        queued=0,
        requests=[],
        kv=_kv_status(engine),
        oversubscribed=settings.oversubscribed,
        steps=dict(ledger.steps),
        tokens=dict(ledger.tokens),
        sampled=dict(ledger.sampled),
        refused=root.link.refused() if root.link is not None else {},
        nodes=nodes,
        recent=ledger.recent(),
        traffic=ledger.traffic(),
        api=facts.api,
        security=facts.security,
    )


def _root_node(root: Root, version: str) -> NodeStatus:
    memory = _memory(root, 0)
    return NodeStatus(
        name=ROOT,
        state=State.READY.value,
        reason="",
        host=host_name(),
        address="",
        pid=os.getpid(),
        threads=root.settings.threads,
        memory_bytes=memory.total,
        free_bytes=free_memory_bytes(),
        weight_bytes=memory.weights,
        kv_bytes=memory.kv_cache,
        version=version,
    )


def _memory(root: Root, node: int) -> NodeMemory:
    """The memory that a node needs with all pages of its KV cache, in bytes."""
    return node_memory(root.plan, node, root.n_pages * KV_PAGE, root.settings.kv_type)


def _kv_status(engine: Engine) -> KVStatus:
    pool = engine.scheduler.pool
    return KVStatus(
        page_positions=pool.page_size,
        pages=pool.n_pages,
        in_use=pool.n_in_use,
        cached=pool.n_cached,
        prompt_tokens=engine.n_prompt_tokens,
        cached_tokens=engine.n_cached_tokens,
        preemptions=engine.scheduler.n_preemptions,
    )
