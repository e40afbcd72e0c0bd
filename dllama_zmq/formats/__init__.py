"""Model and tokenizer files: `.m` and `.t`, read and written; GGUF, read. Described in FORMATS.md.

Knows no node and no compute.
"""

from __future__ import annotations

from pathlib import Path

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.files import open_regular
from dllama_zmq.formats.gguf import gguf_metadata, open_gguf
from dllama_zmq.formats.m_file import open_m, write_m
from dllama_zmq.formats.m_header import data_bytes
from dllama_zmq.formats.model_file import ModelFile
from dllama_zmq.formats.t_file import read_t, write_t
from dllama_zmq.tokenizer import Tokenizer, TokenizerData

__all__ = [
    "ModelFile",
    "TokenizerData",
    "data_bytes",
    "gguf_metadata",
    "open_gguf",
    "open_m",
    "open_model",
    "read_t",
    "read_tokenizer",
    "write_m",
    "write_t",
]


def open_model(path: str | Path) -> ModelFile:
    """Open a model of any format that this version reads: `.m` or GGUF. Raises FormatError or UnsupportedModel."""
    path = Path(path)
    if path.is_dir() or path.suffix == ".safetensors":
        raise UnsupportedModel(f"{path}: safetensors models are not read by this version. Convert it to a .m file.")
    with open_regular(path) as (file, _):
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix == ".gguf":
        return open_gguf(path)
    return open_m(path)


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a `.t` file, ready to encode and decode. Raises FormatError."""
    path = Path(path)
    if path.suffix in (".json", ".model", ".gguf"):
        raise FormatError(f"{path}: {path.suffix} tokenizers are not read by this version. Convert it to a .t file.")
    return Tokenizer.from_data(read_t(path))
