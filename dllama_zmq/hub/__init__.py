"""Models of a Hugging Face hub: chosen by name, downloaded into the cache that other tools share, listed, removed.

Endpoint, token, proxies, offline mode, sessions and the cache's layout are those of `huggingface_hub`. Downloads are
our own (`transfer.py`), because its downloads start again after an interruption and, over HTTP, check only the size.
Knows no model format beyond the names of files, and no terminal. Every process needs the names of models; the rest of
the package is imported where it is used.
"""

from dllama_zmq.hub.name import HUB_PREFIX, ModelName, is_hub_name

__all__ = ["HUB_PREFIX", "ModelName", "is_hub_name"]
