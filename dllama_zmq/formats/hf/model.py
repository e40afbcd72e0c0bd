"""A Hugging Face folder as a model: spec from config.json, weights from safetensors. See FORMATS.md §5."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.hf.config import HFConfig, read_config
from dllama_zmq.formats.hf.safetensors import Entry, read_shards
from dllama_zmq.formats.mapped import closed_on_error
from dllama_zmq.formats.model_file import ModelFile
from dllama_zmq.formats.stored import Extent, RowOrder, StoredTensor, check_shapes, interleaved, with_types
from dllama_zmq.formats.tensor_names import hf_name
from dllama_zmq.models import tensor_table
from dllama_zmq.spec import FloatType

CONFIG = "config.json"
_TIED = {"head": "embedding", "embedding": "head"}
"""If the head is the embedding, files may have the tensor under either name."""
_UNUSED = re.compile(r".*\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)")
"""Tensors of old files that are computed here."""
_TEXT_PREFIX = re.compile(r"^(?:language_model\.|model\.language_model\.)(?:model\.)?(?!lm_head)")
_NOT_TEXT = re.compile(r"(?:model\.)?(?:vision_tower|multi_modal_projector)\..*")
"""Tensors of images, in models of text and images."""
_GAINS_LESS_ONE = ("gemma2", "gemma3")
"""Architectures whose norms have gains of 1 + the values in the file."""
_ROWS_COMPARED = 256
_TYPES = {"F32": FloatType.F32, "F16": FloatType.F16, "BF16": FloatType.BF16}


def open_hf(folder: str | Path, weights: FloatType | None = None) -> ModelFile:
    """Open a Hugging Face folder; matrices are read in the type `weights`, by default as stored.

    Raises FormatError or UnsupportedModel, naming file and tensor; UsageError if the widths do not fit `weights`.
    """
    folder = Path(folder)
    config = read_config(folder / CONFIG)
    entries = read_shards(folder)
    if config.has_more:
        entries = _text_part(entries)
    with closed_on_error([entry.pages for entry in entries.values()]):
        stored = _stored(folder, config, entries)
        check_shapes(config.spec, stored, CONFIG)
        spec = with_types(folder, config.spec, stored, weights)
    model = ModelFile(folder, spec, stored)
    if config.tied and _differ(stored["embedding"], stored["head"]):
        model.notes.append(
            f"{folder / CONFIG} says tie_word_embeddings, but lm_head.weight differs from the embedding. The head is "
            "lm_head.weight, as in transformers 5; correct the file to be sure"
        )
    return model


def _text_part(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """The tensors of the text part of a larger model, by their names in a text-only model."""
    return {
        _TEXT_PREFIX.sub("model.", name, count=1).removeprefix("language_model."): entry
        for name, entry in entries.items()
        if not _NOT_TEXT.fullmatch(name)
    }


def _stored(folder: Path, config: HFConfig, entries: Mapping[str, Entry]) -> dict[str, StoredTensor]:
    """The model's tensors in the files. Raises FormatError if one is missing, UnsupportedModel if one is unknown."""
    spec = config.spec
    if len(entries) < spec.n_layers * max(1, spec.n_experts):  # before a table of that length is made
        raise FormatError(
            f"{folder}: {len(entries)} tensors are too few for the {spec.n_layers} layers"
            f"{f' of {spec.n_experts} experts' if spec.n_experts else ''} in {CONFIG}. "
            "A shard is missing, or the files are not of one model."
        )
    stored: dict[str, StoredTensor] = {}
    used = set()
    for tensor in tensor_table(spec):
        theirs = hf_name(spec.arch, tensor.name)
        if theirs not in entries and config.tied and tensor.name in _TIED:
            theirs = hf_name(spec.arch, _TIED[tensor.name])
        if theirs not in entries:
            raise FormatError(
                f"{folder}: no file has the tensor {theirs}. A shard is missing, or the files are not of one model."
            )
        used.add(theirs)
        in_pairs = spec.rope.layout == "interleaved" and tensor.name.endswith(("attention.q", "attention.k"))
        stored[tensor.name] = _tensor(entries[theirs], interleaved(spec.head_dim) if in_pairs else None)
        if spec.arch in _GAINS_LESS_ONE and tensor.name.endswith("norm"):
            stored[tensor.name] = replace(stored[tensor.name], shift=1.0)
    for name, entry in entries.items():
        if name not in used and not _UNUSED.fullmatch(name):
            raise UnsupportedModel(
                f"{entry.where} does not belong to the model in {CONFIG}. "
                "The files are not of one model, or this version does not run it."
            )
    return stored


def _differ(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two matrices of one shape differ in some sampled rows; all rows can be gigabytes."""
    if one.stored is not other.stored:
        return True
    rows = np.linspace(0, one.shape[0] - 1, _ROWS_COMPARED, dtype=np.int64)
    return not np.array_equal(one.extents[0].bytes()[rows], other.extents[0].bytes()[rows])


def _tensor(entry: Entry, order: RowOrder | None) -> StoredTensor:
    if entry.dtype not in _TYPES:
        raise UnsupportedModel(
            f"{entry.where} is of type {entry.dtype[:20]}; expected {', '.join(_TYPES)}. "
            "Get the model without quantization."
        )
    if len(entry.shape) not in (1, 2):
        raise FormatError(f"{entry.where} has the shape {list(entry.shape)}; expected one or two numbers.")
    rows, columns = (1, *entry.shape)[-2:]
    extent = Extent(entry.pages, entry.offset, rows, columns, _TYPES[entry.dtype])
    return StoredTensor(entry.where, (extent,), order=order)
