"""Tokenizers of values that tests make, without files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllama_zmq.tokenizer import Tokenizer, TokenizerData
from dllama_zmq.tokenizer.config import read_config
from dllama_zmq.tokenizer.from_gguf import parts_of_gguf
from dllama_zmq.tokenizer.from_json import parts_of_json
from dllama_zmq.tokenizer.from_sentencepiece import parts_of_sentencepiece
from dllama_zmq.tokenizer.from_t import parts_of_t


def of_t(data: TokenizerData) -> Tokenizer:
    return Tokenizer(parts_of_t(data))


def of_gguf(metadata: Mapping[str, Any], source: str = "a.gguf") -> Tokenizer:
    return Tokenizer(parts_of_gguf(metadata, source))


def of_json(text: str, config: Mapping[str, Any], source: str = "tokenizer.json") -> Tokenizer:
    return Tokenizer(parts_of_json(text, read_config(config, source), source))


def of_sentencepiece(model: bytes, source: str = "a.model", config: Mapping[str, Any] | None = None) -> Tokenizer:
    return Tokenizer(parts_of_sentencepiece(model, read_config(config or {}, source), source))
