"""A model that recites: what it answers is written down, and depends on the last letter of the prompt alone.

So a test knows each token of an answer: its thinking, its end-of-turn token, its control characters. The embedding is
the unit matrix, the layer adds nothing, and the head maps each token to the one that follows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tiny import tiny_spec

from dllama_zmq.formats import TokenizerData, write_m, write_t
from dllama_zmq.models import tensor_table
from dllama_zmq.quants import BlockMatrix
from dllama_zmq.spec import FloatType, ModelSpec

WIDTH = 512
END_OF_TURN = "<|eot|>"
_FIRST_BYTE = 3
_EOT = _FIRST_BYTE + 256
_SPACE = _EOT + 1

TEMPLATE = (
    "{{- '' if enable_thinking | default(true) else 'Do not think. ' -}}"
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + ('<|eot|>' if message['role'] == 'assistant' else '') }}"
    "{%- endfor -%}"
)
"""The prompt ends with the user's last letter, which chooses the answer."""


def write_reciting_model(
    path: Path, answers: Mapping[str, Sequence[str]], template: str | None = TEMPLATE, seq_len: int = 4096
) -> Path:
    """Write a model to `path`, and its vocabulary beside it.

    answers: by the last letter of the prompt (an ASCII letter that is no small one), the pieces of the answer. It ends
    with </s>, with END_OF_TURN where that is its last piece, and never where its last piece is "...": then it begins
    anew.
    """
    pieces = [b"<unk>", b"<s>", b"</s>", *(bytes([value]) for value in range(256)), END_OF_TURN.encode(), b" "]
    follows = {}
    for letter, answer in answers.items():
        token = _FIRST_BYTE + ord(letter)
        first = len(pieces)
        for piece in answer:
            if piece in (END_OF_TURN, "..."):
                follows[token] = _EOT if piece == END_OF_TURN else first
                break
            follows[token] = token = len(pieces)
            pieces.append(piece.encode())
    assert len(pieces) <= WIDTH
    pieces += [f"<extra {i}>".encode() for i in range(WIDTH - len(pieces))]
    scores = [0.0] * _SPACE + [-float(i) for i in range(1, WIDTH - _SPACE + 1)]
    ends = (2, _EOT)
    write_t(path.with_suffix(".t"), TokenizerData(pieces, scores, 1, ends, True, template, "reciting tokenizer"))
    spec = tiny_spec(
        dim=WIDTH,
        hidden_dim=64,
        n_layers=1,
        n_heads=8,
        n_kv_heads=8,
        vocab_size=WIDTH,
        seq_len=seq_len,
        weight_type=FloatType.F32,
    )
    write_m(path, spec, _tensors(spec, follows))
    return path


def _tensors(spec: ModelSpec, follows: Mapping[int, int]) -> Iterator[tuple[str, BlockMatrix]]:
    for tensor in tensor_table(spec):
        values = np.zeros(tensor.shape(spec), dtype=np.float32)
        if tensor.name.endswith("norm"):
            values += 1
        elif tensor.name == "embedding":
            values = np.eye(WIDTH, dtype=np.float32)
        elif tensor.name == "head":
            for token in range(WIDTH):
                values[follows.get(token, 2), token] = 1
        yield tensor.name, BlockMatrix.from_array(values, tensor.float_type)
