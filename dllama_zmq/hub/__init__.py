"""Models of a Hugging Face hub: chosen by name, downloaded into the cache that other tools share, listed, removed.

Endpoint, token, proxies, offline mode, sessions and the cache's layout are those of `huggingface_hub`. Downloads are
our own (`transfer.py`), because its downloads start again after an interruption and, over HTTP, check only the size.
Knows no model format beyond the names of files, and no terminal.
"""

from dllama_zmq.hub.cache import cache_folder, find_pulled
from dllama_zmq.hub.http import load_settings
from dllama_zmq.hub.name import HUB_PREFIX, ModelName, is_hub_name
from dllama_zmq.hub.pull import Pull, plan_pull
from dllama_zmq.hub.store import Pulled, find_by_name, list_pulled, plan_removal

__all__ = [
    "HUB_PREFIX",
    "ModelName",
    "Pull",
    "Pulled",
    "cache_folder",
    "find_by_name",
    "find_pulled",
    "is_hub_name",
    "list_pulled",
    "load_settings",
    "plan_pull",
    "plan_removal",
]
