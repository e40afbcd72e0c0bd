"""Model and tokenizer files that something has gone wrong with, each made of a sound one by its number alone.

As a program, `mutants.py FOLDER FIRST LAST` tries the mutants FIRST to LAST - 1 by `inspect` and `load`, and writes a
line of JSON for each: what became of it. It runs in a process of its own, for what a library does with such a file may
be worse than an exception.
"""

from __future__ import annotations

import io
import json
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

import dllama_zmq
from dllama_zmq.cli.inspect import inspect
from dllama_zmq.errors import DllamaError, UsageError
from dllama_zmq.formats import write_t
from dllama_zmq.spec import FloatType

sys.path.insert(0, str(Path(__file__).parent))
from folders import arrays_of, write_hf, write_meta
from gguf_writer import gguf_of
from tiny import TINY, tiny_tokenizer_data, write_tiny_model
from tokenizer_folders import GOLDEN, write_folder

MEMORY_BYTES = 6 << 30
_STRANGE: list[Any] = [
    None, True, 0, -1, 1, 2**31, 2**63, 1e308, 0.5, "", "x" * 300, [], {}, [[]], {"a": 1}, "\ud800", float("nan"),
]  # fmt: skip


def make_sound(folder: Path) -> None:
    """The sound models, each in a folder of its own that `load` takes by the path in `TARGETS`."""
    for kind in ("F32", "Q40", "Q80"):
        (folder / kind).mkdir()
        write_tiny_model(folder / kind / "a.m", replace(TINY, weight_type=FloatType[kind])).close()
        write_t(folder / kind / "a.t", tiny_tokenizer_data())
    (folder / "gguf").mkdir()
    (folder / "gguf" / "a.gguf").write_bytes(gguf_of(folder / "Q80" / "a.m", folder / "Q80" / "a.t"))
    with write_tiny_model(folder / "values.m", replace(TINY, vocab_size=1002, weight_type=FloatType.F32)) as model:
        arrays = arrays_of(model)
        spec = model.spec
    cases = {
        "hf": "a token of the config alone",
        "hf, bounded": "a repeated group",
        "hf, sentencepiece": "sentencepiece",
    }
    for name, case in cases.items():
        write_hf(folder / name, spec, arrays, n_shards=2 if name == "hf" else 1)
        write_folder(folder / f"{name}, words", case)
        for file in (folder / f"{name}, words").iterdir():
            if file.name != "config.json":
                shutil.copy(file, folder / name / file.name)
        shutil.rmtree(folder / f"{name}, words")
    write_meta(folder / "meta", spec, arrays, n_shards=2)
    shutil.copy(GOLDEN / "bpe.model", folder / "meta" / "tokenizer.model")


TARGETS = {
    "F32": "a.m",
    "Q40": "a.m",
    "Q80": "a.m",
    "gguf": "a.gguf",
    "hf": "",
    "hf, bounded": "",
    "hf, sentencepiece": "",
    "meta": "",
}


def mutate(sound: Path, place: Path, number: int) -> tuple[Path, str]:
    """The mutant of that number in the folder `place`: what is to be loaded, and what was done to which file."""
    rng = random.Random(number)
    name = list(TARGETS)[number % len(TARGETS)]
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(sound / name, place)
    file = rng.choice(sorted(place.iterdir()))
    data = file.read_bytes()
    change: Callable[[bytes, random.Random], bytes] = rng.choice(_CHANGES)
    if file.suffix == ".json" and rng.random() < 0.7:
        change = _json_change
    file.write_bytes(change(data, rng))
    return place / TARGETS[name], f"{name}/{file.name}: {change.__name__}"


def _flips(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    near_head = rng.random() < 0.7  # most of a file are weights
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        changed[rng.randrange(min(len(data), 4000) if near_head else len(data))] = rng.randrange(256)
    return bytes(changed)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _longer(data: bytes, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice([1, 32, 4096]))


def _block(data: bytes, rng: random.Random) -> bytes:
    n = min(len(data), rng.choice([4, 8, 64, 1024]))
    at, source = rng.randrange(len(data) - n + 1), rng.randrange(len(data) - n + 1)
    block = rng.choice([bytes(n), b"\xff" * n, rng.randbytes(n), data[source : source + n]])
    return data[:at] + block + data[at + n :]


def _without(data: bytes, rng: random.Random) -> bytes:
    at, n = rng.randrange(len(data)), rng.choice([1, 4, 8, 100])
    return data[:at] + data[at + n :]


def _json_change(data: bytes, rng: random.Random) -> bytes:
    """A value somewhere in it becomes another, or goes."""
    tree = json.loads(data)
    node, places = tree, []
    while isinstance(node, dict | list) and node:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        places.append((node, key))
        node = node[key]
    parent, key = rng.choice(places)
    if rng.random() < 0.25:
        del parent[key]
    else:
        parent[key] = rng.choice(_STRANGE)
    return json.dumps(tree).encode()


_CHANGES = [_flips, _flips, _cut, _longer, _block, _without]


def attempt(path: Path) -> dict[str, str]:
    """What `inspect` and `load` make of it: "accepted", or the class and words of our error. Others pass through."""
    became = {}
    for name, call in (("inspect", _inspect), ("load", _load)):
        try:
            call(path)
            became[name] = "accepted"
        except DllamaError as error:
            became[name] = f"{type(error).__name__}: {error}"
    return became


def _inspect(path: Path) -> None:
    with redirect_stdout(io.StringIO()):
        inspect(source=str(path), json=True, tensors=True)


def _load(path: Path) -> None:
    with dllama_zmq.load(path, kernels="numpy") as model:
        model.logits([1, 2])
        with suppress(UsageError):
            "".join(model.generate("the cat", max_tokens=2))


def main() -> None:
    place, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for number in range(first, last):
        path, what = mutate(place / "sound", place / f"mutant {first}", number)
        before = time.monotonic()
        print(json.dumps({"number": number, "what": what}), flush=True)
        print(json.dumps({**attempt(path), "seconds": time.monotonic() - before}), flush=True)


if __name__ == "__main__":
    main()
