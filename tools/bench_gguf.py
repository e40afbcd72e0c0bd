"""Time and memory that loading a GGUF model takes, beside reading its file once and repacking its tensors.

    python tools/bench_gguf.py [--shape tinyllama] [--quantization q4_0|q4_k_m] [--layers N] [--threads 1] [--rounds 8]

Writes a random file of the shape into a temporary folder, and measures in child processes with the file in the page
cache. `floor`: read the file once through a small buffer, then repack the tensors into tiles from a mapping whose pages
are all present. `load`: open the file, then read and repack each tensor of a single node as a root does. Peak memory is
VmHWM, which includes the pages of the file.

The cost of first touching memory depends on its previous owner, and this exceeds all other effects. So each process
first takes and frees more memory than it will need, and the two measurements alternate. Compare medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from dllama_zmq.formats import open_gguf
from dllama_zmq.formats.kinds import GGUF_MAGIC
from dllama_zmq.formats.random_model import random_matrix
from dllama_zmq.formats.tensor_names import gguf_name
from dllama_zmq.kernels import choose_kernels
from dllama_zmq.models import tensor_table
from dllama_zmq.shapes import SHAPES, shape
from dllama_zmq.sharding import Plan, build_shard
from dllama_zmq.spec import FloatType, ModelSpec, TensorSpec

SEQ_LEN = 2048
_TYPE_IDS = {"F32": 0, "Q40": 2, "Q4_K": 12, "Q6_K": 14}
_Q6_PARTS = ("attention.v", "ffn.down")


def stored_type(tensor: TensorSpec, spec: ModelSpec, k_quants: bool) -> FloatType:
    """About the type that llama.cpp gives a tensor in a Q4_0 or Q4_K_M file."""
    if tensor.axes[0] == "one":
        return FloatType.F32
    if not k_quants:
        return FloatType.Q40
    if tensor.name == "head":
        return FloatType.Q6_K
    layer = int(tensor.name.split(".")[1]) if tensor.name.startswith("layers.") else 0
    return FloatType.Q6_K if tensor.name.endswith(_Q6_PARTS) and layer % 2 else FloatType.Q4_K


def write_random_gguf(path: Path, spec: ModelSpec, k_quants: bool) -> None:
    """A GGUF file of a Llama, one tensor in memory at a time."""
    rng = np.random.default_rng(1)
    tensors = [replace(tensor, float_type=stored_type(tensor, spec, k_quants)) for tensor in tensor_table(spec)]
    numbers = {
        "block_count": spec.n_layers,
        "context_length": spec.seq_len,
        "embedding_length": spec.dim,
        "feed_forward_length": spec.hidden_dim,
        "attention.head_count": spec.n_heads,
        "attention.head_count_kv": spec.n_kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
    }
    pairs = [("general.architecture", struct.pack("<I", 8) + _text("llama"))]
    pairs += [(f"llama.{key}", struct.pack("<II", 4, value)) for key, value in numbers.items()]
    pairs.append(("llama.attention.layer_norm_rms_epsilon", struct.pack("<If", 6, spec.norm_eps)))
    head = (
        GGUF_MAGIC
        + struct.pack("<IQQ", 3, len(tensors), len(pairs))
        + b"".join(_text(key) + value for key, value in pairs)
    )
    offset = 0
    for tensor in tensors:
        rows, columns = tensor.shape(spec)
        axes = [columns] if rows == 1 else [columns, rows]
        head += _text(gguf_name(tensor.name)) + struct.pack(
            f"<I{len(axes)}QIQ", len(axes), *axes, _TYPE_IDS[tensor.float_type.name], offset
        )
        offset += -(-tensor.nbytes(spec) // 32) * 32
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % 32))
        for tensor in tensors:
            data = random_matrix(rng, tensor, spec).data
            file.write(np.ascontiguousarray(data).data)
            file.write(bytes(-data.nbytes % 32))


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def measure(how: str, path: Path, threads: int) -> dict[str, float]:
    """Measure in this process: seconds, and peak memory in MB."""
    kernels = choose_kernels("auto", threads, False)
    size = path.stat().st_size
    touched = np.ones(size * 3 // 2, np.uint8)
    del touched
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    if how == "floor":
        started, cpu_started = time.perf_counter(), time.process_time()
        buffer = memoryview(bytearray(1 << 22))
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        read_s, read_cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
        with open_gguf(path) as model:
            plan = Plan.make(model.spec, 1)
            ready = {t.name: model.read(t.name) for t in plan.shard_tensors()}
            for part in ready.values():
                part.data.max()  # touches each of its pages
            started, cpu_started = time.perf_counter() - read_s, time.process_time() - read_cpu_s
            shard = build_shard(plan, 0, ready.__getitem__, kernels, "f16", SEQ_LEN)
            took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    else:
        read_s = 0.0
        started, cpu_started = time.perf_counter(), time.process_time()
        with open_gguf(path) as model:
            shard = build_shard(Plan.make(model.spec, 1), 0, model.read, kernels, "f16", SEQ_LEN)
            model.forget_pages()
        took_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
    del shard
    return {"s": took_s, "cpu_s": cpu_s, "read_s": read_s, "peak_mb": _status_mb("VmHWM")}


def _status_mb(field: str) -> float:
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024 / 1e6


def rounds(path: Path, n: int, threads: int) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """Floor and load, each in a new process. Which of them is first alternates."""
    for i in range(n):
        found = {}
        for how in ("floor", "load") if i % 2 == 0 else ("load", "floor"):
            command = [sys.executable, __file__, "--measure", how, str(path), "--threads", str(threads)]
            found[how] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        yield found["floor"], found["load"]


def main() -> None:
    """Print one line for each round, and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tinyllama", help=", ".join(SHAPES))
    parser.add_argument("--quantization", choices=["q4_0", "q4_k_m"], default="q4_0")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]), args.threads)))
        return
    spec = shape(args.shape, FloatType.Q40, {"layers": args.layers} if args.layers else {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        write_random_gguf(path, spec, args.quantization == "q4_k_m")
        size_mb = path.stat().st_size / 1e6
        print(f"{args.shape} {args.quantization}, {size_mb:.0f} MB, {args.threads} threads", file=sys.stderr)
        print("| read s | floor s | load s | load / floor | CPU: floor s | load s | peak MB | peak - file MB |")
        print("| --- " * 8 + "|")
        lines = []
        for floor, load in rounds(path, args.rounds, args.threads):
            lines.append(
                [
                    floor["read_s"],
                    floor["s"],
                    load["s"],
                    load["s"] / floor["s"],
                    floor["cpu_s"],
                    load["cpu_s"],
                    load["peak_mb"],
                    load["peak_mb"] - size_mb,
                ]
            )
            print(_row(lines[-1]), flush=True)
        print("medians:")
        print(_row([statistics.median(column) for column in zip(*lines, strict=True)]))


def _row(numbers: list[float]) -> str:
    return "| " + " | ".join(f"{n:.2f}" if n < 50 else f"{n:.0f}" for n in numbers) + " |"


if __name__ == "__main__":
    main()
