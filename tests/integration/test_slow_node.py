"""The root knows which node the others wait for, and whether its computing or its link is slow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import BOTH_WAYS, Context, Start, a_root, a_worker, form, inproc
from stranger import Stranger
from tiny import tiny_spec, write_tiny_model

from dllama_zmq.bus.slowest import slowest_of
from dllama_zmq.formats import ModelFile
from dllama_zmq.kernels import KernelChoice
from dllama_zmq.models import Run
from dllama_zmq.root.report import ClusterFacts, cluster_status
from dllama_zmq.root.root import Root
from dllama_zmq.spec import FloatType

SLOW_S = 0.04  # much more than what other processes of a busy machine take
N_STEPS = 3


@pytest.fixture
def model(tmp_path: Path) -> Iterator[ModelFile]:
    spec = tiny_spec(dim=128, hidden_dim=256, n_heads=8, n_kv_heads=8, weight_type=FloatType.Q40)
    with write_tiny_model(tmp_path / "m.m", spec) as model:
        yield model


class Slow(Stranger):
    """Takes SLOW_S longer than it needs for each part, and says that it computed; or, with `link`, that it did not."""

    def __init__(self, context: Context, root: str, name: str, link: bool) -> None:
        super().__init__(context, root, name)
        self._link = link

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...] = ()) -> None:
        time.sleep(SLOW_S)  # this is the load, not a wait for something to happen
        if self._link:
            self.wait_s += SLOW_S
        super().send_part(kind, *fields, arrays=arrays)


def run_steps(root: Root) -> float:
    """Seconds that N_STEPS steps of one token take."""
    start = time.monotonic()
    root.set_phase("prediction")
    for i in range(N_STEPS):
        root.evaluate([Run(0, i, 1)], [i + 5], [(0, 0.0)], 1)
    return time.monotonic() - start


@BOTH_WAYS
@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("link", [False, True], ids=["computing", "link"])
def test_a_slow_worker_is_named_with_what_is_slow(
    context: Context, start: Start, model: ModelFile, kernels: KernelChoice, n_workers: int, link: bool
) -> None:
    places = inproc()
    with a_root(context, model, places, n_workers=n_workers, kernels=kernels) as root:
        slow = f"worker{n_workers}"
        start(Slow(context, places.replies[0], slow, link))
        for i in range(1, n_workers):
            start(a_worker(context, places, f"worker{i}"))
        form(root)
        run_steps(root)
        status = cluster_status(1, ClusterFacts("test", "", ""), root, 0, 0)
    found = slowest_of(status, "prediction")
    assert found is not None, status.nodes
    assert (found.name, found.share > 0.5) == (slow, True), status.nodes
    row = status.nodes[n_workers]
    n_parts = N_STEPS * (2 * model.spec.n_layers + 1)
    assert row.waited_for_s["prediction"] > 0.8 * n_parts * SLOW_S
    share_of_link = row.link_s["prediction"] / row.waited_for_s["prediction"]
    assert share_of_link > 0.5 if link else share_of_link < 0.5, row
    waits = sum(node.waited_for_s["prediction"] for node in status.nodes[1:])
    assert waits == pytest.approx(status.nodes[0].wait_s["prediction"]), "each wait of the root counts for one worker"
