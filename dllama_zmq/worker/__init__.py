"""A worker: joins a root, receives its slices, answers steps until the root says bye. Needs only the root's address."""

from dllama_zmq.worker.worker import Worker, WorkerSettings

__all__ = ["Worker", "WorkerSettings"]
