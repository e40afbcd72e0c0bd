"""The kind of a file, from its name and first bytes. Knows no format beyond that."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.files import open_regular
from dllama_zmq.sources import JSON, TEXT, WEB_PAGE, kind_of_bytes

GGUF_MAGIC = b"GGUF"
_PART = re.compile(r"(.*)-\d{5}-of-\d{5}", re.DOTALL)
_MAX_NAMED = 8
_HEAD_BYTES = 512
MODEL_CONFIGS = ("config.json", "params.json")


def first_bytes(path: Path) -> bytes:
    """The first four bytes of a file. Raises FormatError if it cannot be read."""
    with open_regular(path) as (file, _):
        return file.read(4)


def is_gguf(path: Path, magic: bytes) -> bool:
    """Whether a file is GGUF, by its first bytes, or by its name if it is damaged."""
    return magic == GGUF_MAGIC or path.suffix.lower() == ".gguf"


def refuse_text(path: Path, expected: str) -> None:
    """Raise FormatError if a file is text, which says more than a wrong magic number."""
    with open_regular(path) as (file, n_bytes):
        head = file.read(_HEAD_BYTES)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # the last character may be incomplete
    except UnicodeDecodeError:
        return
    kind, hint = kind_of_bytes(head), ""
    if not n_bytes or kind not in (TEXT, JSON, WEB_PAGE):
        return
    if kind == WEB_PAGE:
        hint = " Download the file itself."
    elif any((path.parent / name).exists() for name in MODEL_CONFIGS):
        hint = f" To name the model beside it, give the folder: {path.parent}"
    elif path.suffix in (".yaml", ".yml"):
        hint = f" If it describes a cluster: dllama-zmq up {path}"
    raise FormatError(f"{path} is {kind}; expected {expected}.{hint}")


def model_files(folder: Path) -> list[Path]:
    """The models among a folder's `.m` and GGUF files, each split model by its first part."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in (".gguf", ".m") and path.is_file() and "mmproj" not in path.name.lower():
            part = _PART.fullmatch(path.stem)
            found.setdefault(part[1] if part else path.name, path)
    return list(found.values())


def only_file_of(folder: Path) -> Path:
    """The only model file of a folder. Raises FormatError if there is none, or several."""
    found = model_files(folder)
    if len(found) == 1:
        return found[0]
    if not found:
        raise FormatError(
            f"{folder} is not a model's folder: it has neither config.json (Hugging Face) nor params.json (Meta), and "
            "no GGUF or .m file."
        )
    names = [path.name for path in found]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    raise FormatError(f"{folder}: it has {', '.join(names[:_MAX_NAMED])}{more}. Give the path of one of them.")
