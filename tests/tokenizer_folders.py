"""Folders of tokenizer files as they are published, for tests and for the script that asks transformers about them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
_LLAMA = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "added_tokens_decoder": {
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True},
        "2": {"content": "</s>", "special": True},
        "1000": {"content": "<tool_call>", "special": False},
    },
}
_FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
_DIGITS_FROM_THE_RIGHT = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {"Regex": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))|[^\s\p{N}]+|\s+"},
            "behavior": "Isolated",
            "invert": False,
        },
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
_TRUNCATION = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
_PADDING = {
    "strategy": {"Fixed": 16},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 3,
    "pad_type_id": 0,
    "pad_token": "<|endoftext|>",
}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sentencepiece": ("bpe.model", {}, _LLAMA),
    "sentencepiece, legacy": ("bpe.model", {}, _LLAMA | {"legacy": True}),
    "sentencepiece, not legacy": ("bpe.model", {}, _LLAMA | {"legacy": False}),
    "sentencepiece, no prefix": ("bpe.model", {}, _LLAMA | {"legacy": False, "add_prefix_space": False}),
    "truncation": ("qwen2.json", {"truncation": _TRUNCATION}, _FAST),
    "padding": ("qwen2.json", {"padding": _PADDING}, _FAST),
    "a token of the config alone": (
        "qwen2.json",
        {},
        _FAST | {"added_tokens_decoder": {"1000": {"content": "<tool_call>", "special": False}}},
    ),
    "a repeated group": ("qwen2.json", {"pre_tokenizer": _DIGITS_FROM_THE_RIGHT}, _FAST),
}
"""By name: a file of golden/tokenizers, what is changed in it, and tokenizer_config.json."""
TEXTS = [
    "", "the", " x", "a" * 40, "Once upon a time there was a small cat.", "1234567 12 123456789", "<s>a</s> b",
    "hello</s>world", "<tool_call>user x y", "a<tool_call> b", "x  <tool_call>  y", "<tool_call>", "\n\n  x", "é 😀",
    "<|im_start|>user\nhi<|im_end|>", "<think> a",
]  # fmt: skip


def write_folder(folder: Path, case: str) -> Path:
    """The folder of a case, as it is downloaded."""
    base, changes, config = CASES[case]
    folder.mkdir()
    if base.endswith(".json"):
        text = json.dumps(json.loads((GOLDEN / base).read_text("utf-8")) | changes)
        (folder / "tokenizer.json").write_text(text, "utf-8")
    else:
        shutil.copy(GOLDEN / base, folder / "tokenizer.model")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder
