"""The demo model: the same text on any number of nodes, hardly worse over a q80 bus, and stories that hold together."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import dllama_zmq
from dllama_zmq.formats import open_m
from dllama_zmq.formats.convert import convert_model
from dllama_zmq.kernels import KernelChoice
from dllama_zmq.sampling import Sampling
from dllama_zmq.sources import DATA_FOLDER
from dllama_zmq.spec import FloatType, Sync

PROMPTS = ["Once upon a time", "Tom and his dog"]
# A story of the kind that the model knows: python tools/demo_model/demo_corpus.py --stories 1 --seed 99
TEXT = (
    "One winter day, Wilbur saw Bella in the green valley. Wilbur was a clever mouse, and he loved to draw "
    'pictures. Bella could swim better than anyone. Wilbur watched with big eyes. "That looks like so much '
    'fun, Bella!" said Wilbur. "You can learn it," said Bella. "You only need to practice." Wilbur could not '
    "wait to start. On the first day, Wilbur tried to swim, but it went badly. A crow laughed at him. "
    'Wilbur\'s face felt hot. "I can\'t do it," he said. "Nobody can swim on the first day, Wilbur," said '
    'Bella. "Just try a little every day." Bella showed Wilbur what to do and waited patiently. So Wilbur '
    "practiced every day. He practiced when it was hot, and he practiced when it was cold. Each day, Wilbur "
    "got better. Bella always said something kind. Then, one beautiful day, Wilbur took a deep breath and "
    'began. And this time, he could swim! Wilbur laughed out loud. "Look at me, Bella!" he cried. "You did '
    'it, Wilbur!" said Bella, and she gave Wilbur a big hug. Now they could swim together. Wilbur was very '
    "proud. He had learned that hard things get easier with practice. And later, when a little child asked, "
    '"Can you teach me to swim?" Wilbur smiled and said, "Of course."'
)


def greedy(prompt: str, nodes: int, sync: Sync = "f32") -> str:
    with dllama_zmq.load("demo", nodes=nodes, sync=sync) as model:
        return "".join(model.generate(prompt, max_tokens=60))


def perplexity(nodes: int, sync: Sync) -> float:
    """Of TEXT: exp of the mean negative log-likelihood of its tokens after the first."""
    with dllama_zmq.load("demo", nodes=nodes, sync=sync) as model:
        tokens = model.tokenizer.encode(TEXT)
        logits = model.logits(tokens).astype(np.float64)[:-1]
    logits -= logits.max(axis=1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return float(np.exp(-log_probabilities[np.arange(len(tokens) - 1), tokens[1:]].mean()))


@pytest.fixture(scope="module")
def alone() -> dict[str, str]:
    """What one node writes, greedily."""
    return {prompt: greedy(prompt, nodes=1) for prompt in PROMPTS}


@pytest.mark.parametrize("nodes", [2, 4, 8])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text_is_that_of_one_node(prompt: str, nodes: int, alone: dict[str, str]) -> None:
    assert greedy(prompt, nodes) == alone[prompt]


@pytest.fixture(scope="module")
def in_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with its weights in F32: no activation is quantized on its way."""
    path = tmp_path_factory.mktemp("f32") / "demo.m"
    with open_m(DATA_FOLDER / "demo.m") as model:
        convert_model(model, path, FloatType.F32, lambda done, total: None)
    shutil.copy(DATA_FOLDER / "demo.t", path.with_suffix(".t"))
    return path


@pytest.mark.few(1)
@pytest.mark.parametrize("prompt", [*PROMPTS, "One day, Lily"])
def test_in_f32_the_fast_kernels_write_200_tokens_of_the_reference(prompt: str, in_f32: Path) -> None:
    texts = []
    back_ends: list[KernelChoice] = ["numpy", "simd"]
    for kernels in back_ends:
        with dllama_zmq.load(in_f32, kernels=kernels, kv_cache="f32") as model:
            texts.append("".join(model.generate(prompt, max_tokens=200)))
    assert texts[0] == texts[1]
    assert len(texts[0]) > 500


def test_q80_on_the_bus_changes_perplexity_by_less_than_half_a_percent() -> None:
    exact = perplexity(nodes=1, sync="f32")
    assert exact < 4  # it knows this kind of text; an untrained model has about 2048
    for nodes in (2, 4, 8):
        change = perplexity(nodes, "q80") / exact - 1
        print(f"perplexity {exact:.4f} on one node; over {nodes} nodes with q80 {change:+.3%}")
        assert abs(change) < 0.005


def test_stories_keep_to_their_characters_for_200_tokens() -> None:
    with dllama_zmq.load("demo") as model:
        for seed, name in enumerate(["Lily", "Tom", "Mia", "Ben", "Anna"]):
            prompt = f"Once upon a time, there was a child named {name}. {name}"
            story = "".join(model.generate(prompt, 200, Sampling(0.7, seed=seed)))
            halves = story[: len(story) // 2], story[len(story) // 2 :]
            assert all(re.search(rf"\b{name}\b", half) for half in halves), story


def test_demo_files_are_within_what_a_package_may_weigh() -> None:
    assert sum(path.stat().st_size for path in DATA_FOLDER.glob("demo.*")) <= 8 << 20
