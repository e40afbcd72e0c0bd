"""A root with one worker in a process of its own, and its front in another, so that their memory is their own.

`flooded.py MODEL STEPS REPLIES CLIENTS`: it serves clients over TCP until its stdin ends.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from threadpoolctl import threadpool_limits

from dllama_zmq.bus import sockets
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.formats import open_model, read_tokenizer
from dllama_zmq.front.process import FrontProcess
from dllama_zmq.node_config import Limits
from dllama_zmq.root.engine import Engine
from dllama_zmq.root.report import ClusterFacts
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.root.serving import Serving
from dllama_zmq.worker import Worker, WorkerSettings


def stop_at_end_of_stdin(serving: Serving) -> None:
    sys.stdin.read()
    serving.stop()


def main(path: Path, steps: str, replies: str, clients: str) -> None:
    with threadpool_limits(limits=1), open_model(path) as model:  # as the commands do: see cli/root.py
        address = f"ipc://{path.parent / 'front'}"
        front = FrontProcess(address, read_tokenizer(path.with_suffix(".t")), [])
        context = sockets.Context()
        limits = Limits(join_s=60, load_s=60, step_s=20)
        settings = RootSettings(names=["worker1"], kernels="numpy", spin_s=0.0, limits=limits)
        root = Root(context, model, settings, Endpoints([steps], [replies]))
        worker = threading.Thread(target=Worker(context, WorkerSettings(replies, "worker1", spin_s=0.0)).run)
        worker.start()
        link = sockets.pair(context, address, bind=True)
        serving = Serving(Engine(root, max_sequences=16), link, ClusterFacts("tests", "0", "tiny.m"))
        threading.Thread(target=stop_at_end_of_stdin, args=(serving,), daemon=True).start()
        serving.open([clients])
        serving.run(front.check)
        root.close("the test is over")
        worker.join(20)
        front.end(20)
        context.destroy()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5])
