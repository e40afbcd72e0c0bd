"""Files that keep a cluster running under systemd, compose or Kubernetes, made from its cluster file.

Knows the requirements of each. Starts nothing, and writes only the files of `Rendered`.
"""

from dllama_zmq.render.compose import compose
from dllama_zmq.render.files import Rendered, write
from dllama_zmq.render.kubernetes import kubernetes
from dllama_zmq.render.systemd import systemd

__all__ = ["Rendered", "compose", "kubernetes", "systemd", "write"]
