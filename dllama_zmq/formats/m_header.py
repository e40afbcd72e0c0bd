"""The header of a `.m` file, to and from a ModelSpec. See FORMATS.md §2. Knows no tensor's bytes.

Every number of a header is bounded before it is used, and none decides how much is allocated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from dllama_zmq.errors import FormatError, UnsupportedModel
from dllama_zmq.formats.keyed_header import keyed_header, read_pairs
from dllama_zmq.formats.m_keys import (
    DIALECTS,
    GELU,
    M_TYPES,
    MAGIC,
    NEW_ARCH_KEYS,
    NORM_EPSILON,
    OLD_FIELDS,
    OLD_MAGIC_GROK1,
    OLD_MAGIC_LLAMA,
    OLD_ORDER,
    ROPE_FALCON,
    ROPE_LLAMA,
    ROPE_LLAMA3_1,
    SILU,
    Key,
)
from dllama_zmq.models import tensor_table
from dllama_zmq.spec import MAX_HEAD_DIM, Architecture, FloatType, ModelSpec, Rope, RopeScaling, TensorSpec

_POSITIVE = range(1, 1 << 31)


class _Pairs(Struct, frozen=True):
    """A header's pairs: the value of each key, and the value's offset in the file."""

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

    def checked(self, key: Key, allowed: Container[int], expected: str, default: int | None = None) -> int:
        """As `get`. Raises FormatError if the value is not one of `allowed`."""
        value = self.get(key, default)
        if value not in allowed:
            raise self.wrong(key, expected)
        return value

    def wrong(self, key: Key, expected: str, kind: type[FormatError] = FormatError) -> FormatError:
        """The error for a wrong value."""
        return kind(
            f"{self.path}: offset {self.offsets[key]}: key {key.value} ({key.name.lower()}) is "
            f"{self.values[key]}; {expected}"
        )


def data_bytes(spec: ModelSpec) -> int:
    """Bytes of all tensors: the length of a `.m` file after its header."""
    if spec.stored:
        return _table_bytes(spec)
    # From models of one and two layers: a hostile header may claim thousands, and all layers have one size.
    one, two = (_table_bytes(replace(spec, n_layers=n)) for n in (1, 2))
    return one + (spec.n_layers - 1) * (two - one)


def _table_bytes(spec: ModelSpec) -> int:
    kinds = Counter((tensor.axes, tensor.float_type) for tensor in tensor_table(spec))
    return sum(count * TensorSpec("", *kind).nbytes(spec) for kind, count in kinds.items())


def read_header(head: bytes, file_bytes: int, path: Path) -> tuple[ModelSpec, int]:
    """The spec, and the offset of the first tensor, of a file that begins with `head`.

    `head` is the whole file or its first MAX_HEADER_BYTES. Raises FormatError or UnsupportedModel.
    """
    if len(head) < 8:
        raise FormatError(f"{path}: {file_bytes} bytes long; a .m file begins with 8 bytes of magic and header size.")
    magic = int.from_bytes(head[:4], "little")
    if magic in (OLD_MAGIC_LLAMA, OLD_MAGIC_GROK1):
        pairs, tensors_at = _old_pairs(magic, head, file_bytes, path)
    elif magic == MAGIC:
        found, tensors_at = read_pairs(head, file_bytes, path, Key)
        pairs = _Pairs(path, {key: value for key, value, _ in found}, {key: offset for key, _, offset in found})
    else:
        raise FormatError(
            f"{path}: offset 0: magic is {magic:#010x}; expected {MAGIC:#010x}, or {OLD_MAGIC_LLAMA:#x} or "
            f"{OLD_MAGIC_GROK1:#x} for an old file. This is not a .m model file; for a Hugging Face model, give its "
            "folder."
        )
    spec = _spec(pairs, _architecture(pairs))
    try:
        spec.check()
    except FormatError as error:
        raise FormatError(f"{path}: {error}. The header cannot be that of a model.") from error
    if Key.WEIGHTS_FLOAT_TYPE not in pairs.values:
        spec = replace(spec, weight_type=_weight_type_by_size(spec, file_bytes - tensors_at, path))
    return spec, tensors_at


def header_bytes(spec: ModelSpec) -> bytes:
    """The keyed header of `spec`. Raises FormatError for a spec that a `.m` file cannot express."""
    spec.check()
    if spec.weight_type not in M_TYPES or spec.stored:
        raise FormatError(
            f"a .m file cannot hold these types of weights; all weights have one type, "
            f"{', '.join(t.name for t in M_TYPES)}. Convert them."
        )
    rope, scaling, dialect = spec.rope, spec.rope.scaling, DIALECTS[spec.arch]
    _check_writable(spec)
    values = {
        Key.VERSION: 0,
        Key.ARCH_TYPE: dialect.arch_id,
        Key.DIM: spec.dim,
        Key.HIDDEN_DIM: spec.hidden_dim,
        Key.N_LAYERS: spec.n_layers,
        Key.N_HEADS: spec.n_heads,
        Key.N_KV_HEADS: spec.n_kv_heads,
        Key.N_EXPERTS: spec.n_experts,
        Key.N_ACTIVE_EXPERTS: spec.n_active_experts,
        Key.VOCAB_SIZE: spec.vocab_size,
        Key.SEQ_LEN: spec.seq_len,
        Key.HIDDEN_ACT: GELU if spec.activation == "gelu" else SILU,
        Key.ROPE_THETA: _whole("rope theta", rope.theta),
        Key.WEIGHTS_FLOAT_TYPE: int(spec.weight_type),
    }
    # Keys above 13 only if they differ from their defaults: the oldest readers of keyed files refuse them.
    if scaling is not None:
        values |= {
            Key.ROPE_SCALING_FACTOR: _whole("RoPE scaling factor", scaling.factor),
            Key.ROPE_SCALING_LOW_FREQ_FACTOR: _whole("RoPE low frequency factor", scaling.low_freq_factor),
            Key.ROPE_SCALING_HIGH_FREQ_FACTOR: _whole("RoPE high frequency factor", scaling.high_freq_factor),
            Key.ROPE_SCALING_ORIG_MAX_SEQ_LEN: scaling.original_seq_len,
            Key.ROPE_TYPE: ROPE_LLAMA3_1,
        }
    elif rope.layout == "half" and dialect.keys != "never":
        values[Key.ROPE_TYPE] = ROPE_FALCON
    if spec.head_dim * spec.n_heads != spec.dim or dialect.keys == "always":
        values[Key.HEAD_DIM] = spec.head_dim
    if spec.norm_eps != 1e-5:
        codes = {eps: code for code, eps in NORM_EPSILON.items()}
        if spec.norm_eps not in codes:
            raise FormatError(f"a .m file cannot hold a norm epsilon of {spec.norm_eps}; only 1e-05 and 1e-06.")
        values[Key.NORM_EPSILON] = codes[spec.norm_eps]
    values[dialect.hidden_dim] = spec.hidden_dim
    if dialect.says_norm_topk and not spec.norm_topk:
        values[Key.NORM_TOPK] = 0
    if spec.window is not None:
        values[Key.WINDOW] = spec.window
    if spec.full_every:
        values[Key.FULL_EVERY] = spec.full_every
    if spec.window_rope is not None:
        values[Key.WINDOW_ROPE_THETA] = _whole("rope theta of layers with a window", spec.window_rope.theta)
    if spec.query_scalar is not None:
        values[Key.QUERY_SCALAR] = _whole("query_pre_attn_scalar", spec.query_scalar)
    if rope.factors:
        values[Key.ROPE_LINEAR_FACTOR] = _whole("factor of RoPE", rope.factors[0])
    return keyed_header(MAGIC, values)


def _check_writable(spec: ModelSpec) -> None:
    """Raise FormatError for a spec that readers, even of only the oldest keys, would read as another model."""
    arch, dialect, half = spec.arch, DIALECTS[spec.arch], spec.rope.layout == "half"
    if half and spec.rope.scaling is not None:
        raise FormatError("a .m file cannot hold RoPE of half layout with scaling; write it without the scaling.")
    if len(set(spec.rope.factors)) > 1:
        raise FormatError(
            "a .m file cannot hold a RoPE factor for each pair; only one for all, or Llama 3.1's scaling."
        )
    if spec.window_rope not in (None, Rope(spec.window_rope.theta if spec.window_rope else 0, spec.rope.layout)):
        raise FormatError("a .m file cannot hold a scaling of RoPE in the layers with a window.")
    if dialect.rope == "half" and not half:
        raise FormatError(f"a .m file's {arch} has RoPE of half layout; reorder the rows of q and k.")
    if dialect.keys == "never" and (spec.head_dim * spec.n_heads != spec.dim or spec.norm_eps != 1e-5):
        raise FormatError(f"a .m file's {arch} has a norm epsilon of 1e-05 and a head_dim of dim / n_heads.")
    if dialect.experts != (spec.n_experts > 0):
        raise FormatError(
            f"a .m file's {arch} has {'' if dialect.experts else 'no '}experts; this one has {spec.n_experts}."
        )
    if dialect.gelu_without_norm and (spec.activation != "gelu" or spec.norm_topk):
        raise FormatError(f"a .m file's {arch} has GELU, and its experts' weights are not normalized to sum to 1.")
    if not (spec.norm_topk or dialect.says_norm_topk or dialect.gelu_without_norm):
        raise FormatError(f"a .m file's {arch} has experts' weights that sum to 1.")


def _whole(name: str, value: float) -> int:
    if value != int(value) or not 0 < value < 1 << 31:
        raise FormatError(f"a .m file cannot hold a {name} of {value}; its header has only positive whole numbers.")
    return int(value)


def _old_pairs(magic: int, head: bytes, file_bytes: int, path: Path) -> tuple[_Pairs, int]:
    tensors_at = 4 + OLD_FIELDS.size
    if len(head) < tensors_at:
        raise FormatError(f"{path}: {file_bytes} bytes long; the old header alone takes {tensors_at}. It is cut short.")
    values = dict(zip(OLD_ORDER, OLD_FIELDS.unpack_from(head, 4), strict=True))
    offsets = {key: 4 + 4 * i for i, key in enumerate(OLD_ORDER)}
    return _Pairs(path, {**values, Key.ARCH_TYPE: magic}, {**offsets, Key.ARCH_TYPE: 0}), tensors_at


def _architecture(pairs: _Pairs) -> Architecture:
    number, n_experts = pairs.get(Key.ARCH_TYPE), pairs.get(Key.N_EXPERTS, 0)
    has_new_keys = any(key in pairs.values for key in NEW_ARCH_KEYS)
    found = [arch for arch, dialect in DIALECTS.items() if dialect.arch_id == number]
    if not found:
        ids = ", ".join(f"{dialect.arch_id} ({arch})" for arch, dialect in DIALECTS.items())
        raise pairs.wrong(Key.ARCH_TYPE, f"an unknown architecture; expected one of {ids}.", UnsupportedModel)
    if len(found) > 1 and not (has_new_keys or n_experts):  # the older one of an id always has experts
        found = [arch for arch in found if not DIALECTS[arch].experts] or found
    ruled_out = "never" if has_new_keys else "always"
    arch = next((arch for arch in found if DIALECTS[arch].keys != ruled_out), found[-1])
    if n_experts < 0 or pairs.get(Key.N_ACTIVE_EXPERTS, 0) < 0:
        key = Key.N_EXPERTS if n_experts < 0 else Key.N_ACTIVE_EXPERTS
        raise pairs.wrong(key, "expected 0 or more.")
    if n_experts and not DIALECTS[arch].experts:
        raise pairs.wrong(Key.N_EXPERTS, f"but a {arch} of this file format has none.", UnsupportedModel)
    if DIALECTS[arch].experts and not n_experts:
        raise FormatError(f"{pairs.path}: n_experts (key 7) is 0 or missing, and a {arch} is a mixture of experts.")
    return arch


def _spec(pairs: _Pairs, arch: Architecture) -> ModelSpec:
    dialect = DIALECTS[arch]
    dim, n_heads = pairs.get(Key.DIM), pairs.get(Key.N_HEADS)
    if Key.HEAD_DIM in pairs.values:
        head_dim = pairs.get(Key.HEAD_DIM)
    elif n_heads < 1 or dim % n_heads:
        raise pairs.wrong(Key.N_HEADS, f"it does not divide dim, {dim}, and there is no head_dim (key 19).")
    else:
        head_dim = dim // n_heads
    eps = pairs.checked(Key.NORM_EPSILON, NORM_EPSILON, "expected 5 for 1e-05 or 6 for 1e-06.", 5)
    act = pairs.checked(Key.HIDDEN_ACT, (GELU, SILU), f"expected {GELU} (GELU) or {SILU} (SiLU).", SILU)
    norm_topk = pairs.checked(Key.NORM_TOPK, (0, 1), "expected 0 or 1.", 1)
    # Without this key the type follows later from the file's size; until then F32, which fits any width.
    known = ", ".join(f"{t.value} {t.name}" for t in M_TYPES)
    weight_type = pairs.checked(Key.WEIGHTS_FLOAT_TYPE, M_TYPES, f"expected one of {known}.", 0)
    rope = _rope(pairs, dialect.rope == "half", head_dim)
    window_theta = pairs.values.get(Key.WINDOW_ROPE_THETA)
    return ModelSpec(
        arch=arch,
        dim=dim,
        hidden_dim=pairs.get(dialect.hidden_dim),
        n_layers=pairs.get(Key.N_LAYERS),
        n_heads=n_heads,
        n_kv_heads=pairs.get(Key.N_KV_HEADS),
        head_dim=head_dim,
        vocab_size=pairs.get(Key.VOCAB_SIZE),
        seq_len=pairs.get(Key.SEQ_LEN),
        weight_type=FloatType(weight_type),
        rope=rope,
        norm_eps=NORM_EPSILON[eps],
        # The converter of Grok-1 wrote no hidden_act. Other readers take SiLU then, but Grok-1 has GELU.
        activation="gelu" if dialect.gelu_without_norm or act == GELU else "silu",
        n_experts=pairs.get(Key.N_EXPERTS, 0),
        n_active_experts=pairs.get(Key.N_ACTIVE_EXPERTS, 0),
        norm_topk=norm_topk == 1 and not dialect.gelu_without_norm,
        window=pairs.values.get(Key.WINDOW),
        full_every=pairs.get(Key.FULL_EVERY, 0),
        window_rope=Rope(float(window_theta), rope.layout) if window_theta is not None else None,
        query_scalar=pairs.values.get(Key.QUERY_SCALAR),
    )


def _rope(pairs: _Pairs, half: bool, head_dim: int) -> Rope:
    """RoPE of the file. Half layout, without Llama 3.1's scaling, if `half` or for rope_type FALCON."""
    types = (ROPE_LLAMA, ROPE_FALCON, ROPE_LLAMA3_1)
    rope_type = pairs.checked(Key.ROPE_TYPE, types, "expected 0 (Llama), 1 (Falcon) or 2 (Llama 3.1).", ROPE_LLAMA)
    theta = pairs.get(Key.ROPE_THETA, 10000)
    factor = pairs.checked(Key.ROPE_SCALING_FACTOR, _POSITIVE, "expected 1 (no scaling) or more.", 1)
    linear = pairs.values.get(Key.ROPE_LINEAR_FACTOR)
    if linear is not None and linear < 1:
        raise pairs.wrong(Key.ROPE_LINEAR_FACTOR, "expected 1 or more.")
    factors = () if linear is None else (float(linear),) * (min(head_dim, MAX_HEAD_DIM) // 2)
    if rope_type == ROPE_FALCON or half:
        return Rope(float(theta), "half", factors=factors)
    if factor == 1:
        return Rope(float(theta), factors=factors)
    if factors:
        raise pairs.wrong(Key.ROPE_LINEAR_FACTOR, "but there is Llama 3.1's scaling too (key 14).")
    low = pairs.checked(Key.ROPE_SCALING_LOW_FREQ_FACTOR, _POSITIVE, "expected 1 or more.")
    above = range(low + 1, _POSITIVE.stop)
    expected = f"expected more than the low factor, which is {low}."
    high = pairs.checked(Key.ROPE_SCALING_HIGH_FREQ_FACTOR, above, expected)
    original = pairs.checked(Key.ROPE_SCALING_ORIG_MAX_SEQ_LEN, _POSITIVE, "expected a number of tokens.")
    return Rope(float(theta), "interleaved", RopeScaling(float(factor), float(low), float(high), original))


def _weight_type_by_size(spec: ModelSpec, tensor_bytes: int, path: Path) -> FloatType:
    """The weight type whose tensors have exactly `tensor_bytes` bytes."""
    sizes: dict[FloatType, int] = {}
    for float_type in M_TYPES:
        candidate = replace(spec, weight_type=float_type)
        try:
            candidate.check()
        except FormatError:
            continue  # the widths are not whole blocks of this type
        sizes[float_type] = data_bytes(candidate)
        if sizes[float_type] == tensor_bytes:
            return float_type
    wanted = ", ".join(f"{size} for {float_type.name}" for float_type, size in sizes.items())
    raise FormatError(
        f"{path}: the header has no weight type, and {tensor_bytes} bytes of tensors fit none: expected {wanted}. "
        f"The file is cut short or damaged; copy or convert it again."
    )
