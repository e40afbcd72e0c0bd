"""Reads the tokenizer of a file or folder, by its name and first bytes; `tokenizer/` does the rest.

| file | contents |
| --- | --- |
| `*.t` | FORMATS.md §3 |
| `tokenizer.json` | Hugging Face's, with tokenizer_config.json and others beside it |
| `*.model` | a SentencePiece model, or Llama 3's pieces with their ranks |
| GGUF, by its first bytes | a model with the tokenizer in its metadata |
| a folder | its tokenizer.json, else its tokenizer.model, else the tokenizer of its only `.m` or GGUF model |
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.formats.files import check_replaceable, read_json, read_whole, replace_file
from dllama_zmq.formats.gguf.model import gguf_metadata, gguf_tokenizer
from dllama_zmq.formats.kinds import MODEL_CONFIGS, first_bytes, is_gguf, model_files, only_file_of, refuse_text
from dllama_zmq.formats.t_file import read_t
from dllama_zmq.tokenizer import Tokenizer
from dllama_zmq.tokenizer.config import Config, read_config
from dllama_zmq.tokenizer.data import TokenizerParts
from dllama_zmq.tokenizer.from_gguf import parts_of_gguf
from dllama_zmq.tokenizer.from_json import parts_of_json
from dllama_zmq.tokenizer.from_ranks import parts_of_ranks
from dllama_zmq.tokenizer.from_sentencepiece import parts_of_sentencepiece
from dllama_zmq.tokenizer.from_t import parts_of_t

MAX_JSON_BYTES = 1 << 26
"""Twice the largest known tokenizer.json."""
MAX_MODEL_BYTES = 1 << 25
MAX_SIDE_BYTES = 1 << 24
_MAX_JSON_VALUES = 1 << 23
_NAMES = ("tokenizer.json", "tokenizer.model")
_BESIDE = ("special_tokens_map.json", "tokenizer_config.json", "generation_config.json", "config.json")
_TEMPLATE, _MORE_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
_MAX_TEMPLATES = 64


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a file or of a model's folder.

    Raises FormatError for a damaged file, UnsupportedModel for an unsupported kind.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    return Tokenizer(_parts(path, str(path)))


def _parts(path: Path, source: str) -> TokenizerParts:
    if is_gguf(path, first_bytes(path)):
        return parts_of_gguf(gguf_metadata(path, lists=True), source)
    if path.suffix == ".json":
        return parts_of_json(_read_text(path, MAX_JSON_BYTES), _config_beside(path), source)
    if path.suffix == ".model":
        data, config = read_whole(path, MAX_MODEL_BYTES), _config_beside(path)
        # A SentencePiece model begins with the tag of its first piece, a newline; a list of ranks with base64.
        if data[:1] == b"\n" or b" " not in data[:512]:
            return parts_of_sentencepiece(data, config, source)
        return parts_of_ranks(_ranks(data, path), config, source)
    refuse_text(path, "a tokenizer: tokenizer.json, tokenizer.model, a .t or GGUF file, or a folder with one of them")
    return parts_of_t(read_t(path))


def tokenizer_files(path: Path) -> dict[str, bytes]:
    """The files of the tokenizer that `read_tokenizer` reads, unchanged, by name; "" for a single file.

    A GGUF model gives a GGUF file with only the tokenizer. Raises as `read_tokenizer` does.
    """
    read_tokenizer(path)
    path = _in_folder(path) if path.is_dir() else path
    if is_gguf(path, first_bytes(path)):
        return {"": gguf_tokenizer(path)}
    if path.suffix not in (".json", ".model"):
        return {"": path.read_bytes()}
    own = f"tokenizer{path.suffix}"
    others = [path.parent / name for name in _BESIDE]
    others += [file for _, file in _templates(path.parent)]
    return {own: path.read_bytes()} | {
        file.relative_to(path.parent).as_posix(): file.read_bytes() for file in others if file.exists()
    }


def check_writable(path: Path, files: Mapping[str, bytes]) -> None:
    """Raise UsageError if `write_tokenizer` would replace something of another kind."""
    if "" in files:
        check_replaceable(path)
    elif path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file, and this tokenizer needs a folder; choose another name")


def write_tokenizer(path: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of `tokenizer_files`: one file, or a folder. Replaces an existing tokenizer."""
    check_writable(path, files)
    if "" not in files:
        for file in (*(path / name for name in (*_NAMES, *_BESIDE)), *(file for _, file in _templates(path))):
            file.unlink(missing_ok=True)
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path / name) as out:
            out.write(data)


def _in_folder(folder: Path) -> Path:
    for name in _NAMES:
        if (folder / name).exists():
            return folder / name
    if not any((folder / name).exists() for name in MODEL_CONFIGS) and model_files(folder):
        model = only_file_of(folder)
        own = model if is_gguf(model, first_bytes(model)) else model.with_suffix(".t")
        return next((own / name for name in _NAMES if (own / name).exists()), own)
    raise FormatError(f"{folder}: this folder has no {' and no '.join(_NAMES)}. Put the model's own there.")


def _ranks(data: bytes, path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for index, line in enumerate(data.splitlines(), start=1):
        word, _, rank = line.partition(b" ")
        try:
            piece = base64.b64decode(word, validate=True)
        except binascii.Error:
            piece = b""
        if not piece or not rank.isdigit() or len(rank) > 9 or piece in ranks:
            raise FormatError(
                f"{path}: line {index} is {line[:40]!r}; expected a piece in base64, once, a space and its rank. "
                f"This is not a tokenizer.model of SentencePiece or Llama 3, or it is damaged."
            )
        ranks[piece] = int(rank)
    return ranks


def _config_beside(path: Path) -> Config:
    """The configuration in the files beside a tokenizer.

    tokenizer_config.json overrides special_tokens_map.json. EOS ids come from generation_config.json and config.json,
    chat templates also from files of their own.
    """
    folder = path.parent
    specials = _read_object(folder / "special_tokens_map.json")
    config = {key: value for key, value in specials.items() if key.endswith("_token")}
    own = _read_object(folder / "tokenizer_config.json")
    config |= {key: value for key, value in own.items() if key not in ("eos_token_id", "bos_token_id")}
    eos_ids = _read_object(folder / "generation_config.json").get("eos_token_id")
    if eos_ids is not None:
        config["eos_token_id"] = eos_ids
    config["model_eos_token_id"] = _read_object(folder / "config.json").get("eos_token_id")
    found = [
        {"name": name, "template": _read_text(file, MAX_SIDE_BYTES)}
        for name, file in _templates(folder)
        if file.exists()
    ]
    if found:
        config["chat_template"] = found
    return read_config(config, str(path))


def _templates(folder: Path) -> list[tuple[str, Path]]:
    """The files of chat templates, by name."""
    more = sorted((folder / _MORE_TEMPLATES).glob("*.jinja"))[:_MAX_TEMPLATES]
    return [("default", folder / _TEMPLATE), *((file.stem, file) for file in more)]


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no file."""
    return read_json(path, dict[str, Any], MAX_SIDE_BYTES) if path.exists() else {}


def _read_text(path: Path, max_bytes: int) -> str:
    data = read_whole(path, max_bytes)
    n_values = sum(data.count(mark) for mark in (b",", b"[", b"{"))
    if n_values > _MAX_JSON_VALUES:
        raise FormatError(f"{path}: {n_values} values; no tokenizer has more than {_MAX_JSON_VALUES}.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: offset {error.start}: not UTF-8 text. Get the file again.") from error
