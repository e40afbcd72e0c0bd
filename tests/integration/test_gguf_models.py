"""GGUF models at work: the same bits as a `.m` file and on any number of nodes, and transformers' logits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zmq
from gguf_writer import TYPE_IDS, FileTensor, file_tensor, gguf_bytes, llama_metadata, llama_name, write_llama
from k_quantizers import quantized
from msgspec.structs import replace
from tiny import tiny_spec, tiny_tensors

from dllama_zmq import load
from dllama_zmq.formats import ModelFile, open_gguf, open_m, write_m
from dllama_zmq.kernels import Batch, KernelChoice
from dllama_zmq.quants import F32, BlockMatrix
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.shapes import shape
from dllama_zmq.sources import DATA_FOLDER
from dllama_zmq.spec import FloatType, Rope

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from bench_gguf import write_random_gguf

GOLDEN = Path(__file__).parents[1] / "golden"
TOOLS = Path(__file__).parents[2] / "tools"
TOKENS = np.random.default_rng(3).integers(0, 288, 50).tolist()
M_TYPES = [FloatType.F32, FloatType.F16, FloatType.Q40, FloatType.Q80]


def exactly(path: Path) -> ModelFile:
    """A GGUF model of which every tensor is read as F32: the numbers that its blocks say, K-quants too."""
    model = open_gguf(path)
    types = tuple((tensor.name, FloatType.F32) for tensor in model.tensors)
    return ModelFile(path, replace(model.spec, weight_type=FloatType.F32, stored=types), model._stored)


@contextmanager
def running(model: ModelFile, kernels: KernelChoice = "auto") -> Iterator[Root]:
    with zmq.Context() as context, model:
        root = Root(context, model, RootSettings(kernels=kernels, kv_type="f32"))
        yield root
        root.close("done")


def logits(model: ModelFile, tokens: list[int], kernels: KernelChoice = "auto") -> F32:
    with running(model, kernels) as root:
        parts = [tokens[at : at + 64] for at in range(0, len(tokens), 64)]
        return np.concatenate([root.logits(Batch.alone(64 * i, len(part)), part) for i, part in enumerate(parts)])


@pytest.mark.parametrize("weight_type", M_TYPES)
@pytest.mark.parametrize("nodes", [1, 2])
def test_a_gguf_file_gives_the_bits_of_a_m_file_of_the_same_bytes(tmp_path, weight_type, nodes):
    spec = tiny_spec(weight_type=weight_type, norm_eps=1e-6)
    tensors = list(tiny_tensors(spec, seed=5))
    write_m(tmp_path / "a.m", spec, tensors)
    write_llama(tmp_path / "b.gguf", spec, tensors)
    with load(tmp_path / "a.m", nodes=nodes) as a, load(tmp_path / "b.gguf", nodes=nodes) as b:
        assert a.spec == b.spec
        assert np.array_equal(a.logits(TOKENS), b.logits(TOKENS))


@pytest.mark.parametrize("stacked", [True, False])
def test_a_mixtral_in_pairs_gives_the_bits_of_a_m_file_in_half_layout(tmp_path, stacked):
    spec = tiny_spec(
        arch="mixtral", n_experts=4, n_active_experts=2, weight_type=FloatType.Q40, rope=Rope(10000.0, "half")
    )
    tensors = dict(tiny_tensors(spec, seed=6))
    write_m(tmp_path / "a.m", spec, tensors)
    written = []
    for name, matrix in tensors.items():
        if name.endswith(("attention.q", "attention.k")):  # llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute
            data = matrix.data.reshape(-1, 2, spec.head_dim // 2, matrix.data.shape[1]).swapaxes(1, 2)
            matrix = BlockMatrix(data.reshape(matrix.data.shape), matrix.float_type)
        if ".experts." not in name:
            written.append(
                file_tensor(f"blk.{name[7]}.ffn_gate_inp.weight" if "router" in name else llama_name(name), matrix)
            )
        elif not stacked:
            _, i, _, e, part = name.split(".")
            written.append(file_tensor(f"blk.{i}.ffn_{part}.{e}.weight", matrix))
    for i in range(spec.n_layers if stacked else 0):
        for part in ("gate", "up", "down"):
            experts = [tensors[f"layers.{i}.experts.{e}.{part}"] for e in range(spec.n_experts)]
            axes = [experts[0].columns, experts[0].rows, spec.n_experts]
            data = b"".join(expert.data.tobytes() for expert in experts)
            written.append(FileTensor(f"blk.{i}.ffn_{part}_exps.weight", axes, TYPE_IDS["Q40"], data))
    metadata = llama_metadata(spec) | {"llama.expert_count": 4, "llama.expert_used_count": 2}
    (tmp_path / "b.gguf").write_bytes(gguf_bytes(metadata, written))
    with load(tmp_path / "a.m") as a, load(tmp_path / "b.gguf", nodes=2) as b:
        assert b.spec.arch == "mixtral"
        assert np.array_equal(a.logits(TOKENS), b.logits(TOKENS))


K_SPEC = tiny_spec(dim=256, hidden_dim=768, n_heads=8, n_kv_heads=2)
Q4_K, Q5_K, Q6_K, Q50, Q51 = FloatType.Q4_K, FloatType.Q5_K, FloatType.Q6_K, FloatType.Q50, FloatType.Q51


def k_model(path: Path, kinds: dict[str, FloatType]) -> Path:
    """A model of K_SPEC, its matrices of the types by their names' last part; "": of all others.

    The first and the last third of each FFN are large and cancel out, so that adding in another order moves x by 1e-5.
    In any other it is 1e-7, which the rounding of the next product's activations to Q80 nearly always hides.
    """
    tensors = dict(tiny_tensors(K_SPEC))
    for name, matrix in tensors.items():
        if matrix.rows == 1:
            continue
        part, values = name.split(".")[-1], matrix.dequantize().copy()
        if part in ("gate", "up"):
            values[-256:] = values[:256]
        elif part == "down":
            values[:, :256] *= 1000
        tensors[name] = quantized(values, kinds.get(part, kinds[""]))
        if part == "down":
            negate_last_third(tensors[name])
    return write_llama(path, K_SPEC, tensors.items())


def negate_last_third(matrix: BlockMatrix) -> None:
    """Make its columns those of the first third, with the signs of d and of m or dmin turned."""
    kind, (first, _, last) = matrix.float_type, np.split(matrix.data, 3, axis=1)
    last[:] = first
    f16_at = {Q6_K: [208], FloatType.Q40: [0], Q50: [0]}.get(kind, [0, 2])
    for at in f16_at:
        last.reshape(matrix.rows, -1, kind.block_bytes)[..., at + 1] ^= 0x80
    own = matrix.dequantize()
    assert np.array_equal(own[:, -256:], -own[:, :256])


def test_a_model_of_k_quants_gives_the_same_bits_on_any_number_of_nodes(tmp_path):
    """Over 8 nodes each has 32 columns of `o` and 96 of `down`, within blocks of 256."""
    kinds = {"v": Q6_K, "up": Q51, "k": Q50, "head": Q6_K, "": Q4_K}
    for o, down in ((Q5_K, Q6_K), (Q6_K, Q4_K), (Q51, Q50)):
        path = k_model(tmp_path / "k.gguf", kinds | {"o": o, "down": down})
        with load(path) as alone:
            expected = alone.logits(TOKENS)
        for nodes in (2, 4, 8):
            with load(path, nodes=nodes) as model:
                assert np.array_equal(model.logits(TOKENS), expected), (o, down, nodes)


def activations_cost(path: Path) -> float:
    """The relative RMS by which logits differ from those of exact products with the same weights."""
    exact = logits(exactly(path), TOKENS).astype(np.float64)
    found = logits(open_gguf(path), TOKENS)
    return float(np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()))


@pytest.mark.parametrize("kind", [Q50, Q51, Q4_K, Q5_K, Q6_K])
def test_products_of_k_quants_lose_no_more_than_those_of_q40(tmp_path, kind):
    """Nothing but the rounding of activations to Q80, which is the same for all types."""
    of_q40 = activations_cost(k_model(tmp_path / "q40.gguf", {"": FloatType.Q40}))
    cost = activations_cost(k_model(tmp_path / "k.gguf", {"": kind}))
    print(f"{kind.name}: {cost:.3%}, Q40: {of_q40:.3%}")
    assert cost < 1.2 * of_q40  # random roundings of another model


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "qwen3moe"])
def test_the_logits_of_a_gguf_file_are_those_of_transformers(arch):
    model = exactly(GOLDEN / f"gguf_{arch}.gguf")
    with np.load(GOLDEN / f"gguf_{arch}.npz") as golden:
        got = logits(model, golden["tokens"].tolist(), "reference")
        difference = np.abs(got - golden["logits"]).max()
        print(f"{arch}: {difference:.1e} of logits up to {np.abs(golden['logits']).max():.1f}")
        assert difference < 1e-5 * np.abs(golden["logits"]).max()  # two orders of adding in float32


def test_loading_takes_the_memory_of_the_file_and_less_than_200_mb(tmp_path):
    path = tmp_path / "large.gguf"
    write_random_gguf(path, shape("tinyllama", FloatType.Q40, {"layers": 8}), k_quants=False)
    command = [sys.executable, str(TOOLS / "bench_gguf.py"), "--measure", "load", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout)
    size_mb = path.stat().st_size / 1e6
    print(f"{size_mb:.0f} MB file, {found['peak_mb']:.0f} MB at the most")
    assert size_mb > 250  # or the pages of the file, were they kept, would not be noticed
    assert found["peak_mb"] < size_mb + 200


# --- perplexity ---


def demo_in_k_quants(path: Path) -> float:
    """The demo model with every matrix that can be in K-quants in those of Q4_K_M; the share of their values."""
    n_quantized = total = 0
    tensors = []
    with open_m(DATA_FOLDER / "demo.m") as demo:
        for tensor in demo.tensors:
            matrix = demo.read(tensor.name)
            total += matrix.rows * matrix.columns
            if matrix.rows > 1 and not matrix.columns % 256 and tensor.name != "embedding":
                n_quantized += matrix.rows * matrix.columns
                kind = Q6_K if tensor.name.endswith(("v", "down", "head")) else Q4_K
                matrix = quantized(matrix.dequantize(), kind)
            tensors.append((tensor.name, matrix))
        write_llama(path, demo.spec, tensors)
    return n_quantized / total


@pytest.fixture(scope="module")
def stories() -> list[list[int]]:
    """Tokens of stories of the kind that the demo model knows, none of which it was trained on."""
    command = [sys.executable, str(TOOLS / "demo_model" / "demo_corpus.py"), "--stories", "6", "--seed", "99"]
    made = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    with load("demo") as demo:
        return [demo.tokenizer.encode(story.strip())[:500] for story in made.split("---") if story.strip()]


def perplexity(model: ModelFile, texts: list[list[int]]) -> float:
    """Of all tokens of the texts after each one's first."""
    found: list[F32] = []
    with running(model) as root:
        for tokens in texts:
            parts = [tokens[at : at + 64] for at in range(0, len(tokens), 64)]
            rows = np.concatenate([root.logits(Batch.alone(64 * i, len(part)), part) for i, part in enumerate(parts)])
            rows = rows.astype(np.float64)[:-1]
            rows -= rows.max(axis=1, keepdims=True)
            log_probabilities = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
            found.append(log_probabilities[np.arange(len(tokens) - 1), tokens[1:]])
    return float(np.exp(-np.concatenate(found).mean()))


def test_a_model_of_k_quants_has_the_perplexity_of_its_exact_values(tmp_path, stories):
    share = demo_in_k_quants(tmp_path / "demo.gguf")
    assert sum(map(len, stories)) > 1000
    exact = perplexity(exactly(tmp_path / "demo.gguf"), stories)
    change = perplexity(open_gguf(tmp_path / "demo.gguf"), stories) / exact - 1
    print(f"{share:.0%} of the values: perplexity {exact:.4f} by exact numbers, {change:+.3%} as it is run")
    assert share > 0.5
    assert exact < 5
    assert abs(change) < 0.005
