"""The worker's answers when the root measures its link."""

from __future__ import annotations

import time

from dllama_zmq.bus.links import WorkerLink
from dllama_zmq.bus.messages import MAX_PROBE_BYTES, ArrayHead, Probe, Probed


def answer_probe(link: WorkerLink, probe: Probe) -> None:
    """Answer with the requested number of bytes; do not answer a request for more than MAX_PROBE_BYTES."""
    if probe.answer_bytes > MAX_PROBE_BYTES:
        return
    heads = [ArrayHead("u8", 1, probe.answer_bytes)] if probe.answer_bytes else []
    link.send(Probed(probe.number, time.time_ns() // 1000, heads), [bytes(head.nbytes) for head in heads])
