"""Models in GGUF files, memory-mapped; tensors of this package's types are views. See FORMATS.md §4."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.gguf.container import TYPE_NAMES, Container
from dllama_zmq.formats.gguf.directory import Directory
from dllama_zmq.formats.gguf.spec import check_architecture, read_spec
from dllama_zmq.formats.model_file import ModelFile
from dllama_zmq.formats.stored import check_shapes, halved, with_types
from dllama_zmq.models import tensor_table

_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.DOTALL | re.IGNORECASE)
_PERMUTED = re.compile(r"layers\.\d+\.attention\.[qk]")
_MAX_PARTS = 1000


def open_gguf(path: str | Path) -> ModelFile:
    """Map and check a GGUF model; `path` may be any of its files. Raises FormatError or UnsupportedModel."""
    path = Path(path)
    with ExitStack() as on_error:
        parts = _open_parts(path, on_error)
        directory = Directory(str(path), parts)
        _check_count(parts[0], len(directory), len(parts))
        # first, because a model of an unknown architecture would seem to lack tensors
        _, dialect = check_architecture(parts[0])
        spec = read_spec(parts[0], directory.find("embedding").shape[0], directory.rope_factors())
        if dialect.without_biases is not None and not directory.has_biases:
            spec = replace(spec, arch=dialect.without_biases)
        order = halved(spec.head_dim) if dialect.in_pairs and spec.rope.layout == "half" else None
        stored = {
            tensor.name: directory.find(tensor.name, order if _PERMUTED.fullmatch(tensor.name) else None)
            for tensor in tensor_table(spec)
        }
        directory.check_all_used()
        check_shapes(spec, stored, "the metadata")
        model = ModelFile(path, with_types(path, spec, stored, None), stored, TYPE_NAMES)
        on_error.pop_all()
    return model


def gguf_metadata(path: str | Path, lists: bool = True) -> dict[str, Any]:
    """The metadata of a GGUF file (of a split model: of its first file) as plain values. lists: include arrays.

    Raises FormatError or UnsupportedModel.
    """
    with ExitStack() as files:
        return _open_parts(Path(path), files)[0].plain_metadata(lists)


def gguf_tokenizer(path: Path) -> bytes:
    """The tokenizer of a GGUF model as a GGUF file of its own. Raises FormatError or UnsupportedModel."""
    with ExitStack() as files:
        return _open_parts(path, files)[0].tokenizer()


def _open_parts(path: Path, files: ExitStack) -> list[Container]:
    """Open all files of the model of `path`, in order; `files` closes them."""
    given = _opened(path, files)
    count = _whole(given, "split.count", 1)
    if count <= 1:
        return [given]
    name = _SPLIT_NAME.fullmatch(path.name)
    if count > _MAX_PARTS or name is None or int(name[3]) != count:
        raise FormatError(
            f"{path}: it is one of {count} files of a model, and the others are found by name; expected NAME-00001-of-"
            f"{count:05}.gguf and so on, at most {_MAX_PARTS}. Restore its original name."
        )
    paths = [path.with_name(f"{name[1]}-{i + 1:05}-of-{count:05}{name[4]}") for i in range(count)]
    for missing in (p for p in paths if not p.exists()):
        raise FormatError(f"{missing} is missing, one of the {count} files of this model. Download it too.")
    parts = [given if p == path else _opened(p, files) for p in paths]
    for i, part in enumerate(parts):
        number, total = _whole(part, "split.no", 0), _whole(part, "split.count", 1)
        if (number, total) != (i, count):
            raise FormatError(
                f"{part.path}: its metadata says part {number + 1} of {total}, but its name says {i + 1} of {count}. "
                "Download the files again."
            )
    return parts


def _opened(path: Path, files: ExitStack) -> Container:
    container = Container(path)
    files.callback(container.pages.close)
    return container


def _whole(file: Container, key: str, default: int) -> int:
    value = file.metadata.get(key, default)
    if not isinstance(value, int):
        raise FormatError(f"{file.path}: {key} is not a whole number. The file is damaged; download it again.")
    return value


def _check_count(first: Container, found: int, n_parts: int) -> None:
    expected = _whole(first, "split.tensors.count", found)
    if n_parts > 1 and found != expected:
        raise FormatError(
            f"{first.path}: the {n_parts} files have {found} tensors together; expected {expected} "
            "(split.tensors.count). Get all parts of the same model."
        )
