"""Train the tokenizers of tests/unit/test_tokenizer_sources.py, and write what transformers encodes with them.

    golden-venv/bin/python tests/golden/make_tokenizer_goldens.py

Files beside it: tokenizers/*.model and *.json, and tokenizers/encoded.json with, for each of them, one SHA-256 of the
ids of every hundred texts of tests/corpus.py, as plain text and with special tokens found, and the first 40 in full.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from corpus import SAMPLES, corpus

FOLDER = Path(__file__).with_name("tokenizers")
# As they stand in the tokenizer.json of Meta-Llama-3-8B and of Qwen2.5-7B.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = """\
the of and to in a is that it was for on are with as his they be at one have this from or had by hot but some what
there we can out other were all your when up use word how said an each she which do their time if will way about many
then them would write like so these her long make thing see him two has look more day could go come did my sound no
most number who over know water than call first people may down side been now find any new work part take get place
made live where after back little only round man year came show every good me give our under name very through just
form great think say help low line before turn cause same mean differ move right boy old too does tell sentence set
three want air well also play small end put home read hand port large spell add even land here must big high such
follow act why ask men change went light kind off need house picture try us again animal point mother world near build
self earth father"""


def training_text() -> list[str]:
    rng = random.Random(5)
    lines = []
    for _ in range(1500):
        words = rng.choices(WORDS.split(), k=12)
        lines.append(" ".join(words).capitalize() + rng.choice([".", "!", "?", ", it's", "; they'll"]))
    for _ in range(300):
        name, other = rng.choices(WORDS.split(), k=2)
        lines.append(f"def {name}_{other}(self, {other}):\n    return self.{name}({other})[{rng.randrange(100)}]\n")
        lines.append(f"{rng.randrange(10000)} {rng.randrange(100)} in 19{rng.randrange(100)} and {rng.randrange(2030)}")
    return lines + [sample for sample in SAMPLES if sample.strip()] * 4


def train_sentencepiece(kind: str, **options: object) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(training_text()),
        model_writer=model,
        model_type=kind,
        vocab_size=1000,
        character_coverage=0.98,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    (FOLDER / f"{kind}.model").write_bytes(model.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def train_byte_level(name: str, split: str | None, added: list[AddedToken], nfc: bool = False) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    if split is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000 - len(added), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    tokenizer.add_tokens(added)
    if name == "llama3":
        bos = "<|begin_of_text|>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    (FOLDER / f"{name}.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False), "utf-8")
    return tokenizer


def special(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)


def through_transformers(tokenizer: tokenizers.Tokenizer, as_text: bool) -> Callable[[str], list[int]]:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, split_special_tokens=as_text)
    return lambda text: fast.encode(text, add_special_tokens=False)


def spaced(processor: sentencepiece.SentencePieceProcessor) -> tokenizers.Tokenizer:
    """The BPE model as transformers keeps Llama 2's in a tokenizer.json."""
    pieces = [processor.id_to_piece(token) for token in range(processor.vocab_size())]
    scores = {piece: processor.get_score(token) for token, piece in enumerate(pieces)}
    ids = {piece: token for token, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += [(scores[piece], pair) for pair in cuts if pair[0] in ids and pair[1] in ids]
    merges.sort(key=lambda item: -item[0])
    bpe = models.BPE(
        vocab=ids, merges=[pair for _, pair in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = tokenizers.Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([special(name) for name in ("<unk>", "<s>", "</s>", "[INST]", "[/INST]")])
    (FOLDER / "spaced.json").write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False), "utf-8")
    return tokenizer


def digests(encode: Callable[[str], list[int]], texts: list[str]) -> list[str]:
    chunks = [texts[start : start + 100] for start in range(0, len(texts), 100)]
    return [hashlib.sha256(json.dumps([encode(text) for text in chunk]).encode()).hexdigest()[:16] for chunk in chunks]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    bpe = train_sentencepiece(
        "bpe",
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        control_symbols=["[INST]", "[/INST]"],
    )
    unigram = train_sentencepiece("unigram", normalization_rule_name="identity", user_defined_symbols=["<sep>"])
    llama3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    qwen2 = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    byte_level = {
        "llama3": train_byte_level("llama3", LLAMA3, [special(name) for name in llama3]),
        "qwen2": train_byte_level(
            "qwen2",
            QWEN2,
            [*map(special, qwen2), *(AddedToken(name, normalized=False) for name in ("<think>", "</think>"))],
            nfc=True,
        ),
        "gpt2": train_byte_level("gpt2", None, [special("<|endoftext|>")]),
        "spaced": spaced(bpe),
    }
    texts = corpus()
    encoded: dict[str, object] = {"texts": len(texts)}
    encoders = {"bpe.model": (bpe.encode, None), "unigram.model": (unigram.encode, None)} | {
        f"{name}.json": (through_transformers(tokenizer, True), through_transformers(tokenizer, False))
        for name, tokenizer in byte_level.items()
    }
    for name, (plain, marked) in encoders.items():
        encoded[name] = {
            "plain": digests(plain, texts),
            "marked": digests(marked, texts) if marked else None,
            "ids": [plain(text) for text in texts[:40]],
        }
    (FOLDER / "encoded.json").write_text(json.dumps(encoded, separators=(",", ":")), "utf-8")


if __name__ == "__main__":
    main()
