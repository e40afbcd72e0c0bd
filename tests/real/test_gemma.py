"""Gemma 3 270M from its own Q4_K_M file, against llama.cpp on the same file and against its exact weights in float32.

llama.cpp rounds what enters a product to Q8_K, which has one scale for 256 values; Q80, which is used here, has one for
32. So the logits here are nearer to the exact weights', and most of the difference to llama.cpp is its own rounding.
Measured on 2,000 tokens of alice.txt: perplexity 19.171 exact, 19.227 here, 19.354 in llama.cpp; relative RMS of the
logits' error 2.4% here and 4.0% in llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from command_line import clean_cli
from corpus import corpus
from real.gemma3_by_hand import Gemma3
from real.llama_cpp_runs import LOOKALIKES_OF_LLAMA_CPP, STRUCK, LlamaCpp

from dllama_zmq import load
from dllama_zmq.formats import read_tokenizer
from dllama_zmq.local import LocalModel

TEXT = (Path(__file__).parent / "alice.txt").read_text("utf-8")
N_TOKENS = 2000
PROMPTS = ["Once upon a time, there was a little", "The history of the steam engine begins"]
GREEDY_TOKENS = 200
NEAR_TIE = 0.6
"""Between two logits. Differences among the five likeliest tokens are 0.18 RMS off the exact weights' in llama.cpp and
0.13 here: together 0.22, of which this is less than three times."""
PERPLEXITY = 0.005
"""The standard error of the difference of the two logarithms is 0.0015 on this text."""
EVERY = 32
"""Of the logits of the text so many rows apart are compared: all are 2 GB."""
NAMES_OF_GEMMA = (
    "<bos> <eos> <pad> <start_of_turn> <end_of_turn> <start_of_image> <unused5> <mask> [multimodal] <b> </td> <h1> "
    "<start_of_turn <end_of_turn<"
)
LOOKALIKES_OF_GEMMA = [*NAMES_OF_GEMMA.split(), "<end_of_turn >", "\n" * 33, " " * 40, "\t" * 9]


@dataclass(frozen=True)
class Measured:
    """What a program makes of the text: a loss for each token but the first, and every EVERYth row of logits."""

    losses: np.ndarray
    rows: np.ndarray

    @property
    def perplexity(self) -> float:
        return math.exp(self.losses.mean())


def measured(pieces: Iterable[np.ndarray], tokens: list[int]) -> Measured:
    losses, rows, start = [], [], 0
    for piece in pieces:
        rows.append(piece[-start % EVERY :: EVERY].copy())
        following = tokens[start + 1 : start + 1 + len(piece)]
        start += len(piece)
        logits = piece[: len(following)].astype(np.float64)
        most = logits.max(axis=1)
        sums = most + np.log(np.exp(logits - most[:, None]).sum(axis=1))
        losses.append(sums - logits[np.arange(len(following)), following])
    return Measured(np.concatenate(losses), np.concatenate(rows))


def relative_rms(rows: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.mean((rows - exact) ** 2) / np.mean(exact**2)))


@pytest.fixture(scope="module")
def ours(gemma: Path) -> Iterator[LocalModel]:
    with load(gemma, max_seq_len=2304, threads=2) as model:
        yield model


@pytest.fixture(scope="module")
def text(ours: LocalModel) -> list[int]:
    return ours.tokenizer.encode(TEXT)[:N_TOKENS]


@pytest.fixture(scope="module")
def exact(gemma: Path, text: list[int]) -> Measured:
    return measured(Gemma3(gemma).logits(text), text)


@pytest.fixture(scope="module")
def by_llama_cpp(gemma_in_llama_cpp: LlamaCpp, text: list[int]) -> Measured:
    return measured(gemma_in_llama_cpp.logits(text), text)


@pytest.fixture(scope="module")
def by_ours(ours: LocalModel, text: list[int]) -> Measured:
    logits = ours.logits(text)
    return measured((logits[start : start + 256] for start in range(0, len(text), 256)), text)


@pytest.mark.timeout(1200)
def test_perplexity_is_that_of_the_exact_weights_and_differs_from_llama_cpps_by_its_own_rounding(
    text, exact, by_llama_cpp, by_ours
):
    assert len(text) == N_TOKENS
    print(f"perplexity {by_ours.perplexity:.3f}, exact {exact.perplexity:.3f}, llama.cpp {by_llama_cpp.perplexity:.3f}")
    assert abs(by_ours.perplexity / exact.perplexity - 1) < PERPLEXITY
    own = abs(by_llama_cpp.perplexity / exact.perplexity - 1)
    assert abs(by_ours.perplexity / by_llama_cpp.perplexity - 1) < PERPLEXITY + own


@pytest.mark.timeout(1200)
def test_logits_are_nearer_to_those_of_the_exact_weights_than_llama_cpps_are(exact, by_llama_cpp, by_ours):
    error, theirs = relative_rms(by_ours.rows, exact.rows), relative_rms(by_llama_cpp.rows, exact.rows)
    print(f"relative RMS of the error {error:.4f}, llama.cpp's {theirs:.4f}")
    assert error < theirs


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_greedy_text_is_llama_cpps_where_it_has_no_near_tie(ours, gemma_in_llama_cpp, prompt):
    start = ours.tokenizer.encode(prompt)
    theirs, rows = gemma_in_llama_cpp.greedy(start, GREEDY_TOKENS)
    logits = ours.logits([*start, *theirs[:-1]])[len(start) - 1 :]  # so that it goes on behind a token of its own
    chosen = logits.argmax(axis=1)
    margins = {i: float(rows[i, theirs[i]] - rows[i, chosen[i]]) for i in np.flatnonzero(chosen != theirs).tolist()}
    print(f"another token at {margins} of {GREEDY_TOKENS}, by the difference of llama.cpp's logits")
    assert all(margin < NEAR_TIE for margin in margins.values())
    parting = min(margins, default=GREEDY_TOKENS)
    decoder = ours.tokenizer.decoder(continues=True)
    same = "".join(decoder.push(token) for token in theirs[:parting])
    assert "".join(ours.generate(prompt, max_tokens=GREEDY_TOKENS)).startswith(same)


def test_1_2_and_4_nodes_have_the_same_bits(gemma, ours, text):
    for nodes in (2, 4):
        with load(gemma, nodes=nodes, max_seq_len=1024) as model:
            assert np.array_equal(model.logits(text[:600]), ours.logits(text[:600])), nodes


def test_a_cluster_of_two_processes_generates_the_text_of_one(gemma, ours, tmp_path):
    with clean_cli(tmp_path, gemma) as cli:
        cli.up(2, limits={"join_s": 60, "load_s": 120, "step_s": 60}, max_seq_len=1024)
        result = cli.run("generate", PROMPTS[0], "--temp", "0", "-n", "60", wait_s=120)
        cli.down()
    assert result.code == 0, result.said
    assert "".join(ours.generate(PROMPTS[0], max_tokens=60)) in result.out


@pytest.mark.parametrize("specials", [False, True])
def test_a_thousand_texts_are_llama_cpps_tokens(gemma, gemma_in_llama_cpp, specials):
    tokenizer, texts = read_tokenizer(gemma), corpus(1000, lookalikes=[*LOOKALIKES_OF_LLAMA_CPP, *LOOKALIKES_OF_GEMMA])
    assert len(texts) == 1000
    different = [
        text
        for text in texts
        if tokenizer.encode(text, bos=False, specials=specials) != gemma_in_llama_cpp.tokens(text, specials)
    ]
    assert different == []


def test_a_name_that_the_file_says_is_ordinary_text_is_one_token_in_any_text(gemma):
    tokenizer = read_tokenizer(gemma)
    assert tokenizer.encode(STRUCK, bos=False) == tokenizer.encode(STRUCK, bos=False, specials=True) == [212]
