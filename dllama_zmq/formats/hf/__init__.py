"""Model folders of Hugging Face: config.json and safetensors. See FORMATS.md §5."""

from dllama_zmq.formats.hf.model import open_hf

__all__ = ["open_hf"]
