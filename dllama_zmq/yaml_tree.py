"""YAML as plain data that knows the line and column of every value, for error messages.

Knows no key of any file: the caller says which Struct describes which mapping.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

import msgspec
import yaml

from dllama_zmq.errors import ConfigError

MAX_DEPTH = 16
MAX_NODES = 10_000  # 1,000 workers have 7,000; PyYAML takes many seconds for 1 MiB of them
MAX_NUMBER_CHARACTERS = 64  # YAML 1.1 reads 1:1:1:... in base 60, which takes minutes for 1 MiB

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


class NoMapping(ConfigError):
    """A text that YAML does not read as keys and values."""


class YamlTree:
    """One mapping. `data` has dicts, lists and scalars; `nodes` has the YAML node of each key path.

    Key paths are like `root.ports` and `workers[1].name`; that of the whole mapping is "".
    """

    def __init__(
        self, text: str, path: str, structs: Mapping[str, type[msgspec.Struct]], removed: Mapping[str, str]
    ) -> None:
        """Read `text`.

        structs: the Struct of each mapping, by its key path without list indices (`workers[]`). removed: what to do
        about keys of earlier versions. A known key without a value counts as missing.

        Raises NoMapping if the text is no YAML mapping; ConfigError if the mapping is not plain or has unknown keys.
        """
        self.path = path
        self.nodes: dict[str, yaml.Node] = {}
        self._structs, self._removed = structs, removed
        self._scalars = yaml.SafeLoader("")
        try:
            self._check_bounds(text)
            node = yaml.compose(text, yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            before = text[: error.position]
            at = f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
            raise NoMapping(f"{path}:{at}: YAML forbids this character; remove it") from error
        except yaml.MarkedYAMLError as error:
            raise self._not_yaml(error) from error
        except yaml.YAMLError as error:
            raise NoMapping(f"{path}: not valid YAML: {error}") from error
        if node is None or node.tag == f"{_TAG}null":
            raise ConfigError(f"{path}: the file is empty; it needs at least `model: demo`")
        if not isinstance(node, yaml.MappingNode):
            raise NoMapping(str(self.error("", "expected keys and values, such as `model: demo`", node)))
        self.data = self._value(node, "")

    def error(self, key_path: str, message: str, node: yaml.Node | yaml.Event | None = None) -> ConfigError:
        """An error at `node`; by default at the value of `key_path`, or of its nearest ancestor in the file."""
        at = key_path
        while node is None:
            node, at = self.nodes.get(at), at.rpartition(".")[0]
        mark = node.start_mark
        where = f"{mark.line + 1}:{mark.column + 1}" if mark else "1:1"
        return ConfigError(f"{self.path}:{where}: {f'{key_path}: ' if key_path else ''}{message}")

    def explain(self, problem: str, hints: Mapping[str, str]) -> ConfigError:
        """A ValidationError of msgspec as a ConfigError. hints: what is expected at a key path."""
        problem, _, where = problem.partition(" - at `$")
        key_path = where.rstrip("`").removeprefix(".")
        if missing := re.fullmatch(r"Object missing required field `(.*)`", problem):
            key_path = f"{key_path}.{missing[1]}" if key_path else missing[1]
            return self.error(key_path, f"is missing; expected {hints.get(_without_indices(key_path), 'a value')}")
        node = self.nodes.get(key_path)
        value = shown(node.value) if isinstance(node, yaml.ScalarNode) else ""
        hint = hints.get(_without_indices(key_path))
        if wrong := re.fullmatch(r"Expected `(.*?)`, got `(.*?)`", problem):
            expected, got = wrong.groups()
            quotes = "; put it in quotes" if "str" in expected and got in ("int", "float", "bool") else ""
            said = f"expected {hint or _in_words(expected)}, got {_in_words(got)} {value}".strip()
            return self.error(key_path, said + quotes)
        return self.error(key_path, f"expected {hint}, got {value}" if hint else problem)

    def _check_bounds(self, text: str) -> None:
        """Refuse aliases (a few lines of them can mean gigabytes), deep nesting and too many values."""
        depth = n_nodes = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise self.error("", "aliases (*name) are not used here; write the value out", event)
            if isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if isinstance(event, yaml.NodeEvent):
                n_nodes += 1
                depth += isinstance(event, yaml.CollectionStartEvent)
            if depth > MAX_DEPTH:
                raise self.error("", f"nested more than {MAX_DEPTH} levels deep; a cluster needs 3", event)
            if n_nodes > MAX_NODES:
                raise self.error("", f"more than {MAX_NODES} keys and values; this is too large", event)

    def _not_yaml(self, error: yaml.MarkedYAMLError) -> NoMapping:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        if error.problem and "'\\t'" in error.problem:
            return NoMapping(f"{self.path}{at}: a tab; YAML forbids tabs for indentation: use spaces")
        said = ", ".join(part for part in (error.context, error.problem) if part)
        return NoMapping(f"{self.path}{at}: not valid YAML: {said}")

    def _value(self, node: yaml.Node, key_path: str) -> object:
        self.nodes[key_path] = node
        kind = shown(node.tag.removeprefix(_TAG))
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, key_path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self._value(item, f"{key_path}[{i}]") for i, item in enumerate(node.value)]
        if not isinstance(node, yaml.ScalarNode) or node.tag not in _SCALARS:
            raise self.error(key_path, f"YAML reads this as {kind}; if it is text, put it in quotes")
        if node.tag != f"{_TAG}str" and len(node.value) > MAX_NUMBER_CHARACTERS:
            raise self.error(key_path, f"{shown(node.value)} is too long for {kind}")
        try:
            return self._scalars.construct_object(node)
        # PyYAML raises these for an explicit tag that does not fit its text, such as `!!int x`.
        except (ValueError, KeyError, IndexError, OverflowError) as error:
            raise self.error(key_path, f"{shown(node.value)} cannot be read as {kind}") from error

    def _mapping(self, node: yaml.MappingNode, key_path: str) -> dict[str, object]:
        struct = self._structs.get(_without_indices(key_path))
        lines: dict[str, int] = {}
        data: dict[str, object] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if key_node.tag != f"{_TAG}str":
                raise self.error(key_path, "a key must be plain text", key_node)
            if struct and key not in struct.__struct_fields__:
                if not key_path and key in self._removed:
                    raise self.error(key, self._removed[key], key_node)
                raise self.error(key_path, self._unknown(key, struct), key_node)
            whole = f"{key_path}.{key}" if key_path else key
            if key in lines:
                raise self.error(whole, f"is given twice, first on line {lines[key]}; keep one", key_node)
            lines[key] = key_node.start_mark.line + 1
            value = self._value(value_node, whole)
            if value is not None:
                data[key] = value
        return data

    def _unknown(self, key: str, struct: type[msgspec.Struct]) -> str:
        """Suggest the nearest key of this mapping, else of another one with its key path."""
        own = struct.__struct_fields__
        others = [(key_path, other) for key_path, other in self._structs.items() if key_path]
        known = {field: f"{key_path}.{field}" for key_path, other in others for field in other.__struct_fields__}
        known |= {field: field for field in own}
        near = difflib.get_close_matches(key, own, 1, 0.7) or difflib.get_close_matches(key, known, 1)
        advice = f"did you mean {known[near[0]]}?" if near else f"known keys: {', '.join(own)}"
        return f"unknown key {shown(key)}; {advice}"


def shown(text: str) -> str:
    """`text` quoted and cut to fit into one line of an error."""
    return repr(text if len(text) <= 40 else text[:37] + "...")


def _without_indices(key_path: str) -> str:
    return re.sub(r"\[\d+\]", "[]", key_path)


def _in_words(types: str) -> str:
    """msgspec's `int | null` in words; `null` is left out, because a key may always be missing."""
    names = [name for name in types.split(" | ") if name != "null"] or ["null"]
    return " or ".join(_WORDS.get(name, name) for name in names)
