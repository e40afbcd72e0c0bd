"""Where a model and its tokenizer are, from a path, `demo` or hf:REPO[:FILE].

Knows of each format only where its tokenizer is. Asks no hub.
"""

from __future__ import annotations

import codecs
import difflib
import os
import re
from contextlib import suppress
from pathlib import Path

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.hub import HUB_PREFIX, ModelName, is_hub_name

DEMO = "demo"
"""`model: demo` and `tokenizer: demo` mean the files shipped in the package."""

DATA_FOLDER = Path(__file__).parent / "data"
_GGUF_MAGIC = b"GGUF"

TEXT, JSON, WEB_PAGE, NOTHING_KNOWN = "a text file", "a JSON file", "a web page", "a file of binary data"
MODELS = GGUF, M_FILE = "a GGUF model", "a .m model"
_MAGICS = {
    _GGUF_MAGIC: GGUF,
    b"\xcd\xab\x00\x0a": M_FILE,
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x7fELF": "a program",
    b"#!": "a script",
    b"%PDF": "a PDF",
    b"\x89PNG": "an image",
    b"version https://git-lfs": "a pointer of git-lfs",
}
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_HEAD_BYTES = 512


def path_of(text: str, folder: Path, suffix: str = ".m") -> Path:
    """The path that a file in `folder` means by `demo`, hf:REPO[:FILE] or a path. Something may be there or not.

    suffix: of the demo's file. Raises UsageError for a hub's model that is not pulled, or without such a home folder.
    """
    if text == DEMO:
        return DATA_FOLDER / f"{DEMO}{suffix}"
    if text.startswith(HUB_PREFIX):
        from dllama_zmq.hub.cache import find_pulled

        return find_pulled(text)
    path = os.fsdecode(text.encode("utf-8", "surrogateescape"))  # file names are UTF-8 in any locale
    return absolute_path(folder / expand_home(path))


def model_at(text: str | Path) -> Path:
    """The path of a model given by its path, as `demo`, or as `hf:REPO[:FILE]`.

    Raises FormatError if there is no such path or it has not been pulled, UsageError for a wrong name.
    """
    found = absolute_model(str(text))
    if found != DEMO and not found.startswith(HUB_PREFIX):
        return expand_home(str(text))
    try:
        return path_of(found, Path())
    except UsageError as error:
        raise FormatError(str(error)) from error


def absolute_model(text: str) -> str:
    """`text` as `model:` takes it in a file of any folder: `demo`, an absolute path, or hf:REPO[:FILE].

    If nothing is at the path, a pulled model of this name counts. Raises FormatError if there is neither, UsageError
    for a name that no hub can have.
    """
    if text == DEMO:
        return text
    if text.startswith(HUB_PREFIX):
        return f"{HUB_PREFIX}{ModelName.parse(text)}"
    path = expand_home(text)
    if os.path.lexists(path):
        return str(absolute_path(path))
    from dllama_zmq.hub.store import find_by_name

    if (name := find_by_name(text)) is not None:
        return f"{HUB_PREFIX}{name}"
    if path.name == text and not path.suffix and not is_hub_name(text):  # a word, as other programs name models
        raise FormatError(
            f"there is no model {text}{_similar(path)}; give a file, a folder or {DEMO}; `dllama-zmq list` shows the "
            "models that are pulled, and `dllama-zmq pull USER/REPO[:FILE]` fetches one"
        )
    hub = f"; for a model of the Hugging Face hub, run `dllama-zmq pull {text}` and write {HUB_PREFIX}{text}"
    raise FormatError(
        f"{text} cannot be opened: there is no such file or folder{_similar(path)}{hub if is_hub_name(text) else ''}"
    )


def expand_home(text: str) -> Path:
    """The path `text` with `~` expanded. Raises UsageError if there is no such home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text}: no such home folder; write an absolute path") from error


def absolute_path(path: Path) -> Path:
    """`path` as an absolute path without `..`. Links before a `..` are followed; the last name stays."""
    if ".." not in path.parts:
        return path.absolute()
    return Path(os.path.realpath(path) if path.name == ".." else os.path.join(os.path.realpath(path.parent), path.name))


def kind_of(path: Path) -> str:
    """What is at `path`, which is neither a file nor a folder."""
    if path.is_char_device() or path.is_block_device():
        return "a device"
    if path.is_fifo() or path.is_socket():
        return "a pipe" if path.is_fifo() else "a socket"
    return "a link to nothing" if path.is_symlink() else "neither a file nor a folder"


def kind_of_bytes(data: bytes) -> str:
    """What a file that begins with `data` is, in words. Text in another encoding than UTF-8 is text, too."""
    for magic, kind in _MAGICS.items():
        if data.startswith(magic):
            return kind
    head = data[:_HEAD_BYTES].removeprefix(codecs.BOM_UTF8).lstrip()
    if head.lower().startswith((b"<!doctype html", b"<html")):
        return WEB_PAGE
    if _NO_TEXT.search(head) and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return NOTHING_KNOWN
    return JSON if head.startswith((b"{", b"[")) else TEXT


def _similar(path: Path) -> str:
    """Suggest the most similar name in the folder of `path`."""
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), 1, 0.6)
    except OSError:
        return ""
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def tokenizer_beside(model: Path) -> Path:
    """The path of the model's own tokenizer, by its format (see FORMATS.md).

    A GGUF file is recognised by its first bytes: other programs store it under a name without a suffix.
    """
    if os.path.isdir(model) or model.suffix.lower() == ".gguf":
        return model
    if os.path.isfile(model):
        with suppress(OSError), model.open("rb") as file:
            if file.read(4) == _GGUF_MAGIC:
                return model
    return model.parent if model.suffix == ".safetensors" else model.with_suffix(".t")
