"""Model folders of Hugging Face and Meta for tests, written by their formats' descriptions and by nothing of ours.

Tensors come in this package's own layout, as float32 by name; here they get the names, rows, types and containers that
the others have.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dllama_zmq.formats import ModelFile
from dllama_zmq.spec import ModelSpec

F32 = npt.NDArray[np.float32]
HF_TYPES = {"F32": 4, "F16": 2, "BF16": 2}
_HF_LAYER = {
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_META_LAYER = {
    "attention.q": "attention.wq",
    "attention.k": "attention.wk",
    "attention.v": "attention.wv",
    "attention.o": "attention.wo",
    "ffn.gate": "feed_forward.w1",
    "ffn.up": "feed_forward.w3",
    "ffn.down": "feed_forward.w2",
    "attention_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
}


def arrays_of(model: ModelFile) -> dict[str, F32]:
    """Every tensor of an open model as float32."""
    return {tensor.name: model.read(tensor.name).dequantize() for tensor in model.tensors}


def typed(values: F32, dtype: str) -> bytes:
    """The values as a file has them; BF16 must hold them exactly."""
    if dtype == "F32":
        return values.astype("<f4").tobytes()
    if dtype == "F16":
        return values.astype("<f2").tobytes()
    bits = values.astype("<f4").view("<u4")
    assert not (bits & 0xFFFF).any(), "values that BF16 does not hold"
    return (bits >> 16).astype("<u2").tobytes()


def safetensors(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], **metadata: str) -> bytes:
    """A file of the tensors name -> (dtype, shape, bytes)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + len(data)]}
        end += len(data)
    return with_header(header, b"".join(data for _, _, data in tensors.values()))


def with_header(header: object, data: bytes) -> bytes:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def hf_config(spec: ModelSpec, tied: bool = False, **overrides: Any) -> dict[str, Any]:
    """A config.json of a Llama as transformers 4 writes it."""
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": spec.dim,
        "intermediate_size": spec.hidden_dim,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.seq_len,
        "rms_norm_eps": spec.norm_eps,
        "hidden_act": "silu",
        "rope_theta": spec.rope.theta,
        "rope_scaling": None,
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "bfloat16",
    }
    scaling = spec.rope.scaling
    if scaling is not None:
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_seq_len,
        }
    return config | overrides


def hf_tensors(
    spec: ModelSpec, arrays: Mapping[str, F32], dtype: str | Mapping[str, str] = "F32", tied: bool = False
) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """The tensors as transformers has them; `dtype` for all, or by our names."""
    tensors = {}
    for name, values in arrays.items():
        if name == "head" and tied:
            continue
        kind = dtype if isinstance(dtype, str) else dtype.get(name, "F32")
        if name.endswith(("attention.q", "attention.k")):
            values = halves(values, spec.head_dim)
        shape = values.shape[1:] if name.endswith("norm") else values.shape
        tensors[hf_name(name)] = (kind, shape, typed(values, kind))
    return tensors


def halves(values: F32, head_dim: int) -> F32:
    """Rows 0, 2, 4, ... of each head, then rows 1, 3, 5, ...: from neighbours to halves."""
    heads = values.reshape(-1, head_dim, values.shape[1])
    return np.concatenate([heads[:, 0::2], heads[:, 1::2]], axis=1).reshape(values.shape)


def hf_name(name: str) -> str:
    top = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
    if name in top:
        return f"{top[name]}.weight"
    _, layer, rest = name.split(".", 2)
    return f"model.layers.{layer}.{_HF_LAYER[rest]}.weight"


def write_hf(
    folder: Path,
    spec: ModelSpec,
    arrays: Mapping[str, F32],
    dtype: str | Mapping[str, str] = "F32",
    tied: bool = False,
    n_shards: int = 1,
    **config: Any,
) -> Path:
    """A Hugging Face folder, with an index where there are several shards."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(spec, tied, **config)))
    tensors = hf_tensors(spec, arrays, dtype, tied)
    if n_shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors(tensors))
        return folder
    weight_map: dict[str, str] = {}
    for i in range(n_shards):
        name = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        part = dict(list(tensors.items())[i::n_shards])
        (folder / name).write_bytes(safetensors(part))
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def text(value: str) -> bytes:
    """BINUNICODE."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """BININT, or LONG1 where it is too large."""
    if value < 1 << 31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(9, "little")
    return b"\x8a" + bytes([len(data)]) + data


def numbers(values: tuple[int, ...]) -> bytes:
    """A tuple."""
    return b"(" + b"".join(map(number, values)) + b"t"


def pickled_storage(key: str, storage: str, n_values: int) -> bytes:
    """A persistent reference to a storage."""
    said = text("storage") + f"ctorch\n{storage}\n".encode() + text(key) + text("cpu") + number(n_values)
    return b"(" + said + b"tQ"


def pickled_tensor(
    storage: bytes, shape: tuple[int, ...], first: int = 0, strides: tuple[int, ...] | None = None
) -> bytes:
    """A call of _rebuild_tensor_v2."""
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape)))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + number(first)
        + numbers(shape)
        + numbers(strides)
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def pickled_dict(items: Mapping[str, bytes]) -> bytes:
    """A whole pickle: a dict of values that are pickled already."""
    return b"\x80\x02}(" + b"".join(text(name) + value for name, value in items.items()) + b"u."


def write_archive(path: Path, records: Mapping[str, bytes]) -> None:
    """What torch.save writes: a zip of records as they are."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in records.items():
            archive.writestr(f"archive/{name}", data)


def write_pth(path: Path, tensors: Mapping[str, F32], storage: str = "FloatStorage") -> None:
    """A .pth of tensors."""
    dtype = {"FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16"}[storage]
    items, records = {}, {}
    for i, (name, values) in enumerate(tensors.items()):
        items[name] = pickled_tensor(pickled_storage(str(i), storage, values.size), values.shape)
        records[f"data/{i}"] = typed(values, dtype)
    write_archive(path, {"data.pkl": pickled_dict(items), "byteorder": b"little", **records, "version": b"3\n"})


def meta_tensors(arrays: Mapping[str, F32]) -> dict[str, F32]:
    """The tensors by Meta's names; vectors have one axis."""
    names = {"embedding": "tok_embeddings", "final_norm": "norm", "head": "output"}
    tensors = {}
    for name, values in arrays.items():
        if name.startswith("layers."):
            _, layer, rest = name.split(".", 2)
            theirs = f"layers.{layer}.{_META_LAYER[rest]}"
        else:
            theirs = names[name]
        tensors[f"{theirs}.weight"] = values[0] if name.endswith("norm") else values
    return tensors


def meta_params(spec: ModelSpec, **overrides: Any) -> dict[str, Any]:
    """A params.json."""
    return {
        "dim": spec.dim,
        "n_layers": spec.n_layers,
        "n_heads": spec.n_heads,
        "n_kv_heads": spec.n_kv_heads,
        "norm_eps": spec.norm_eps,
        "rope_theta": spec.rope.theta,
        "vocab_size": -1,
        "multiple_of": 32,
        "max_seq_len": spec.seq_len,
    } | overrides


def write_meta(
    folder: Path,
    spec: ModelSpec,
    arrays: Mapping[str, F32],
    storage: str = "FloatStorage",
    n_shards: int = 1,
    embedding_axis: int = 1,
    **params: Any,
) -> Path:
    """A folder of Meta's, cut into shards as their model code does."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(meta_params(spec, **params)))
    tensors = meta_tensors(arrays)
    for shard in range(n_shards):
        part = {}
        for name, values in tensors.items():
            by_columns = name.endswith(("wo.weight", "w2.weight"))
            axis = embedding_axis if name.startswith("tok_") else 1 if by_columns else 0
            part[name] = values if values.ndim == 1 else np.split(values, n_shards, axis)[shard]
        write_pth(folder / f"consolidated.{shard:02d}.pth", part, storage)
    return folder
