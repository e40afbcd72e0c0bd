"""Published tokenizers give the tokens of the libraries and programs that their publishers or users have."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from corpus import corpus
from real.llama_cpp_runs import LOOKALIKES_OF_LLAMA_CPP, LlamaCpp
from tokenizers_of import of_gguf

from dllama_zmq.formats import read_tokenizer
from dllama_zmq.tokenizer.encoders import to_chars

NAMES = ["<|eom_id|>", "[AVAILABLE_TOOLS]", "<｜User｜>", "<｜end▁of▁sentence｜>"]
TEXTS = corpus(1000, lookalikes=[*LOOKALIKES_OF_LLAMA_CPP, *NAMES])
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_NAMES = (
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id step_id "
    "start_header_id end_header_id eom_id eot_id python_tag"
)
"""Of the first tokens behind the ranks. Both from llama_models/llama3/tokenizer.py."""
N_SPECIALS_OF_TEKKEN, N_VOCAB_OF_TEKKEN = 1000, 131072
"""Of the models with this file; the special tokens are the first."""


def differing(one: Callable[[str], list[int]], other: Callable[[str], list[int]]) -> list[str]:
    return [text for text in TEXTS if one(text) != other(text)]


@pytest.mark.parametrize("version", ["v1", "v2", "v3", "v7"])
def test_mistrals_tokens_are_sentencepieces(files: Path, version: str) -> None:
    path = files / f"mistral-{version}.model"
    tokenizer, library = read_tokenizer(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert differing(lambda text: tokenizer.encode(text, bos=False), library.encode) == []


def test_llama_3s_tokens_are_tiktokens(files: Path) -> None:
    import tiktoken

    path = files / "llama-3.model"
    lines = [line.split() for line in path.read_bytes().splitlines()]
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in lines}
    names = {f"<|{name}|>": len(ranks) + i for i, name in enumerate(LLAMA3_NAMES.split())}
    library = tiktoken.Encoding("llama3", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=names)
    tokenizer = read_tokenizer(path)
    assert differing(lambda text: tokenizer.encode(text, bos=False), library.encode_ordinary) == []
    assert (
        differing(
            lambda text: tokenizer.encode(text, bos=False, specials=True),
            lambda text: library.encode(text, allowed_special="all", disallowed_special=()),
        )
        == []
    )


def test_tekkens_tokens_are_tiktokens(files: Path) -> None:
    import tiktoken

    file = json.loads((files / "tekken.json").read_text("utf-8"))
    ranked = [base64.b64decode(token["token_bytes"]) for token in file["vocab"]]
    ranks = {piece: rank for rank, piece in enumerate(ranked[: N_VOCAB_OF_TEKKEN - N_SPECIALS_OF_TEKKEN])}
    library = tiktoken.Encoding(
        "tekken", pat_str=file["config"]["pattern"], mergeable_ranks=ranks, special_tokens={"<SPECIAL_0>": len(ranks)}
    )
    names = [f"<SPECIAL_{i}>" for i in range(N_SPECIALS_OF_TEKKEN)]
    tokenizer = of_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "tekken",
            "tokenizer.ggml.tokens": [*names, *(to_chars(piece) for piece in ranks)],
            "tokenizer.ggml.token_type": [3] * len(names) + [1] * len(ranks),
            "tokenizer.ggml.merges": [" ".join(map(to_chars, halves(piece, ranks))) for piece in ranks if piece[1:]],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        }
    )
    of_library = differing(
        lambda text: tokenizer.encode(text, bos=False),
        lambda text: [N_SPECIALS_OF_TEKKEN + token for token in library.encode_ordinary(text)],
    )
    assert of_library == []


def halves(piece: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens of lower rank that byte-pair encoding merges to `piece`."""
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        _, first = min((ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1))
        parts[first : first + 2] = [parts[first] + parts[first + 1]]
    return parts


@pytest.mark.parametrize("specials", [False, True])
def test_a_distilled_qwens_tokens_are_llama_cpps(deepseek: Path, specials: bool) -> None:
    tokenizer = read_tokenizer(deepseek)  # normalizes, as Qwen 2's tokenizer.json says and llama.cpp does not
    with LlamaCpp(deepseek, vocabulary_alone=True) as library:
        assert (
            differing(
                lambda text: tokenizer.encode(text, bos=False, specials=specials),
                lambda text: library.tokens(unicodedata.normalize("NFC", text), specials),
            )
            == []
        )
