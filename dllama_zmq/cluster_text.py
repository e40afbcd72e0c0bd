"""The text of a cluster's file: read within a bound; a file of another kind is refused by what it is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from dllama_zmq.errors import ConfigError
from dllama_zmq.sources import JSON, MODELS, TEXT, kind_of_bytes

MAX_FILE_BYTES = 1 << 20
_KEYS = re.compile(r"""^[\s{"']*(?:name|model|tokenizer|weights|sync|root|workers|limits)["']?\s*:""", re.MULTILINE)
_LINES = re.compile(r"^[ \t]*[^\s#].*", re.MULTILINE)
_PLAIN_LINE = re.compile(r"""\s*(?:[{}\[\]-]|["']?\w+["']?\s*:(?:\s|$))""")


def read_cluster_text(path: Path) -> str:
    """The text of the file at `path`. Raises ConfigError, which begins with the file and, for its text, the place."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: there is no such file; go to the folder of your cluster.yaml, name the file in the command, or "
            "write one: dllama-zmq init"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the file cannot be read ({error}); check its path and permissions") from error
    kind = kind_of_bytes(data)
    if kind not in (TEXT, JSON):
        raise other_kind(path, kind)
    if len(data) > MAX_FILE_BYTES:
        raise other_kind(path, f"larger than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode()  # PyYAML skips a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise ConfigError(f"{path}:{line}:{column}: not UTF-8 text; save the file as UTF-8") from error
    if kind == JSON and not is_about_a_cluster(text):
        raise other_kind(path, kind)
    return text


def is_about_a_cluster(text: str) -> bool:
    """Whether a line of `text` begins with a key of a cluster's file, and most lines are of such a form."""
    text = text.removeprefix("\ufeff")
    lines = _LINES.findall(text)
    return _KEYS.search(text) is not None and 2 * sum(map(bool, map(_PLAIN_LINE.match, lines))) >= len(lines)


def other_kind(path: Path, kind: str) -> ConfigError:
    """The error of a file that is `kind` and describes no cluster."""
    instead = (
        f"dllama-zmq up -m {shlex.quote(str(path))} runs a model" if kind in MODELS else "dllama-zmq init writes one"
    )
    return ConfigError(
        f"{path} is {kind}, not a cluster's file: that is YAML with lines such as `model: demo` and `workers: 3`; "
        f"{instead}"
    )
