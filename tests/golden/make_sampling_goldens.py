"""Make sampling.npz: what transformers' logits processors leave of random logits. README.md says how to run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.generation import logits_process as hf

FOLDER = Path(__file__).parent
N_IDS, N_TOKENS = 200, 24
CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.4},
    {"temperature": 3.0, "top_k": 7},
    {"temperature": 1.0, "top_p": 0.35},
    {"temperature": 1.5, "top_p": 0.8, "top_k": 30},
    {"temperature": 1.0, "min_p": 0.2},
    {"temperature": 2.0, "min_p": 0.01, "top_p": 0.9},
    {"temperature": 1.0, "typical_p": 0.3},
    {"temperature": 2.5, "typical_p": 0.95},
    {"temperature": 0.7, "typical_p": 0.6, "top_k": 50},
    {"temperature": 1.2, "typical_p": 0.5, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0, "repetition_penalty": 1.3},
    {"temperature": 1.0, "repetition_penalty": 0.7, "top_k": 20},
    {"temperature": 0.9, "logit_bias": {"3": 4.0, "150": -100.0, "11": 0.25}},
    {"temperature": 1.1, "logit_bias": {"5": 2.5}, "repetition_penalty": 1.2, "top_p": 0.7, "typical_p": 0.8},
]


def processors(case: dict[str, Any]) -> list[Any]:
    """In the order of GenerationMixin._get_logits_processor."""
    made: list[Any] = []
    if "logit_bias" in case:
        bias = {(int(token),): value for token, value in case["logit_bias"].items()}
        made.append(hf.SequenceBiasLogitsProcessor(bias))
    if "repetition_penalty" in case:
        made.append(hf.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    made.append(hf.TemperatureLogitsWarper(case["temperature"]))
    warpers = {
        "top_k": hf.TopKLogitsWarper,
        "top_p": hf.TopPLogitsWarper,
        "min_p": hf.MinPLogitsWarper,
        "typical_p": hf.TypicalLogitsWarper,
    }
    return made + [warper(case[name]) for name, warper in warpers.items() if name in case]


def main() -> None:
    rng = np.random.default_rng(17)
    logits = (2.5 * rng.standard_normal((len(CASES), N_IDS))).astype(np.float32)
    tokens = rng.integers(0, N_IDS, (len(CASES), N_TOKENS), dtype=np.int32)
    probabilities = []
    for case, row, text in zip(CASES, logits, tokens, strict=True):
        scores = torch.tensor(row, dtype=torch.float64)[None]
        for process in processors(case):
            scores = process(torch.tensor(text)[None].long(), scores)
        probabilities.append(torch.softmax(scores, dim=-1)[0].numpy())
    made = {"cases": json.dumps(CASES), "logits": logits, "tokens": tokens, "probabilities": np.stack(probabilities)}
    np.savez_compressed(FOLDER / "sampling.npz", **made)
    print(f"{len(CASES)} cases by transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
