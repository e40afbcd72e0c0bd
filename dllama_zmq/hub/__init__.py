"""Models of a Hugging Face hub: found by name, fetched into the cache that other tools share, found there again,
listed and removed.

Endpoint, token, proxies, offline mode, sessions and the cache's layout are `huggingface_hub`'s. What it does not do is
done here: it begins each file anew after an interruption, and of a file that came over HTTP it checks the size alone.
Knows no model format beyond the names of files, and no terminal.
"""

from dllama_zmq.hub.cache import cache_folder, find_pulled
from dllama_zmq.hub.name import ModelName, is_hub_name
from dllama_zmq.hub.plan import Plan, plan_pull
from dllama_zmq.hub.reach import load_settings
from dllama_zmq.hub.store import Pulled, list_pulled, named, plan_removal

__all__ = [
    "ModelName", "Plan", "Pulled", "cache_folder", "find_pulled", "is_hub_name", "list_pulled", "load_settings",
    "named", "plan_pull", "plan_removal",
]  # fmt: skip
