"""Model and tokenizer files, read and written. Described in FORMATS.md. Knows no node and no compute."""

from __future__ import annotations

from pathlib import Path

from dllama_zmq.errors import UnsupportedModel
from dllama_zmq.formats.files import open_regular
from dllama_zmq.formats.m_file import ModelFile, open_m, write_m
from dllama_zmq.formats.m_header import data_bytes
from dllama_zmq.formats.t_file import read_t, write_t
from dllama_zmq.formats.tokenizers import read_tokenizer
from dllama_zmq.tokenizer import TokenizerData

__all__ = [
    "ModelFile",
    "TokenizerData",
    "data_bytes",
    "open_m",
    "open_model",
    "read_t",
    "read_tokenizer",
    "write_m",
    "write_t",
]


def open_model(path: str | Path) -> ModelFile:
    """Open a model of any format that this version reads: `.m` for now. Raises FormatError or UnsupportedModel."""
    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors":
        raise UnsupportedModel(f"{path}: safetensors models are not read by this version. Convert it to a .m file.")
    with open_regular(path) as (file, _):
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        raise UnsupportedModel(f"{path}: GGUF models are not read by this version. Convert it to a .m file.")
    return open_m(path)
