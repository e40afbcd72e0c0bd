"""The keys and numbers of a `.m` header. See FORMATS.md §2."""

from __future__ import annotations

import enum
import struct
from typing import Literal

from msgspec import Struct

from dllama_zmq.spec import Architecture, FloatType

MAGIC = 0x0A00ABCD
OLD_MAGIC_LLAMA = 0xABCD00
OLD_MAGIC_GROK1 = 0xABCD01
M_MAGICS = (MAGIC, OLD_MAGIC_LLAMA, OLD_MAGIC_GROK1)
M_TYPES = (FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80)
"""The possible types of a `.m` file's weights."""
OLD_FIELDS = struct.Struct("<9i")


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
    # This package's own. Readers that do not know them must refuse the model.
    WINDOW = 1000
    NORM_TOPK = 1001
    FULL_EVERY = 1002
    WINDOW_ROPE_THETA = 1003
    QUERY_SCALAR = 1004
    ROPE_LINEAR_FACTOR = 1005


OLD_ORDER = (
    Key.DIM,
    Key.HIDDEN_DIM,
    Key.N_LAYERS,
    Key.N_HEADS,
    Key.N_KV_HEADS,
    Key.N_EXPERTS,
    Key.N_ACTIVE_EXPERTS,
    Key.VOCAB_SIZE,
    Key.SEQ_LEN,
)
NEW_ARCH_KEYS = (Key.HEAD_DIM, Key.NORM_EPSILON, Key.MOE_HIDDEN_DIM)
NORM_EPSILON = {5: 1e-5, 6: 1e-6}
GELU, SILU = 0, 1
ROPE_LLAMA, ROPE_FALCON, ROPE_LLAMA3_1 = 0, 1, 2


class Dialect(Struct, frozen=True):
    """An architecture in a `.m` header.

    Two ids stand for two architectures each, told apart by the keys NEW_ARCH_KEYS. keys: whether a header always has
    some of them, never, or may have them. gelu_without_norm: GELU, and expert weights that do not sum to 1, whatever
    its keys say.
    """

    arch_id: int
    experts: bool = False
    keys: Literal["always", "never", "may"] = "may"
    rope: Literal["half", "any"] = "half"
    hidden_dim: Key = Key.HIDDEN_DIM
    says_norm_topk: bool = False
    gelu_without_norm: bool = False


DIALECTS: dict[Architecture, Dialect] = {
    "llama": Dialect(0xABCD00, rope="any"),
    "grok1": Dialect(0xABCD01, experts=True, keys="never", gelu_without_norm=True),
    "qwen3": Dialect(0xABCD01, keys="always"),
    "mixtral": Dialect(0xABCD02, experts=True, keys="never"),
    "qwen3moe": Dialect(0xABCD02, experts=True, keys="always", hidden_dim=Key.MOE_HIDDEN_DIM, says_norm_topk=True),
    "qwen2": Dialect(0xABCD03),
    "gemma2": Dialect(0xABCD04),
    "gemma3": Dialect(0xABCD05),
}
"""The ids of Qwen2 and Gemma are this package's own."""
