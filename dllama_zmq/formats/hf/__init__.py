"""Model folders of Hugging Face: config.json and safetensors, as they are downloaded. See FORMATS.md §5."""

from dllama_zmq.formats.hf.model import HFFolder, open_hf

__all__ = ["HFFolder", "open_hf"]
