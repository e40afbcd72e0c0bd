"""Reads GGUF files: models by memory map, and metadata. See FORMATS.md §4. Knows no node and no compute."""

from dllama_zmq.formats.gguf.model import gguf_metadata, gguf_tokenizer, open_gguf

__all__ = ["gguf_metadata", "gguf_tokenizer", "open_gguf"]
