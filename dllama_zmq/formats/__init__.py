"""Model and tokenizer files: reads `.m`, `.t`, GGUF and the folders of Hugging Face and Meta; writes `.m` and `.t`.

FORMATS.md describes them. Knows no node and no compute.
"""

from __future__ import annotations

from pathlib import Path

from dllama_zmq.errors import UnsupportedModel, UsageError
from dllama_zmq.formats.contents import contents_of
from dllama_zmq.formats.gguf.model import gguf_metadata, open_gguf
from dllama_zmq.formats.hf.model import open_hf
from dllama_zmq.formats.kinds import GGUF_MAGIC, first_bytes, is_gguf, only_file_of, refuse_text
from dllama_zmq.formats.m_file import open_m, write_m
from dllama_zmq.formats.m_header import data_bytes
from dllama_zmq.formats.m_keys import M_MAGICS
from dllama_zmq.formats.meta.model import open_meta
from dllama_zmq.formats.model_file import ModelFile
from dllama_zmq.formats.t_file import read_t, write_t
from dllama_zmq.formats.tokenizers import read_tokenizer
from dllama_zmq.spec import FloatType
from dllama_zmq.tokenizer import TokenizerData

__all__ = [
    "ModelFile",
    "TokenizerData",
    "contents_of",
    "data_bytes",
    "gguf_metadata",
    "open_gguf",
    "open_hf",
    "open_m",
    "open_meta",
    "open_model",
    "read_t",
    "read_tokenizer",
    "write_m",
    "write_t",
]

_TORCH_MAGICS = (b"PK\x03\x04", b"\x80\x02")  # of torch.save: a zip archive, in old versions a bare pickle
_TORCH_SUFFIXES = (".bin", ".pth", ".pt")


def open_model(path: str | Path, weights: FloatType | None = None) -> ModelFile:
    """Open a model: a `.m` or GGUF file, a folder with one of them, or a folder of Hugging Face or Meta.

    weights: the type in which to read matrices that are stored as floats; None means as stored.
    Raises FormatError or UnsupportedModel; UsageError if the weights cannot be read in that type.
    """
    path = Path(path)
    folder = path.parent if path.suffix == ".safetensors" and not path.is_dir() else path
    if (folder / "config.json").exists():
        return open_hf(folder, weights)
    if (folder / "params.json").exists():
        return open_meta(folder, weights)
    if (folder / "adapter_config.json").exists():
        raise UnsupportedModel(f"{folder}: this is a LoRA adapter, not a whole model. Get the model itself.")
    if folder.is_dir():
        path = only_file_of(folder)
    magic = first_bytes(path)
    known = magic == GGUF_MAGIC or int.from_bytes(magic, "little") in M_MAGICS
    if not known and not is_gguf(path, magic):
        refuse_text(path, "a model: a .m or GGUF file, or the folder of a Hugging Face or Meta model")
    if magic.startswith(_TORCH_MAGICS) or (path.suffix in _TORCH_SUFFIXES and not known):
        raise UnsupportedModel(
            f"{path}: a single PyTorch file cannot be read. Give the folder of the model, with config.json and "
            "safetensors (Hugging Face) or with params.json and consolidated.*.pth (Meta), or a GGUF file of it."
        )
    model = open_gguf(path) if is_gguf(path, magic) else open_m(path)
    if weights not in (None, model.spec.weight_type):
        stored = model.spec.weight_type.name
        model.close()
        raise UsageError(
            f"{path}: its weights are {stored}, and `weights` can only change weights that are stored as floats. "
            "Leave it out, or convert the model."
        )
    return model
