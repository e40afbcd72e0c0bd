"""Where a model and its tokenizer are that somebody has named: by a path, as `demo`, or as hf:REPO[:FILE].

Knows of formats only which file or folder a tokenizer is in; asks no hub.
"""

from __future__ import annotations

import difflib
import os
from contextlib import suppress
from pathlib import Path

from dllama_zmq.errors import FormatError, UsageError
from dllama_zmq.hub import ModelName, find_pulled, is_hub_name, named

DEMO = "demo"
"""`model: demo` and `tokenizer: demo` mean the files shipped in the package."""

PULLED = "hf:"
"""`model: hf:REPO[:FILE]` means what `dllama-zmq pull REPO[:FILE]` has put into the cache."""

DATA_FOLDER = Path(__file__).parent / "data"
_GGUF_MAGIC = b"GGUF"


def model_at(text: str | Path) -> Path:
    """Where a model is that is given by its path, as `demo`, or as `hf:REPO[:FILE]`.

    Raises FormatError, as what opens a missing path does, for one that has not been pulled; UsageError for no name.
    """
    if text == DEMO:
        return DATA_FOLDER / f"{DEMO}.m"
    found = from_anywhere(str(text))
    if not found.startswith(PULLED):
        return expanded(str(text))
    try:
        return find_pulled(found)
    except UsageError as error:
        raise FormatError(str(error)) from error


def from_anywhere(text: str) -> str:
    """What `model:` takes in a file of any folder for the model that `text` names here: `demo`, a path in full, or
    hf:REPO[:FILE]; where there is nothing at a path, what has been pulled under this name.

    Raises FormatError where there is neither; UsageError where no hub has such a name.
    """
    if text == DEMO:
        return text
    if text.startswith(PULLED):
        return f"{PULLED}{ModelName.parse(text)}"
    path = expanded(text)
    if os.path.lexists(path):
        return str(in_full(path))
    if (name := named(text)) is not None:
        return f"{PULLED}{name}"
    hub = f"; if it is a model of the Hugging Face hub, write {PULLED}{text} (after `dllama-zmq pull {text}`)"
    raise FormatError(
        f"{text} cannot be opened: there is no such file or folder{_similar(path)}{hub if is_hub_name(text) else ''}"
    )


def expanded(text: str) -> Path:
    """The path `text`, with the home folder in the place of a tilde. Raises UsageError where there is none."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{text}: no such home folder; write the path in full") from error


def in_full(path: Path) -> Path:
    """`path` from the root folder on, without `..`: the links before one are followed, and the last name is kept."""
    if ".." not in path.parts:
        return path.absolute()
    return Path(os.path.realpath(path) if path.name == ".." else os.path.join(os.path.realpath(path.parent), path.name))


def _similar(path: Path) -> str:
    """The nearest name beside `path`, as a question."""
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), 1, 0.6)
    except OSError:
        return ""
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def tokenizer_beside(model: Path) -> Path:
    """Where the tokenizer is that a model brings with it: FORMATS.md says what each format holds.

    A GGUF file is known by its first bytes: the stores of other programs keep it under a name without a suffix.
    """
    if os.path.isdir(model) or model.suffix.lower() == ".gguf":
        return model
    if os.path.isfile(model):
        with suppress(OSError), model.open("rb") as file:
            if file.read(4) == _GGUF_MAGIC:
                return model
    return model.parent if model.suffix == ".safetensors" else model.with_suffix(".t")
