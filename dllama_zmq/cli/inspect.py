"""`dllama-zmq inspect`: the content of a model, and the numbers of nodes it can be split over."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table
from typer import Option

from dllama_zmq.cli import flags
from dllama_zmq.cli.exit_codes import as_json
from dllama_zmq.cli.flag_kinds import model_flag
from dllama_zmq.errors import FormatError, RequestError, UsageError
from dllama_zmq.formats import ModelFile, contents_of, open_model, read_tokenizer
from dllama_zmq.formats.gguf.container import TYPE_NAMES
from dllama_zmq.reporting import human_bytes
from dllama_zmq.sharding import possible_node_counts
from dllama_zmq.sources import model_at, tokenizer_beside
from dllama_zmq.spec import FloatType, ModelSpec, Weights


def inspect(
    *,
    source: flags.ModelOrNone = None,
    model: Annotated[str | None, model_flag("-m", "--model", help="The same, as a flag")] = None,
    weights: Annotated[Weights | None, flags.weights_flag("As if the cluster's file had these `weights`")] = None,
    json: flags.Json = False,
    tensors: Annotated[bool, Option("--tensors", help="List every tensor too")] = False,
) -> None:
    """Show what is in a model, and how many nodes it can be split over; `plan` says what each must hold.

    If this version cannot run the model, shows what its files say, and why not.

    Examples:
        dllama-zmq inspect demo
        dllama-zmq inspect story.gguf
    """
    named = flags.either(source, model)
    if named is None:
        raise UsageError("no model is given: dllama-zmq inspect MODEL")
    path = model_at(named)
    try:
        opened = open_model(path, FloatType[weights.upper()] if weights else None)
    except FormatError as error:
        if (contents := contents_of(path)) is not None:
            if json:
                print(as_json(contents | {"error": str(error)}))  # noqa: T201
            else:
                _show_contents(contents)
        raise
    with opened as file:
        facts = _facts(file, path)
        if tensors:
            facts["tensors"] = [
                {"name": t.name, "shape": list(t.shape(file.spec)), "type": t.float_type.name} for t in file.tensors
            ]
    if json:
        print(as_json(facts))  # noqa: T201
    else:
        _show(facts)


def _facts(model: ModelFile, path: Path) -> dict[str, Any]:
    spec = model.spec
    types = Counter[str]()
    in_file = Counter[tuple[str, str]]()
    for tensor in model.tensors:
        types[tensor.float_type.name] += tensor.nbytes(spec)
        if tensor.name == "head" and model.is_tied:
            continue
        kind, n_bytes = model.in_file(tensor.name)
        in_file[kind, tensor.float_type.name] += n_bytes
    return {
        "path": str(path),
        "architecture": spec.arch,
        "parameters": model.n_params,
        "tied": model.is_tied,
        "bytes": model.nbytes,
        "bytes_by_type": dict(types.most_common()),
        "in_file": [{"type": kind, "read_as": as_read, "bytes": n} for (kind, as_read), n in in_file.most_common()],
        "notes": model.notes,
        "numbers": _numbers(spec),
        "tokenizer": _tokenizer(path, spec),
        "nodes_possible": possible_node_counts(spec),
    }


def _numbers(spec: ModelSpec) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "layers": spec.n_layers,
        "width": spec.dim,
        "feed-forward": spec.hidden_dim,
        "heads": spec.n_heads,
        "KV heads": spec.n_kv_heads,
        "head width": spec.head_dim,
        "vocabulary": spec.vocab_size,
        "positions": spec.seq_len,
        "activation": spec.activation,
        "RoPE theta": spec.rope.theta,
        "RoPE pairs": spec.rope.layout,
        "norm epsilon": spec.norm_eps,
    }
    if spec.n_experts:
        numbers |= {"experts": spec.n_experts, "experts of a token": spec.n_active_experts}
    if spec.window is not None:
        numbers["sliding window"] = spec.window
    if spec.full_every:
        numbers["layers without it"] = f"1 in {spec.full_every}"
    if spec.window_rope is not None:
        numbers["RoPE theta within it"] = spec.window_rope.theta
    if spec.rope.scaling is not None:
        numbers["RoPE scaling"] = spec.rope.scaling.factor
    elif spec.rope.factors:
        numbers["RoPE scaling"] = "by factors"
    return numbers


def _tokenizer(path: Path, spec: ModelSpec) -> str:
    """One line about the tokenizer, or why there is none."""
    try:
        tokenizer = read_tokenizer(tokenizer_beside(path))
        tokenizer.check_fits(spec, path)
    except FormatError as error:
        return f"none: {error}"
    try:
        source = tokenizer.chat_template().source
        template = f"the {source} chat template" if source.startswith("built-in") else "its own chat template"
    except RequestError:
        template = "no chat template"
    warning = tokenizer.mismatch_warning(spec, path)
    return f"{tokenizer.vocab_size} tokens, {template}{f'; {warning}' if warning else ''}"


def _count(n: int) -> str:
    for name, size in (("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if n >= size:
            return f"{n / size:.1f} {name}"
    return str(n)


def _headline(facts: dict[str, Any]) -> str:
    return f"{facts['path']}: {facts['architecture']}, {_count(facts['parameters'])} parameters"


def _show_contents(contents: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    console.print(_headline(contents), soft_wrap=True)
    types = ", ".join(f"{name} {_count(n)}" for name, n in contents["parameters_by_type"].items())
    console.print(f"{contents['tensors']} tensors: {types}", soft_wrap=True)


def _show(facts: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    as_stored = {(each["read_as"], each["type"]) for each in facts["in_file"]}
    names = {ours: ggmls for ours, ggmls in TYPE_NAMES.items() if (ours, ggmls) in as_stored}
    types = ", ".join(f"{names.get(name, name)} {human_bytes(n)}" for name, n in facts["bytes_by_type"].items())
    console.print(_headline(facts), soft_wrap=True)
    twice = "; the embedding is the output matrix too, and counts twice" if facts["tied"] else ""
    console.print(f"weights    {human_bytes(facts['bytes'])}: {types}{twice}", soft_wrap=True)
    becomes = [(each["type"], each["read_as"], human_bytes(each["bytes"])) for each in facts["in_file"]]
    if any(TYPE_NAMES.get(as_read, as_read) != kind for kind, as_read, _ in becomes):
        changes = ", ".join(f"{kind} {size} read as {as_read}" for kind, as_read, size in becomes)
        console.print(f"in file    {changes}", soft_wrap=True)
    for note in facts["notes"]:
        console.print(f"note       {note}", soft_wrap=True)
    console.print(f"tokenizer  {facts['tokenizer']}", soft_wrap=True)
    for name, value in facts["numbers"].items():
        console.print(f"{name:20} {value}")
    counts = ", ".join(map(str, facts["nodes_possible"]))
    console.print(f"can be split over {counts} nodes")
    console.print("`dllama-zmq plan` says what each node must hold, and how fast it will be")
    if "tensors" in facts:
        listed = Table("tensor", "shape", "type", box=None, pad_edge=False)
        for tensor in facts["tensors"]:
            listed.add_row(tensor["name"], " x ".join(map(str, tensor["shape"])), tensor["type"])
        console.print(listed)
