"""A root with one worker, in a process of its own, so that its memory is its own.

`flooded.py MODEL STEPS REPLIES CLIENTS`: it serves clients over TCP until its stdin ends.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import zmq
from served import a_front
from threadpoolctl import threadpool_limits

from dllama_zmq.bus.links import Endpoints
from dllama_zmq.formats import open_model, read_tokenizer
from dllama_zmq.node_config import Limits
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.serving import Serving
from dllama_zmq.worker import Worker, WorkerSettings


def stop_at_end_of_stdin(serving: Serving) -> None:
    sys.stdin.read()
    serving.stop()


def main(path: Path, steps: str, replies: str, clients: str) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with threadpool_limits(limits=1), open_model(path) as model:  # as the commands do: see cli/root.py
        limits = Limits(join_s=60, load_s=60, step_s=20)
        settings = RootSettings(names=["worker1"], kernels="numpy", spin_s=0.0, limits=limits)
        root = Root(context, model, settings, Endpoints([steps], [replies]))
        tokenizer = read_tokenizer(path.with_suffix(".t"))
        worker = threading.Thread(target=Worker(context, WorkerSettings(replies, "worker1", spin_s=0.0)).run)
        worker.start()
        with a_front(context, root, tokenizer, clients) as (serving, _, _):
            threading.Thread(target=stop_at_end_of_stdin, args=(serving,), daemon=True).start()
            serving.open([clients])
            serving.run()
        root.close("the test is over")
        worker.join(20)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5])
