"""Hypothesis strategies for messages of the bus: any message whose fields are as agreed."""

from __future__ import annotations

import typing
from types import NoneType, UnionType
from typing import Any

import msgspec
from hypothesis import strategies as st

from dllama_zmq.bus.messages import ArrayHead

UNIONS = (UnionType, typing.Union)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Any value that a field of this type may have."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        meta = parts[1]
        if parts[0] is int:
            return st.integers(meta.ge, meta.le)
        if parts[0] is float:
            return st.floats(meta.ge, meta.le)
        if parts[0] is str and meta.pattern is not None:
            return st.from_regex(meta.pattern, fullmatch=True)
        if parts[0] is str:
            return st.text(min_size=meta.min_length or 0, max_size=min(meta.max_length, 20)) | st.just(
                "x" * min(meta.max_length, 2000)
            )
        return st.lists(values_of(typing.get_args(parts[0])[0]), min_size=meta.min_length or 0, max_size=4)
    if origin is typing.Literal:
        return st.sampled_from(parts)
    if origin in UNIONS:
        return st.one_of([values_of(part) for part in parts])
    if origin is list:
        return st.lists(values_of(parts[0]), max_size=3)
    if origin is tuple:
        return st.tuples(*map(values_of, parts))
    if origin is dict:
        keys = st.text(max_size=5) if parts[0] is not int else st.integers(0, 1 << 31)
        return st.dictionaries(keys, values_of(parts[1]), max_size=3)
    plain = {bool: st.booleans(), NoneType: st.none(), str: st.text(max_size=10), float: st.floats(0, 1e6)}
    plain |= {int: st.integers(0, 1 << 62), Any: st.none() | st.integers(0, 9) | st.text(max_size=4)}
    return plain[hint] if hint in plain else structs(hint)


def structs(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    if kind is ArrayHead:
        types = st.sampled_from(["f32", "f16", "q80", "i32", "f64", "u8"])
        return st.builds(ArrayHead, types, st.integers(0, 3), st.integers(0, 2).map(lambda n: 32 * n))
    hints = typing.get_type_hints(kind, include_extras=True)
    return st.builds(kind, **{name: values_of(hints[name]) for name in kind.__struct_fields__})
