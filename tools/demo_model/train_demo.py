"""Train the demo model and write it as dllama_zmq/data/demo.m and demo.t.

    pip install torch==2.13.0 sentencepiece numpy
    python tools/demo_model/train_demo.py                                # train, check, export
    python tools/demo_model/train_demo.py --export-only build/demo       # export again from a saved checkpoint

Everything is made here from a seed: the stories (demo_corpus.py), the tokenizer and the weights. Only this tool needs
PyTorch and SentencePiece; the package does not.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

try:
    import numpy as np
    import numpy.typing as npt
    import sentencepiece
    import torch
    import torch.nn.functional as F
    from demo_net import Net, NetShape
    from torch import Tensor
except ImportError as error:
    sys.exit(
        f"train_demo.py needs {error.name}, which is not installed. It is needed for training only:\n"
        "    pip install torch==2.13.0 sentencepiece numpy"
    )

from demo_corpus import names, stories

Rows = npt.NDArray[np.int64]

ROOT = Path(__file__).resolve().parents[2]
UNK, BOS, EOS = 0, 1, 2
PROMPTS = (
    "Once upon a time",
    "One day, Lily",
    "Tom and his dog",
    "In a small village",
    "One sunny morning, Lily",
    "There was once a little fox named",
    "Mia was",
    "The sun was shining",
    "Once upon a time, there was a boy",
    "One day, Ben and his friend Anna",
)
NET_NAMES = {
    "attention_norm": "rms_att",
    "attention.": "w",
    "ffn_norm": "rms_ffn",
    "ffn.gate": "w1",
    "ffn.down": "w2",
    "ffn.up": "w3",
    "final_norm": "rms_final",
    "head": "lm_head",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to train."""

    n_steps: int
    n_tokens: int  # of one step
    peak_rate: float
    warm_up: float = 0.03  # shares of all steps
    cool_down: float = 0.45
    q40_share: float = 0.2
    long_share: float = 0.6  # the last steps see rows of 512 tokens, the first ones rows of 256
    weight_decay: float = 0.05

    def rate(self, step: int) -> float:
        """Return the learning rate of `step`: linear warm-up, a plateau, then a linear way down to 2 %."""
        done = (step + 1) / self.n_steps
        down = max(0.02, (1.0 - done) / self.cool_down)
        return self.peak_rate * min(1.0, done / self.warm_up, down)


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> bytes:
    """Return a SentencePiece BPE model trained on `texts`, as the bytes of its file."""
    lines = [line for text in texts for line in text.split("\n") if line]
    # Names also open lines and quotes, where no space precedes them; let each be one piece there too.
    lines += [f'"{name}" "{name}, "{name}.' for name in names() for _ in range(200)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        add_dummy_prefix=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=UNK,
        bos_id=BOS,
        eos_id=EOS,
        pad_id=-1,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def pack(documents: Sequence[Sequence[int]], width: int) -> Rows:
    """Return rows (N, width + 1) of story after story; a row begins with a BOS, and its last story may be cut."""
    rows: list[list[int]] = []
    row: list[int] = []
    for document in documents:
        row = [*row, *document]
        if len(row) > width:
            rows.append(row[: width + 1])
            row = []
    return np.array(rows, dtype=np.int64)


def pack_halves(documents: Sequence[Sequence[int]], width: int) -> Rows:
    """Return rows (N, width + 1): the beginning and the ending of each story that is long enough."""
    halves = [half for d in documents if len(d) > width for half in (d[: width + 1], d[-width - 1 :])]
    return np.array(halves, dtype=np.int64)


def batches(documents: Sequence[Sequence[int]], plan: Plan, seed: int) -> Iterator[Tensor]:
    """Yield one batch (B, T + 1) for every step, in an order that depends on `seed` alone."""
    rng = random.Random(seed)
    n_short = round(plan.n_steps * (1.0 - plan.long_share))
    for width, n_steps, packer in ((256, n_short, pack_halves), (512, plan.n_steps - n_short, pack)):
        n_rows = plan.n_tokens // width
        rows, next_row = np.empty((0, width + 1), dtype=np.int64), 0
        for _ in range(n_steps):
            if next_row + n_rows > len(rows):
                order = list(documents)
                rng.shuffle(order)
                rows, next_row = packer(order, width), 0
                shuffled = list(range(len(rows)))
                rng.shuffle(shuffled)
                rows = rows[shuffled]
            yield torch.from_numpy(rows[next_row : next_row + n_rows])
            next_row += n_rows


@torch.no_grad()
def mean_loss(net: Net, rows: Rows) -> float:
    """Return the mean loss in nats per token over `rows`, in float32."""
    total = 0.0
    for start in range(0, len(rows), 8):
        batch = torch.from_numpy(rows[start : start + 8])
        logits = net(batch[:, :-1])
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / (rows.size - len(rows))  # the first token of a row is not predicted


@torch.no_grad()
def sample(net: Net, prompt: Sequence[int], n_tokens: int, temperature: float, seed: int) -> list[int]:
    """Return `prompt` and up to `n_tokens` more; EOS ends it and is kept."""
    generator = torch.Generator().manual_seed(seed)
    tokens = list(prompt)
    for _ in range(min(n_tokens, net.shape.max_seq_len - len(tokens))):
        logits = net(torch.tensor([tokens]))[0, -1]
        tokens.append(int(torch.multinomial(F.softmax(logits / temperature, dim=-1), 1, generator=generator)))
        if tokens[-1] == EOS:
            break
    return tokens


def print_samples(net: Net, tokenizer: sentencepiece.SentencePieceProcessor, n_samples: int, n_tokens: int) -> None:
    """Print `n_samples` continuations at temperature 0.7."""
    for index in range(n_samples):
        prompt = [BOS, *tokenizer.encode(PROMPTS[index % len(PROMPTS)])]
        tokens = sample(net, prompt, n_tokens, temperature=0.7, seed=index)
        ending = "<EOS>" if tokens[-1] == EOS else "..."
        print(f"--- sample {index} tokens={len(tokens) - len(prompt)}\n{tokenizer.decode(tokens)} {ending}", flush=True)


def train(
    net: Net,
    documents: Sequence[Sequence[int]],
    held_out: Rows,
    plan: Plan,
    seed: int,
    tokenizer: sentencepiece.SentencePieceProcessor,
    check_every: int,
) -> dict[str, float]:
    """Train `net` in place and return the figures of the run."""
    matrices = [p for p in net.parameters() if p.dim() == 2]
    gains = [p for p in net.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": plan.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-8,
        fused=True,
    )
    n_plain = round(plan.n_steps * (1.0 - plan.q40_share))
    started, said, recent = time.monotonic(), 0.0, 0.0
    for step, batch in enumerate(batches(documents, plan, seed)):
        net.see_q40(step >= n_plain)
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(batch[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        elapsed = time.monotonic() - started
        if elapsed - said >= 5.0 or step + 1 == plan.n_steps:
            said = elapsed
            print(
                f"step={step + 1}/{plan.n_steps} loss={recent:.4f} rate={plan.rate(step):.2e} "
                f"tok_s={(step + 1) * plan.n_tokens / elapsed:.0f} elapsed_s={elapsed:.0f} "
                f"left_s={elapsed / (step + 1) * (plan.n_steps - step - 1):.0f}",
                flush=True,
            )
        if check_every and (step + 1) % check_every == 0:
            print(f"check step={step + 1} held_out={mean_loss(net, held_out[:16]):.4f}", flush=True)
            print_samples(net, tokenizer, 2, 120)
    seconds = time.monotonic() - started
    return {
        "minutes": round(seconds / 60, 1),
        "tokens_per_second": round(plan.n_steps * plan.n_tokens / seconds),
        "tokens": plan.n_steps * plan.n_tokens,
        "train_loss": round(recent, 4),
    }


def save_checkpoint(folder: Path, net: Net, tokenizer_model: bytes, figures: dict[str, float]) -> None:
    """Write weights.npz, tokenizer.model and figures.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "weights.npz", **{name: p.detach().numpy() for name, p in net.named_parameters()})
    (folder / "tokenizer.model").write_bytes(tokenizer_model)
    (folder / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


def load_checkpoint(folder: Path) -> tuple[dict[str, npt.NDArray[np.float32]], bytes]:
    """Return the arrays of a checkpoint by name and its tokenizer model, or end with one line."""
    for path in (folder / "weights.npz", folder / "tokenizer.model"):
        if not path.is_file():
            sys.exit(f"No {path.name} in {folder}. Train first: python tools/demo_model/train_demo.py --out {folder}")
    with np.load(folder / "weights.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}, (folder / "tokenizer.model").read_bytes()


def export(weights: Mapping[str, npt.NDArray[np.float32]], shape: NetShape, tokenizer_model: bytes, data: Path) -> None:
    """Write demo.m (Q40 matrices, F32 embedding and norms) and demo.t with the package's own writers."""
    sys.path.insert(0, str(ROOT))
    try:
        from dllama_zmq.formats import TokenizerData, write_m, write_t
        from dllama_zmq.models import tensor_table
        from dllama_zmq.quants import BlockMatrix
        from dllama_zmq.spec import FloatType, ModelSpec, Rope
    except ImportError as error:
        sys.exit(
            f"The checkpoint is saved, but the export needs {error.name}, which is not installed:\n"
            f"    pip install -e {ROOT}\n    python tools/demo_model/train_demo.py --export-only CHECKPOINT"
        )
    spec = ModelSpec(
        "llama",
        shape.dim,
        shape.hidden_dim,
        shape.n_layers,
        shape.n_heads,
        shape.n_kv_heads,
        shape.dim // shape.n_heads,
        shape.vocab_size,
        shape.max_seq_len,
        FloatType.Q40,
        Rope(shape.rope_theta),
        shape.norm_eps,
    )
    data.mkdir(parents=True, exist_ok=True)
    write_m(
        data / "demo.m",
        spec,
        {
            t.name: BlockMatrix.from_array(weights[net_name(t.name)].reshape(t.shape(spec)), t.float_type)
            for t in tensor_table(spec)
        },
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    pieces = [
        bytes([int(piece[3:5], 16)]) if processor.is_byte(index) else piece.replace("\u2581", " ").encode()
        for index, piece in enumerate(processor.id_to_piece(list(range(processor.vocab_size()))))
    ]
    scores = [float(processor.get_score(index)) for index in range(processor.vocab_size())]
    write_t(data / "demo.t", TokenizerData(pieces, scores, BOS, (EOS,)))
    for name in ("demo.m", "demo.t"):
        print(f"wrote {data / name} bytes={(data / name).stat().st_size}", flush=True)


def net_name(name: str) -> str:
    """Return what a tensor of the package is called in Net."""
    for theirs, ours in NET_NAMES.items():
        name = name.replace(theirs, ours)
    return name if name == "embedding" else f"{name}.weight"


def check_export(
    data: Path, texts: Sequence[str], tokenizer: sentencepiece.SentencePieceProcessor, held_out: Rows, n_samples: int
) -> None:
    """Read demo.m and demo.t back as a user would; print the held-out loss and samples of what is in them."""
    from dllama_zmq.formats import open_model, read_tokenizer

    theirs = read_tokenizer(data / "demo.t")
    differing = sum(
        list(theirs.encode(text)) not in (tokenizer.encode(text), [BOS, *tokenizer.encode(text)]) for text in texts
    )
    print(f"demo.t: {differing} of {len(texts)} held-out stories are encoded in another way than by SentencePiece")
    net = Net(NetShape())
    parameters = dict(net.named_parameters())
    with open_model(data / "demo.m") as model, torch.no_grad():
        for tensor in model.tensors:
            parameter = parameters[net_name(tensor.name)]
            values = np.array(model.read(tensor.name).dequantize())  # a copy: the file is mapped read-only
            parameter.copy_(torch.from_numpy(values.reshape(parameter.shape)))
    print(f"demo.m: held_out={mean_loss(net, held_out):.4f}", flush=True)
    print_samples(net, tokenizer, n_samples, 200)


def main() -> None:
    """Train, check and export the demo model."""
    parser = argparse.ArgumentParser(description="Train the demo model and write dllama_zmq/data/demo.m and demo.t.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "demo", help="checkpoint folder (build/demo)")
    parser.add_argument("--data", type=Path, default=ROOT / "dllama_zmq" / "data", help="where demo.m and demo.t go")
    parser.add_argument("--steps", type=int, default=2800)
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens of one step, a multiple of 512")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="peak learning rate")
    parser.add_argument("--stories", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--samples", type=int, default=10, help="stories to print at the end")
    parser.add_argument("--check-every", type=int, default=600, help="steps between looks at samples; 0: none")
    parser.add_argument("--no-export", action="store_true", help="stop at the checkpoint")
    parser.add_argument("--export-only", type=Path, metavar="CHECKPOINT", help="no training: export this folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    shape = NetShape()
    held_out_texts = list(stories(300, args.seed + 1_000_000))
    folder = args.export_only or args.out

    if args.export_only is None:
        print(f"writing {args.stories} stories", flush=True)
        texts = list(stories(args.stories, args.seed))
        tokenizer_model = train_tokenizer(texts[:6000], shape.vocab_size)
    else:
        weights, tokenizer_model = load_checkpoint(folder)
    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model)
    held_out = pack([[BOS, *ids, EOS] for ids in tokenizer.encode(held_out_texts)], shape.max_seq_len)

    if args.export_only is None:
        documents = [[BOS, *ids, EOS] for ids in tokenizer.encode(texts)]
        print(f"tokens={sum(map(len, documents))} words={sum(len(t.split()) for t in texts)}", flush=True)
        net = Net(shape)
        plan = Plan(n_steps=args.steps, n_tokens=args.batch_tokens, peak_rate=args.rate)
        figures = train(net, documents, held_out, plan, args.seed, tokenizer, args.check_every)
        for name, on in (("held_out_f32", False), ("held_out_q40", True)):
            net.see_q40(on)
            figures[name] = round(mean_loss(net, held_out), 4)
        save_checkpoint(folder, net, tokenizer_model, figures)
        print(json.dumps(figures), flush=True)
        weights = load_checkpoint(folder)[0]
        if args.no_export:
            return
    export(weights, shape, tokenizer_model, args.data)
    check_export(args.data, held_out_texts, tokenizer, held_out, args.samples)


if __name__ == "__main__":
    main()
