"""Quantization: blocks of every `FloatType` to and from float32 arrays. Knows no file and no model."""

from dllama_zmq.quants.blocks import F32, I8, U8, dequantize, quantize, split_q40, split_q41, split_q80
from dllama_zmq.quants.k_quants import SourceType, StoredType
from dllama_zmq.quants.matrix import BlockMatrix

__all__ = [
    "F32",
    "I8",
    "U8",
    "BlockMatrix",
    "SourceType",
    "StoredType",
    "dequantize",
    "quantize",
    "split_q40",
    "split_q41",
    "split_q80",
]
