"""What a worker says of the time that its step took: real sockets, and a thread that computes, sleeps and waits."""

from __future__ import annotations

import threading
import time

import numpy as np
import zmq
from integration.nodes import FAST_AND_SLOW, SOON_S, Context, inproc

from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.links import WorkerLink
from dllama_zmq.bus.messages import TO_ROOT, ArrayHead, Candidates, Partial, Step, Sum
from dllama_zmq.bus.star_worker import StarWorker
from dllama_zmq.kernels import KernelChoice, choose_kernels

DIM, N_STAGES = 32, 3
PART_S = 0.03  # of each stage: computing, without a core, and waiting for the sum


def compute() -> float:
    """Use a core; returns for how many seconds."""
    begun = time.thread_time()
    while time.thread_time() < begun + PART_S:
        pass
    return time.thread_time() - begun


@FAST_AND_SLOW
def test_a_worker_was_paused_while_it_neither_ran_nor_waited(context: Context, kernels: KernelChoice) -> None:
    """Its clock and a core's are compared, so this holds whatever else the computer does."""
    places, row = inproc(), np.ones((1, DIM), dtype=np.float32)
    replies, steps = context.socket(zmq.ROUTER), context.socket(zmq.XPUB)
    replies.bind(places.replies[0])
    steps.bind(places.steps[0])
    link = WorkerLink(context, places.replies[0], b"worker1", spin_s=0.0, watch=False)
    link.subscribe(places.steps[0])
    assert steps.poll(round(SOON_S * 1000))  # it has subscribed
    head = ArrayHead("f32", 1, DIM)

    def add_up() -> None:
        for _ in range(N_STAGES):
            assert replies.poll(round(SOON_S * 1000))
            partial, _ = decode(replies.recv_multipart()[1:], TO_ROOT)
            assert isinstance(partial, Partial)
            time.sleep(PART_S)  # the worker's wait
            steps.send_multipart(encode(Sum(1, 1, partial.stage, [head]), [row.tobytes()]))

    comm = StarWorker(link, choose_kernels(kernels, 1), "f32", DIM, nodes=4, silence_s=SOON_S)
    comm.steps.epoch = 1
    root = threading.Thread(target=add_up)
    root.start()
    begun_s, begun_on_core_s, computed_s = time.monotonic(), time.thread_time(), 0.0
    comm.begin(Step(1, 1, [(0, 1)], [], [head, ArrayHead("i32", 1, 1)]), [row.tobytes(), bytes(4)])
    for _ in range(N_STAGES):
        computed_s += compute()
        time.sleep(PART_S)  # as one who has no core
        comm.all_reduce(row)
    comm.answer([])
    wall_s, on_core_s = time.monotonic() - begun_s, time.thread_time() - begun_on_core_s
    root.join(SOON_S)
    assert replies.poll(round(SOON_S * 1000))
    said, _ = decode(replies.recv_multipart()[1:], TO_ROOT)
    link.close()
    for socket in (replies, steps):
        socket.close(0)
    assert isinstance(said, Candidates)
    assert said.compute_s >= computed_s + N_STAGES * PART_S
    assert said.compute_s - on_core_s <= said.paused_s <= said.compute_s - computed_s
    assert said.compute_s + said.wait_s <= wall_s
    assert said.wait_s > 0
