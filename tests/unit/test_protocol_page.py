"""bus/PROTOCOL.md has every message, number and tensor that is on the wire, with its type and bounds."""

from __future__ import annotations

import itertools
import re
import typing
from pathlib import Path
from typing import Any

import msgpack
import pytest
from any_message import UNIONS
from msgspec.structs import fields
from test_messages import ALL_KINDS
from tiny import tiny_spec

import dllama_zmq.bus
from dllama_zmq.bus import client_messages, messages, prompts, text_messages
from dllama_zmq.bus.client_messages import Status, StepStats
from dllama_zmq.bus.codec import encode
from dllama_zmq.bus.messages import Beacon, Candidates, Kinds, Message, Partial
from dllama_zmq.grammar import MAX_GRAMMAR_CHARACTERS, Grammar
from dllama_zmq.models import tensor_table
from dllama_zmq.sampling import Sampling
from dllama_zmq.spec import Architecture, FloatType, ModelSpec, Rope, RopeScaling

TEXT = (Path(dllama_zmq.bus.__file__).parent / "PROTOCOL.md").read_text()
NAMED: dict[Any, str] = {
    messages.Count: "count",
    messages.Big: "big",
    messages.Name: "name",
    messages.Text: "text",
    messages.Endpoint: "endpoint",
    messages.Seconds: "seconds",
    messages.Heads: "heads",
    messages.Asks: "asks",
    messages.Again: "again",
    messages.Offered: "offered",
    messages.Needed: "needed",
    client_messages.Whole: "whole",
    client_messages.Number: "number",
    client_messages.Stops: "stops",
    client_messages.Answers: "answers",
    client_messages.Index: "index",
    client_messages.Seed: "seed",
    prompts.Prompt: "prompt",
    prompts.TokenIds: "ids",
    prompts.ChatText: "chat",
    text_messages.LongText: "long text",
    text_messages.Vector: "values",
    list[messages.Count]: "list of counts",
    list[messages.Text]: "list of texts",
    StepStats: "figures",
    client_messages.KVStatus: "map",
    bool: "bool",
    text_messages.RequestId: "id",
    Sampling: "map",
    Grammar: "map",
    list[client_messages.Logprob]: "list of logprobs",
}


def type_in_words(message: type[Message], field: str) -> str:
    """The type of a field as PROTOCOL.md writes it."""
    hint = typing.get_type_hints(message, include_extras=True)[field]
    if (message.__name__, field) in {("Step", "spans"), ("Join", "host")}:
        return field
    return words(hint)


def words(hint: Any) -> str:
    for named, word in NAMED.items():
        if hint == named:
            return word
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(f'"{value}"' for value in parts)
    if origin in UNIONS:
        *first, last = ["nil" if part is type(None) else words(part) for part in parts]
        return f"{', '.join(first)} or {last}"
    return {dict: "map", list: "list of maps"}[origin]


def rows_after(heading: str) -> list[list[str]]:
    """The cells of the first table after a line, or under a first row that is `heading`."""
    assert f"\n{heading}\n" in TEXT, f"PROTOCOL.md lacks {heading!r}"
    lines = TEXT.split(f"\n{heading}\n", 1)[1].splitlines()
    if not heading.startswith("|"):
        lines = list(itertools.dropwhile(lambda line: not line.startswith(("|", "#")), lines))[1:]
    table = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table][1:]


@pytest.mark.parametrize(("allowed", "kind"), ALL_KINDS, ids=[kind for _, kind in ALL_KINDS])
def test_the_document_has_every_field_of_every_kind_in_order_with_its_type(allowed: Kinds, kind: str) -> None:
    message = allowed[kind]
    rows = rows_after(f"#### `{kind}`")
    assert [(row[0], row[1]) for row in rows] == [
        (field, type_in_words(message, field)) for field in message.__struct_fields__
    ]


def test_the_document_names_no_kind_that_is_none() -> None:
    assert sorted(re.findall(r"^#### `(\w+)`$", TEXT, re.MULTILINE)) == sorted({kind for _, kind in ALL_KINDS})


@pytest.mark.parametrize(
    "word",
    [
        "count",
        "big",
        "id",
        "whole",
        "seed",
        "answers",
        "index",
        "seconds",
        "number",
        "name",
        "endpoint",
        "text",
        "long text",
        "prompt",
        "ids",
    ],
)
def test_the_document_has_the_bounds_of_every_type(word: str) -> None:
    meta = typing.get_args(next(hint for hint, name in NAMED.items() if name == word))[1]
    line = {row[0]: row[1] for row in rows_after("## 3. A message")}[word]
    bounds = [meta.max_length] if meta.max_length is not None else [meta.ge, meta.le]
    for bound in bounds:
        assert re.search(rf"(?<!\d){re.escape(f'{bound:g}' if word in ('seconds', 'number') else str(bound))}\b", line)


def test_the_document_has_the_protocols_number_and_its_own_example() -> None:
    assert f"Protocol **{messages.PROTOCOL}**" in TEXT
    example = re.search(r"^    \[protocol.*?  (93 .*?) = (\[.*\])$", TEXT, re.MULTILINE)
    assert example is not None
    header = b"".join(
        part[1:-1].encode() if part.startswith('"') else bytes([int(part, 16)]) for part in example[1].split()
    )
    assert repr(msgpack.unpackb(header)).replace("'", '"') == example[2]
    assert bytes(encode(Beacon(1760936591360))[0]) == header


def test_the_maps_of_a_status_are_in_the_document() -> None:
    maps = (
        client_messages.NodeStatus,
        client_messages.PhaseTimes,
        client_messages.NodeTimes,
        client_messages.RequestStatus,
        client_messages.KVStatus,
        text_messages.LinkStatus,
    )
    for struct in (*maps, client_messages.TrafficRow, StepStats):
        for field in struct.__struct_fields__:
            assert re.search(rf"\b{field}\b", TEXT), f"PROTOCOL.md lacks {struct.__name__}.{field}"
    assert Status.__struct_fields__[-3:] == ("nodes", "recent", "traffic")
    assert Partial.__struct_fields__[-1] == Candidates.__struct_fields__[-1] == "arrays"


def test_the_document_has_every_number_of_sampling_and_its_default() -> None:
    rows = rows_after("`sampling` is a map; what is left out is off:")
    described = [(row[0], row[2].split(";")[0]) for row in rows]
    defaults = [getattr(Sampling(), field) for field in Sampling.__struct_fields__]
    written = [
        "nil" if default is None else "an empty map" if default == {} else f"{default:g}" for default in defaults
    ]
    assert described == list(zip(Sampling.__struct_fields__, written, strict=True))


def spec_word(hint: Any) -> str:
    """The type of a field of ModelSpec as PROTOCOL.md writes it."""
    if hint in (FloatType, int):
        return "integer"
    if hint in (float, bool):
        return str(hint.__name__)
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f'"{value}"' for value in typing.get_args(hint))
    if typing.get_origin(hint) in UNIONS:
        return f"{spec_word(typing.get_args(hint)[0])} or nil"
    return "map" if hint is Rope else "list of `[tensor, type]`"


def test_the_numbers_of_a_model_are_in_the_document() -> None:
    rows = {row[0]: row[1] for row in rows_after("`spec` is a map:")}
    hints = typing.get_type_hints(ModelSpec)
    assert list(rows.items()) == [(field.name, spec_word(hints[field.name])) for field in fields(ModelSpec)]
    described = TEXT.split("\n`spec` is a map:\n")[1].split("#### ")[0]
    for part in (Rope, RopeScaling):
        for field in fields(part):
            assert f"`{field.name}`" in described, f"PROTOCOL.md lacks {part.__name__}.{field.name}"
    for kind in FloatType:
        assert f"{int(kind)} {kind.name}" in described


def test_the_bytes_of_a_row_of_every_type_are_in_the_document() -> None:
    cells = itertools.chain(*rows_after("| type | bytes | type | bytes | type | bytes |"))
    found = {kind: n_bytes for kind, n_bytes in zip(cells, cells, strict=False) if kind}
    assert found == {
        kind.name: f"{kind.block_bytes}n/{kind.block_values}" if kind.is_quantized else f"{kind.block_bytes}n"
        for kind in FloatType
    }
    described = [row[0] for row in rows_after("| type | q | d | m |")]
    assert sorted(described) == sorted(kind.name for kind in FloatType if kind.is_quantized)


@pytest.mark.parametrize("arch", typing.get_args(Architecture))
def test_the_tensors_of_every_architecture_are_in_the_document(arch: Architecture) -> None:
    n_experts = 3 if arch in ("mixtral", "qwen3moe", "grok1") else 0
    spec = tiny_spec(
        arch=arch, weight_type=FloatType.F16, n_layers=2, n_experts=n_experts, n_active_experts=min(2, n_experts)
    )
    shapes = {row[0].strip("`"): row[1:] for row in rows_after("| tensor of a layer | rows | columns | type |")}
    (order,) = (row[1] for row in rows_after("| arch | tensors of a layer, in order |") if row[0] == arch)
    names = order.replace("·", " ").split()
    dense = [name for name in names if not name.startswith("experts.")]
    layer = [name if name in shapes else f"attention.{name}" for name in dense]
    of_expert = [name.removeprefix("experts.") for name in names if name.startswith("experts.")]
    at = layer.index("router") + 1 if "router" in layer else len(layer)
    layer[at:at] = [f"experts.{e}.{part}" for e in range(n_experts) for part in of_expert]
    expected = [(f"layers.{i}.{name}", *shapes[re.sub(r"\d+", "{e}", name)]) for i in range(2) for name in layer]
    expected += [("final_norm", "1", "embed", "F32"), ("head", "vocab", "embed", "W")]
    for tensor, (name, rows, columns, kind) in zip(
        (tensor for tensor in tensor_table(spec) if not tensor.root_only), expected, strict=True
    ):
        weight_type = FloatType.F32 if kind == "F32" or kind.endswith(f"F32 for {arch}") else spec.weight_type
        assert (tensor.name, *tensor.axes, tensor.float_type) == (name, rows.replace("1", "one"), columns, weight_type)


def test_the_document_has_every_field_of_a_grammar() -> None:
    rows = rows_after("`grammar` is a map:")
    assert [row[0] for row in rows] == list(Grammar.__struct_fields__)
    assert rows[0][1] == words(typing.get_type_hints(Grammar)["kind"])
    assert str(MAX_GRAMMAR_CHARACTERS) in rows[1][2]
