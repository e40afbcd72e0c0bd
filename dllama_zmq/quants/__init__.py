"""Quantization: blocks of every `FloatType` to and from float32 arrays. Knows no file and no model."""

from dllama_zmq.quants.blocks import dequantize, quantize
from dllama_zmq.quants.matrix import BlockMatrix, Later
from dllama_zmq.quants.parts import F32, I8, U8, Parts, split
from dllama_zmq.quants.source import SourceType, StoredType

__all__ = [
    "F32",
    "I8",
    "U8",
    "BlockMatrix",
    "Later",
    "Parts",
    "SourceType",
    "StoredType",
    "dequantize",
    "quantize",
    "split",
]
