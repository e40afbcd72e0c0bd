"""Model folders of Hugging Face: config.json and safetensors. See FORMATS.md §5."""

from dllama_zmq.formats.hf.model import HFFolder, open_hf

__all__ = ["HFFolder", "open_hf"]
