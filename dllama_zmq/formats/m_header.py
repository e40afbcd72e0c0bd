"""The header of a `.m` file to and from a ModelSpec: see FORMATS.md §2. Knows no tensor's bytes.

Nothing is allocated by a number that a header states, and every number is bounded before it is used.
"""

from __future__ import annotations

import enum
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.models import tensor_table
from dllama_zmq.spec import FloatType, ModelSpec, Rope, RopeScaling, TensorSpec

MAGIC = 0x0A00ABCD
OLD_MAGIC_LLAMA = 0xABCD00
OLD_MAGIC_GROK1 = 0xABCD01
MAX_HEADER_BYTES = 8 + 8 * 1024
M_TYPES = (FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80)
"""The types that a `.m` file's weights can have."""
_OLD_FIELDS = struct.Struct("<9i")
_RUNS = "This version runs the Llama architecture (Llama 2 and 3, Mistral 7B, TinyLlama); give a model of that one."


class Key(enum.IntEnum):
    """The keys of the pairs in a header."""

    VERSION = 0
    ARCH_TYPE = 1
    DIM = 2
    HIDDEN_DIM = 3
    N_LAYERS = 4
    N_HEADS = 5
    N_KV_HEADS = 6
    N_EXPERTS = 7
    N_ACTIVE_EXPERTS = 8
    VOCAB_SIZE = 9
    SEQ_LEN = 10
    HIDDEN_ACT = 11
    ROPE_THETA = 12
    WEIGHTS_FLOAT_TYPE = 13
    ROPE_SCALING_FACTOR = 14
    ROPE_SCALING_LOW_FREQ_FACTOR = 15
    ROPE_SCALING_HIGH_FREQ_FACTOR = 16
    ROPE_SCALING_ORIG_MAX_SEQ_LEN = 17
    ROPE_TYPE = 18
    HEAD_DIM = 19
    NORM_EPSILON = 20
    MOE_HIDDEN_DIM = 21


_OLD_ORDER = (
    Key.DIM, Key.HIDDEN_DIM, Key.N_LAYERS, Key.N_HEADS, Key.N_KV_HEADS,
    Key.N_EXPERTS, Key.N_ACTIVE_EXPERTS, Key.VOCAB_SIZE, Key.SEQ_LEN,
)  # fmt: skip
_NEW_ARCH_KEYS = (Key.HEAD_DIM, Key.NORM_EPSILON, Key.MOE_HIDDEN_DIM)
_NORM_EPSILON = {5: 1e-5, 6: 1e-6}
_GELU, _SILU = 0, 1
_ROPE_LLAMA, _ROPE_FALCON, _ROPE_LLAMA3_1 = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Pairs:
    """A header's pairs: each key's value and the offset of that value in the file."""

    path: Path
    values: Mapping[Key, int]
    offsets: Mapping[Key, int]

    def get(self, key: Key, default: int | None = None) -> int:
        if key in self.values:
            return self.values[key]
        if default is None:
            raise FormatError(
                f"{self.path}: the header has no key {key.value} ({key.name.lower()}), which every model needs. "
                f"Convert the model again."
            )
        return default

    def wrong(self, key: Key, expected: str, kind: type[FormatError] = FormatError) -> FormatError:
        """The error for a value that is not what it must be."""
        return kind(
            f"{self.path}: offset {self.offsets[key]}: key {key.value} ({key.name.lower()}) is "
            f"{self.values[key]}; {expected}"
        )


def data_bytes(spec: ModelSpec) -> int:
    """Bytes of all tensors together: the length of a `.m` file after its header."""
    # Each kind once: a hostile header may ask for thousands of layers.
    kinds = Counter((tensor.axes, tensor.float_type) for tensor in tensor_table(spec))
    return sum(count * TensorSpec("", *kind).nbytes(spec) for kind, count in kinds.items())


def read_header(head: bytes, file_bytes: int, path: Path) -> tuple[ModelSpec, int]:
    """The spec of a file that begins with `head`, and the offset of its first tensor.

    `head` is the whole file or its first MAX_HEADER_BYTES. Raises FormatError or UnsupportedModel.
    """
    if len(head) < 8:
        raise FormatError(f"{path}: {file_bytes} bytes long; a .m file begins with 8 bytes of magic and header size.")
    magic = int.from_bytes(head[:4], "little")
    if magic == OLD_MAGIC_GROK1:
        raise UnsupportedModel(f"{path}: offset 0: magic {magic:#x} is an old file of Grok-1. {_RUNS}")
    if magic == OLD_MAGIC_LLAMA:
        pairs, tensors_at = _old_pairs(head, file_bytes, path)
    elif magic == MAGIC:
        pairs, tensors_at = _keyed_pairs(head, file_bytes, path)
    else:
        raise FormatError(
            f"{path}: offset 0: magic is {magic:#010x}; expected {MAGIC:#010x}, or {OLD_MAGIC_LLAMA:#x} for an old "
            f"file. This is no .m model file."
        )
    _check_architecture(pairs)
    spec = _spec(pairs)
    try:
        spec.check()
    except FormatError as error:
        raise FormatError(f"{path}: {error}. The header cannot be that of a model.") from error
    if Key.WEIGHTS_FLOAT_TYPE not in pairs.values:
        spec = replace(spec, weight_type=_weight_type_by_size(spec, file_bytes - tensors_at, path))
    return spec, tensors_at


def header_bytes(spec: ModelSpec) -> bytes:
    """The keyed header of `spec`. Raises FormatError for numbers that its integers cannot say."""
    spec.check()
    if spec.weight_type not in M_TYPES or spec.stored:
        raise FormatError(
            f"the weights are of types that a .m file cannot hold; it has one of {', '.join(t.name for t in M_TYPES)} "
            "for all. Convert them."
        )
    rope, scaling = spec.rope, spec.rope.scaling
    values = {
        Key.VERSION: 0,
        Key.ARCH_TYPE: OLD_MAGIC_LLAMA,
        Key.DIM: spec.dim,
        Key.HIDDEN_DIM: spec.hidden_dim,
        Key.N_LAYERS: spec.n_layers,
        Key.N_HEADS: spec.n_heads,
        Key.N_KV_HEADS: spec.n_kv_heads,
        Key.N_EXPERTS: 0,
        Key.N_ACTIVE_EXPERTS: 0,
        Key.VOCAB_SIZE: spec.vocab_size,
        Key.SEQ_LEN: spec.seq_len,
        Key.HIDDEN_ACT: _SILU,
        Key.ROPE_THETA: _whole("rope theta", rope.theta),
        Key.WEIGHTS_FLOAT_TYPE: int(spec.weight_type),
    }
    # Keys above 13 only where they say something: without them the oldest readers of keyed files load it too.
    if scaling is not None:
        if rope.layout == "half":
            raise FormatError("a .m file cannot hold RoPE of half layout with scaling; write it without the scaling.")
        values |= {
            Key.ROPE_SCALING_FACTOR: _whole("RoPE scaling factor", scaling.factor),
            Key.ROPE_SCALING_LOW_FREQ_FACTOR: _whole("RoPE low frequency factor", scaling.low_freq_factor),
            Key.ROPE_SCALING_HIGH_FREQ_FACTOR: _whole("RoPE high frequency factor", scaling.high_freq_factor),
            Key.ROPE_SCALING_ORIG_MAX_SEQ_LEN: scaling.original_seq_len,
            Key.ROPE_TYPE: _ROPE_LLAMA3_1,
        }
    elif rope.layout == "half":
        values[Key.ROPE_TYPE] = _ROPE_FALCON
    if spec.head_dim * spec.n_heads != spec.dim:
        values[Key.HEAD_DIM] = spec.head_dim
    if spec.norm_eps != 1e-5:
        codes = {eps: code for code, eps in _NORM_EPSILON.items()}
        if spec.norm_eps not in codes:
            raise FormatError(f"a .m file cannot hold a norm epsilon of {spec.norm_eps}; only 1e-05 and 1e-06.")
        values[Key.NORM_EPSILON] = codes[spec.norm_eps]
    words = [word for key, value in values.items() for word in (int(key), value)]
    return struct.pack(f"<Ii{len(words)}i", MAGIC, 8 + 4 * len(words), *words)


def _whole(name: str, value: float) -> int:
    if value != int(value) or not 0 < value < 1 << 31:
        raise FormatError(f"a .m file cannot hold a {name} of {value}; its header has whole positive numbers only.")
    return int(value)


def _old_pairs(head: bytes, file_bytes: int, path: Path) -> tuple[_Pairs, int]:
    tensors_at = 4 + _OLD_FIELDS.size
    if len(head) < tensors_at:
        raise FormatError(f"{path}: {file_bytes} bytes long; the old header alone takes {tensors_at}. It is cut short.")
    values = dict(zip(_OLD_ORDER, _OLD_FIELDS.unpack_from(head, 4), strict=True))
    offsets = {key: 4 + 4 * i for i, key in enumerate(_OLD_ORDER)}
    return _Pairs(path, {**values, Key.ARCH_TYPE: OLD_MAGIC_LLAMA}, {**offsets, Key.ARCH_TYPE: 0}), tensors_at


def _keyed_pairs(head: bytes, file_bytes: int, path: Path) -> tuple[_Pairs, int]:
    (header_size,) = struct.unpack_from("<i", head, 4)
    if header_size % 8 or not 8 <= header_size <= MAX_HEADER_BYTES:
        raise FormatError(
            f"{path}: offset 4: header size is {header_size}; expected 8 + 8 for each pair, at most {MAX_HEADER_BYTES}."
        )
    if header_size > file_bytes:
        raise FormatError(
            f"{path}: offset 4: header size is {header_size}, but the file ends at {file_bytes}. It is cut short."
        )
    values: dict[Key, int] = {}
    offsets: dict[Key, int] = {}
    for offset in range(8, header_size, 8):
        number, value = struct.unpack_from("<2i", head, offset)
        if not 0 <= number <= max(Key):
            raise FormatError(
                f"{path}: offset {offset}: header key {number} is unknown; expected 0 to {int(max(Key))}. "
                f"The file is damaged, or newer than this version reads."
            )
        values[Key(number)], offsets[Key(number)] = value, offset + 4
    return _Pairs(path, values, offsets), header_size


def _check_architecture(pairs: _Pairs) -> None:
    arch, n_experts = pairs.get(Key.ARCH_TYPE), pairs.get(Key.N_EXPERTS, 0)
    for key in (Key.N_EXPERTS, Key.N_ACTIVE_EXPERTS):
        if pairs.get(key, 0) < 0:
            raise pairs.wrong(key, "expected 0 or more.")
    # The ids 1 and 2 were given anew when keys 19 to 21 came; Grok-1 and Mixtral always have experts.
    new_ids = any(key in pairs.values for key in _NEW_ARCH_KEYS)
    names = {
        OLD_MAGIC_LLAMA: "Llama",
        OLD_MAGIC_LLAMA + 1: "Qwen3" if new_ids or not n_experts else "Grok-1",
        OLD_MAGIC_LLAMA + 2: "Qwen3-MoE" if new_ids else "Mixtral",
    }
    if arch not in names:
        raise pairs.wrong(Key.ARCH_TYPE, f"no architecture known here. {_RUNS}")
    if arch != OLD_MAGIC_LLAMA:
        raise pairs.wrong(Key.ARCH_TYPE, f"that is {names[arch]}. {_RUNS}", UnsupportedModel)
    if n_experts:
        raise pairs.wrong(Key.N_EXPERTS, f"that is a mixture of experts. {_RUNS}", UnsupportedModel)
    act = pairs.get(Key.HIDDEN_ACT, _SILU)
    if act == _GELU:
        raise pairs.wrong(
            Key.HIDDEN_ACT, f"that is GELU, and a Llama here has SiLU ({_SILU}). {_RUNS}", UnsupportedModel
        )
    if act != _SILU:
        raise pairs.wrong(Key.HIDDEN_ACT, f"expected {_SILU} (SiLU).")


def _spec(pairs: _Pairs) -> ModelSpec:
    dim, n_heads = pairs.get(Key.DIM), pairs.get(Key.N_HEADS)
    if Key.HEAD_DIM in pairs.values:
        head_dim = pairs.get(Key.HEAD_DIM)
    elif n_heads < 1 or dim % n_heads:
        raise pairs.wrong(Key.N_HEADS, f"it does not divide dim, which is {dim}, and there is no head_dim (key 19).")
    else:
        head_dim = dim // n_heads
    eps = pairs.get(Key.NORM_EPSILON, 5)
    if eps not in _NORM_EPSILON:
        raise pairs.wrong(Key.NORM_EPSILON, "expected 5 for 1e-05 or 6 for 1e-06.")
    # A file without the type gets it from its size, later; until then F32, which any width suits.
    weight_type = pairs.get(Key.WEIGHTS_FLOAT_TYPE, 0)
    if weight_type not in M_TYPES:
        known = ", ".join(f"{t.value} {t.name}" for t in M_TYPES)
        raise pairs.wrong(Key.WEIGHTS_FLOAT_TYPE, f"expected one of {known}.")
    return ModelSpec(
        arch="llama",
        dim=dim,
        hidden_dim=pairs.get(Key.HIDDEN_DIM),
        n_layers=pairs.get(Key.N_LAYERS),
        n_heads=n_heads,
        n_kv_heads=pairs.get(Key.N_KV_HEADS),
        head_dim=head_dim,
        vocab_size=pairs.get(Key.VOCAB_SIZE),
        seq_len=pairs.get(Key.SEQ_LEN),
        weight_type=FloatType(weight_type),
        rope=_rope(pairs),
        norm_eps=_NORM_EPSILON[eps],
    )


def _rope(pairs: _Pairs) -> Rope:
    """RoPE as the file has it. A rope type of FALCON means half layout, and scaling is not applied to it."""
    theta, rope_type = pairs.get(Key.ROPE_THETA, 10000), pairs.get(Key.ROPE_TYPE, _ROPE_LLAMA)
    if rope_type not in (_ROPE_LLAMA, _ROPE_FALCON, _ROPE_LLAMA3_1):
        raise pairs.wrong(Key.ROPE_TYPE, "expected 0 (Llama), 1 (Falcon) or 2 (Llama 3.1).")
    factor = pairs.get(Key.ROPE_SCALING_FACTOR, 1)
    if factor < 1:
        raise pairs.wrong(Key.ROPE_SCALING_FACTOR, "expected 1 (no scaling) or more.")
    if rope_type == _ROPE_FALCON:
        return Rope(float(theta), "half")
    if factor == 1:
        return Rope(float(theta))
    low, high = pairs.get(Key.ROPE_SCALING_LOW_FREQ_FACTOR), pairs.get(Key.ROPE_SCALING_HIGH_FREQ_FACTOR)
    original = pairs.get(Key.ROPE_SCALING_ORIG_MAX_SEQ_LEN)
    if low < 1:
        raise pairs.wrong(Key.ROPE_SCALING_LOW_FREQ_FACTOR, "expected 1 or more.")
    if high <= low:
        raise pairs.wrong(Key.ROPE_SCALING_HIGH_FREQ_FACTOR, f"expected more than the low factor, which is {low}.")
    if original < 1:
        raise pairs.wrong(Key.ROPE_SCALING_ORIG_MAX_SEQ_LEN, "expected a number of tokens.")
    return Rope(float(theta), "interleaved", RopeScaling(float(factor), float(low), float(high), original))


def _weight_type_by_size(spec: ModelSpec, tensor_bytes: int, path: Path) -> FloatType:
    """The one weight type whose tensors take exactly the bytes that the file has."""
    sizes: dict[FloatType, int] = {}
    for float_type in M_TYPES:
        candidate = replace(spec, weight_type=float_type)
        try:
            candidate.check()
        except FormatError:
            continue  # widths that are no whole blocks of this type
        sizes[float_type] = data_bytes(candidate)
        if sizes[float_type] == tensor_bytes:
            return float_type
    wanted = ", ".join(f"{size} for {float_type.name}" for float_type, size in sizes.items())
    raise FormatError(
        f"{path}: the header has no weight type, and {tensor_bytes} bytes of tensors fit none: expected {wanted}. "
        f"The file is cut short or damaged; copy or convert it again."
    )
