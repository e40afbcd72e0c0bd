"""YAML as plain data that remembers where each value stood, so that every refusal can begin with its place.

Knows no key of any file: the caller says which Struct describes which mapping.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import yaml

from dllama_zmq.errors import ConfigError

MAX_DEPTH = 16
MAX_NODES = 10_000  # a thousand workers take seven each; a mebibyte of them takes PyYAML many seconds
MAX_NUMBER_CHARACTERS = 64  # YAML 1.1 reads 1:1:1:... in base 60: a mebibyte of it takes minutes

_TAB_INDENT = re.compile(r"^ *(\t)[ \t]*[^\s#]", re.MULTILINE)
_TAG = "tag:yaml.org,2002:"
_SCALARS = {f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null")}
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping (key: value)",
    "null": "nothing",
}


@dataclass(frozen=True, slots=True)
class YamlTree:
    """`data` is dicts, lists and scalars; `nodes` maps a dotted place (`root.ports`, `workers[1].name`) to its node."""

    path: str
    data: object
    nodes: Mapping[str, yaml.Node]

    @classmethod
    def read(cls, text: str, path: str, structs: Mapping[str, type[msgspec.Struct]]) -> YamlTree:
        """Read one mapping. `structs` names the keys allowed at each place, list indices left out (`workers[]`).

        A known key without a value counts as not given. Raises ConfigError for whatever else is not plain YAML.
        """
        if tab := _TAB_INDENT.search(text):
            line, column = _line_and_column(text, tab.start(1))
            raise ConfigError(f"{path}:{line}:{column}: a tab; YAML forbids tabs for indentation: use spaces")
        loader = None
        try:
            loader = _Loader(text, path)  # its constructor already looks for characters that YAML forbids
            node = loader.get_single_node()
            if node is None or node.tag == f"{_TAG}null":
                raise ConfigError(f"{path}: the file is empty; it needs at least `model: demo`")
            if not isinstance(node, yaml.MappingNode):
                raise ConfigError(f"{path}:{_at(node)}: expected keys and values, such as `model: demo`")
            builder = _Builder(path, loader, structs)
            return cls(path, builder.value(node, ""), builder.nodes)
        except yaml.reader.ReaderError as error:
            line, column = _line_and_column(text, error.position)
            raise ConfigError(f"{path}:{line}:{column}: a character that YAML forbids; remove it") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            said = [part for part in (error.context, error.problem) if part]
            at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
            raise ConfigError(f"{path}{at}: not valid YAML: {', '.join(said)}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from error
        finally:
            if loader is not None:
                loader.dispose()

    def error(self, place: str, message: str) -> ConfigError:
        """An error about the value at `place`; about its nearest ancestor in the file where it is not written there."""
        at = place
        while at not in self.nodes:
            at = at.rpartition(".")[0]
        return ConfigError(f"{self.path}:{_at(self.nodes[at])}: {place}: {message}")

    def explain(self, problem: str, hints: Mapping[str, str]) -> ConfigError:
        """Put msgspec's words of what does not fit into ours. `hints` say what belongs at a place."""
        problem, _, where = problem.partition(" - at `$")
        place = where.rstrip("`").removeprefix(".")
        if missing := re.fullmatch(r"Object missing required field `(.*)`", problem):
            place = f"{place}.{missing[1]}" if place else missing[1]
            return self.error(place, f"is missing; expected {hints.get(_without_indices(place), 'a value')}")
        node = self.nodes.get(place)
        value = shown(node.value) if isinstance(node, yaml.ScalarNode) else ""
        hint = hints.get(_without_indices(place))
        if wrong := re.fullmatch(r"Expected `(.*?)`, got `(.*?)`", problem):
            expected, got = wrong.groups()
            quotes = "; put it in quotes" if "str" in expected and got in ("int", "float", "bool") else ""
            return self.error(
                place, f"expected {hint or _in_words(expected)}, got {_in_words(got)} {value}".strip() + quotes
            )
        return self.error(place, f"expected {hint}, got {value}" if hint else problem)


class _Loader(yaml.SafeLoader):
    """SafeLoader without aliases (a few lines of them can mean gigabytes) and within bounds of depth and number."""

    def __init__(self, text: str, path: str) -> None:
        super().__init__(text)
        self.path = path
        self.depth = 0
        self.n_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError(f"{self.path}:{_at(event)}: aliases (*name) are not used here; write the value out")
        if self.depth == MAX_DEPTH:
            raise ConfigError(f"{self.path}:{_at(event)}: nested more than {MAX_DEPTH} levels deep; a cluster needs 3")
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            raise ConfigError(f"{self.path}:{_at(event)}: more than {MAX_NODES} keys and values; this is too large")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Builder:
    """Turns nodes into data, noting the place of each."""

    def __init__(self, path: str, loader: _Loader, structs: Mapping[str, type[msgspec.Struct]]) -> None:
        self.path = path
        self.loader = loader
        self.structs = structs
        self.nodes: dict[str, yaml.Node] = {}

    def value(self, node: yaml.Node, place: str) -> object:
        self.nodes[place] = node
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, f"{place}[{i}]") for i, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            if node.tag != f"{_TAG}str" and len(node.value) > MAX_NUMBER_CHARACTERS:
                raise self._error(node, place, f"{shown(node.value)} is too long for {_kind(node)}")
            try:
                return self.loader.construct_object(node)
            # What PyYAML lets out for an explicit tag on text that does not fit it, such as `!!int x`.
            except (ValueError, KeyError, IndexError, OverflowError) as error:
                raise self._error(node, place, f"{shown(node.value)} cannot be read as {_kind(node)}") from error
        raise self._error(node, place, f"YAML reads this as {_kind(node)}; if it is text, put it in quotes")

    def _mapping(self, node: yaml.MappingNode, place: str) -> dict[str, object]:
        struct = self.structs.get(_without_indices(place))
        lines: dict[str, int] = {}
        data: dict[str, object] = {}
        for key_node, value_node in node.value:
            if key_node.tag != f"{_TAG}str":
                raise self._error(key_node, place, "a key must be plain text")
            key = key_node.value
            whole = f"{place}.{key}" if place else key
            if struct and key not in struct.__struct_fields__:
                raise self._error(key_node, place, self._unknown(key, struct))
            if key in lines:
                raise self._error(key_node, whole, f"is given twice, first on line {lines[key]}; keep one")
            lines[key] = key_node.start_mark.line + 1
            value = self.value(value_node, whole)
            if value is not None:
                data[key] = value
        return data

    def _unknown(self, key: str, struct: type[msgspec.Struct]) -> str:
        """Name the nearest key: of this mapping, else of another one, with its place."""
        elsewhere = {
            field: f"{place}.{field}" for place, other in self.structs.items() if place
            for field in other.__struct_fields__
        }  # fmt: skip
        known = elsewhere | {field: field for field in struct.__struct_fields__}
        near = [
            *difflib.get_close_matches(key, struct.__struct_fields__, 1, 0.7),
            *difflib.get_close_matches(key, known, 1),
        ]
        advice = f"did you mean {known[near[0]]}?" if near else f"known keys: {', '.join(struct.__struct_fields__)}"
        return f"unknown key {shown(key)}; {advice}"

    def _error(self, node: yaml.Node, place: str, message: str) -> ConfigError:
        return ConfigError(
            f"{self.path}:{_at(node)}: {place}: {message}" if place else f"{self.path}:{_at(node)}: {message}"
        )


def shown(text: str) -> str:
    """`text` quoted and cut, fit for one line of an error."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _without_indices(place: str) -> str:
    return re.sub(r"\[\d+\]", "[]", place)


def _in_words(types: str) -> str:
    """msgspec's `int | null` as words; what may be absent need not be said."""
    names = [name for name in types.split(" | ") if name != "null"] or ["null"]
    return " or ".join(_WORDS.get(name, name) for name in names)


def _kind(node: yaml.Node) -> str:
    return shown(node.tag.removeprefix(_TAG))


def _at(item: yaml.Node | yaml.Event) -> str:
    mark = item.start_mark
    return f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"


def _line_and_column(text: str, offset: int) -> tuple[int, int]:
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
