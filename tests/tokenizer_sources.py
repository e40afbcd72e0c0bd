"""The golden tokenizer files as each kind of source, and the texts that they encode."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from corpus import corpus
from tokenizers_of import of_json, of_sentencepiece

from dllama_zmq.formats import read_tokenizer
from dllama_zmq.formats.tokenizers import tokenizer_files, write_tokenizer
from dllama_zmq.tokenizer import Tokenizer, TokenizerData

GOLDEN = Path(__file__).parent / "golden" / "tokenizers"
ENCODED = json.loads((GOLDEN / "encoded.json").read_text("utf-8"))
TEXTS = corpus()
CONFIGS: dict[str, dict[str, Any]] = {
    "bpe.model": {"add_bos_token": True},
    "unigram.model": {"add_bos_token": False},
    "llama3.json": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    "qwen2.json": {"bos_token": None, "eos_token": {"content": "<|im_end|>"}, "add_bos_token": False},
    "gpt2.json": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
    "spaced.json": {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True},
}
BYTE_LEVEL = ["llama3.json", "qwen2.json", "gpt2.json"]


def source(name: str, **more: Any) -> Tokenizer:
    """The tokenizer of a golden file, with what a model's other files would say."""
    config = CONFIGS[name] | more
    if name.endswith(".model"):
        return of_sentencepiece((GOLDEN / name).read_bytes(), name, config)
    return of_json((GOLDEN / name).read_text("utf-8"), config, name)


def digests(encode: Callable[[str], list[int]]) -> list[str]:
    return digests_of([encode(text) for text in TEXTS])


def digests_of(encoded: list[list[int]]) -> list[str]:
    chunks = [encoded[start : start + 100] for start in range(0, len(encoded), 100)]
    return [hashlib.sha256(json.dumps(chunk).encode()).hexdigest()[:16] for chunk in chunks]


@cache
def encoded_by_source(name: str) -> list[list[int]]:
    """TEXTS as the tokenizer of a golden file encodes them, without a BOS; once for all tests that look at it."""
    encode = plain(source(name))
    return [encode(text) for text in TEXTS]


@cache
def marked_by_source(name: str) -> list[str]:
    """The digests of TEXTS as the tokenizer of a golden file encodes them, special tokens too."""
    return digests(marked(source(name)))


def plain(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode(text, bos=False)


def marked(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: tokenizer.encode(text, bos=False, specials=True)


def as_gguf(name: str) -> dict[str, Any]:
    """The metadata that a GGUF file of a golden tokenizer would have."""
    head = "tokenizer.ggml."
    if name == "bpe.model":
        library = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / name))
        ids = range(library.vocab_size())
        types = [
            2 if library.is_unknown(i) else 3 if library.is_control(i) else 6 if library.is_byte(i) else 1 for i in ids
        ]
        return {
            f"{head}model": "llama",
            f"{head}tokens": [library.id_to_piece(i) for i in ids],
            f"{head}token_type": types,
            f"{head}scores": [library.get_score(i) for i in ids],
            f"{head}bos_token_id": 1,
            f"{head}eos_token_id": 2,
            f"{head}add_space_prefix": True,
        }
    file = json.loads((GOLDEN / name).read_text("utf-8"))
    tokens = {token: piece for piece, token in file["model"]["vocab"].items()}
    kinds = dict.fromkeys(tokens, 1)
    for added in file["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], 3 if added["special"] else 4
    ids_by_name = {piece: token for token, piece in tokens.items()}
    ends = {"llama3.json": "<|end_of_text|>", "qwen2.json": "<|im_end|>", "gpt2.json": "<|endoftext|>"}
    begins = {"llama3.json": "<|begin_of_text|>", "qwen2.json": "<|endoftext|>", "gpt2.json": "<|endoftext|>"}
    return {
        f"{head}model": "gpt2",
        f"{head}pre": {"llama3.json": "llama-bpe", "qwen2.json": "qwen2", "gpt2.json": "gpt-2"}[name],
        f"{head}tokens": [tokens[token] for token in range(len(tokens))],
        f"{head}token_type": [kinds[token] for token in range(len(tokens))],
        f"{head}merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in file["model"]["merges"]],
        f"{head}bos_token_id": ids_by_name[begins[name]],
        f"{head}eos_token_id": ids_by_name[ends[name]],
        f"{head}add_bos_token": name == "llama3.json",
    }


def as_t(name: str) -> TokenizerData:
    """The vocabulary of a golden tokenizer as a converter of `.t` files writes it."""
    original = source(name)
    pieces = [original.piece(token) for token in range(original.vocab_size)]
    if name == "bpe.model":
        library = sentencepiece.SentencePieceProcessor(model_file=str(GOLDEN / name))
        scores = [library.get_score(token) for token in range(len(pieces))]
        return TokenizerData(pieces, scores, 1, original.eos_ids)
    bos_id = original.bos_id if original.bos_id is not None else min(original.specials.values())
    add_bos = original.encode("a") != original.encode("a", bos=False)
    return TokenizerData(pieces, [-float(token) for token in range(len(pieces))], bos_id, original.eos_ids, add_bos)


def kept(path: Path, out: Path) -> Tokenizer:
    """The tokenizer at `path`, copied to `out`."""
    write_tokenizer(out, tokenizer_files(path))
    return read_tokenizer(out)


def folder_of(tmp_path: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        if isinstance(content, Path):
            (tmp_path / name).write_bytes(content.read_bytes())
        else:
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return tmp_path


def llama_gguf(**changes: Any) -> dict[str, Any]:
    return as_gguf("bpe.model") | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def with_token(metadata: dict[str, Any], text: str, kind: int, score: float = 0.0) -> dict[str, Any]:
    head = "tokenizer.ggml."
    more = {f"{head}tokens": text, f"{head}token_type": kind, f"{head}scores": score}
    return metadata | {key: [*metadata[key], value] for key, value in more.items() if key in metadata}
