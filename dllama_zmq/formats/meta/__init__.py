"""Model folders of Meta: params.json and consolidated.*.pth, read without executing a pickle. See FORMATS.md §6."""

from dllama_zmq.formats.meta.model import open_meta

__all__ = ["open_meta"]
