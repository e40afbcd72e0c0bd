"""Meta's distribution of a Llama: params.json and the shards consolidated.NN.pth. See FORMATS.md §6.

Each shard has a slice of every matrix, as in tensor parallelism: columns of wo and w2, rows of the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from dllama_zmq.errors import FormatError
from dllama_zmq.formats.mapped import MappedFile, closed_on_error
from dllama_zmq.formats.meta.archive import Archive
from dllama_zmq.formats.meta.params import Params, read_params
from dllama_zmq.formats.meta.pickled import PickledTensor, read_tensors
from dllama_zmq.formats.model_file import ModelFile
from dllama_zmq.formats.stored import Extent, StoredTensor, check_shapes, with_types
from dllama_zmq.formats.tensor_names import meta_name
from dllama_zmq.models import tensor_table
from dllama_zmq.spec import FloatType, ModelSpec

PARAMS = "params.json"
MAX_SHARDS = 64
_BY_COLUMNS = ("attention.o", "ffn.down")
_UNUSED = ("rope.freqs",)


class _Shard(Struct, frozen=True):
    """A consolidated.NN.pth: its tensors and their locations."""

    archive: Archive
    tensors: Mapping[str, PickledTensor]

    @property
    def path(self) -> Path:
        return self.archive.pages.path

    def extent(self, name: str) -> Extent:
        """The location of a tensor by Meta's name, with its bounds checked."""
        if name not in self.tensors:
            raise FormatError(
                f"{self.path}: the tensor {name} is missing. The file is of another model; download it again."
            )
        tensor = self.tensors[name]
        storage, where = tensor.storage, f"{self.path}: tensor {name}"
        if len(tensor.shape) not in (1, 2):
            raise FormatError(f"{where} has the shape {list(tensor.shape)}; expected one or two numbers.")
        offset, nbytes = self.archive.find(f"data/{storage.key}")
        size = storage.float_type.block_bytes
        if storage.n_values * size != nbytes:
            raise FormatError(
                f"{where}: its storage has {storage.n_values} values of {size} bytes, but the record at offset "
                f"{offset} has {nbytes} bytes. The file is damaged; download it again."
            )
        rows, columns = (1, *tensor.shape)[-2:]
        return Extent(self.archive.pages, offset + tensor.first * size, rows, columns, storage.float_type)


def open_meta(folder: str | Path, weights: FloatType | None = None) -> ModelFile:
    """Open a folder of Meta; matrices are read in the type `weights`, by default as stored. No pickle is executed.

    Raises FormatError or UnsupportedModel, naming file and offset or tensor; UsageError if the widths do not fit
    `weights`.
    """
    folder = Path(folder)
    params = read_params(folder / PARAMS)
    shards: list[_Shard] = []
    opened: list[MappedFile] = []
    with closed_on_error(opened):
        for path in _shard_paths(folder):
            opened.append(MappedFile(path))
            shards.append(_open_shard(opened[-1]))
        spec, stored = _stored(folder / PARAMS, params, shards)
        check_shapes(spec, stored, PARAMS)
        spec = with_types(folder, spec, stored, weights)
    return ModelFile(folder, spec, stored)


def _shard_paths(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("consolidated.*.pth"))
    if not paths:
        raise FormatError(f"{folder}: it has {PARAMS} but no consolidated.00.pth. Download the weights too.")
    if len(paths) > MAX_SHARDS:
        raise FormatError(f"{folder}: {len(paths)} shards; expected at most {MAX_SHARDS}.")
    for i, path in enumerate(paths):
        if path.name != f"consolidated.{i:02d}.pth":
            raise FormatError(f"{folder}: it has {len(paths)} shards, but no consolidated.{i:02d}.pth. Download it.")
    return paths


def _open_shard(pages: MappedFile) -> _Shard:
    archive = Archive(pages)
    if "byteorder" in archive.records and archive.bytes("byteorder").tobytes() != b"little":
        raise FormatError(f"{pages.path}: its values are not little-endian. Save it again on another computer.")
    return _Shard(archive, read_tensors(archive.bytes("data.pkl").tobytes(), f"{pages.path}: data.pkl"))


def _stored(path: Path, params: Params, shards: Sequence[_Shard]) -> tuple[ModelSpec, dict[str, StoredTensor]]:
    """The model's spec and the locations of its tensors."""
    if len(shards[0].tensors) < params.n_layers:  # before a table of that length is made
        raise FormatError(
            f"{shards[0].path}: {len(shards[0].tensors)} tensors are too few for the {params.n_layers} layers in "
            f"{PARAMS}. The files are not of one model."
        )
    # In Llama 2 a shard has columns of the embedding, in Llama 3 rows.
    whole_rows = shards[0].extent("tok_embeddings.weight").columns == params.dim
    embedding = _join(shards, "embedding", 0 if whole_rows else 1)
    try:
        spec = params.spec(embedding.shape[0], _join(shards, "layers.0.ffn.gate", 0).shape[0])
    except FormatError as error:
        raise FormatError(f"{path}: {error}. The file is damaged, or not of this model.") from error
    stored = {"embedding": embedding}
    for tensor in tensor_table(spec):
        if tensor.name != "embedding":
            by_columns = tensor.name.endswith(_BY_COLUMNS)
            stored[tensor.name] = _join(shards, tensor.name, 1 if by_columns else 0, tensor.axes[0] == "one")
    used = {meta_name(name) for name in stored} | set(_UNUSED)
    for shard in shards:
        for name in shard.tensors.keys() - used:
            raise FormatError(
                f"{shard.path}: tensor {name[:80]!r} does not belong to the model in {PARAMS}. "
                "The files are not of one model."
            )
    return spec, stored


def _join(shards: Sequence[_Shard], name: str, axis: Literal[0, 1], replicated: bool = False) -> StoredTensor:
    """A tensor by our name, from the shards' slices along `axis`; a replicated tensor from the first shard."""
    theirs = meta_name(name)
    extents = [shard.extent(theirs) for shard in shards]
    where = f"{shards[0].path}: tensor {theirs}"
    first = extents[0]
    for shard, extent in zip(shards, extents, strict=True):
        if (extent.rows, extent.columns, extent.stored) != (first.rows, first.columns, first.stored):
            raise FormatError(
                f"{shard.path}: tensor {theirs} is {extent.rows} x {extent.columns} {extent.stored.name}; in "
                f"{shards[0].path.name} it is {first.rows} x {first.columns} {first.stored.name}. "
                "The shards are not of one model."
            )
    return StoredTensor(where, (first,) if replicated else tuple(extents), axis)
