"""The result of rendering: files by path in a folder, some of them secret, and the commands to run next."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from msgspec import Struct, field

from dllama_zmq.errors import ClusterError, TrustError, UsageError
from dllama_zmq.formats.files import replace_file
from dllama_zmq.launch.own_wheel import write_own_wheel
from dllama_zmq.sources import DATA_FOLDER
from dllama_zmq.trust import KeyPair

HOME = "/var/lib/dllama-zmq"
"""DLLAMA_ZMQ_HOME of every deployed node: keys, sockets and logs."""
IMAGE_USER = 10001
"""The user of the image; any other works too."""


class Rendered(Struct, frozen=True):
    """files, secrets: contents by path. owner: the only user who may read secrets; None: this one. then: commands."""

    files: Mapping[str, str | bytes]
    secrets: Mapping[str, str] = field(default_factory=dict)
    then: Sequence[str] = ()
    owner: int | None = None


def write(rendered: Rendered, folder: Path, force: bool) -> None:
    """Write the files below `folder`. Secrets that exist already stay.

    Raises UsageError if another file exists and not `force`; ClusterError if a file cannot be written.
    """
    there = [name for name in rendered.files if os.path.lexists(folder / name)]
    if there and not force:
        raise UsageError(f"{folder / there[0]} exists; --force replaces earlier rendered files (keys stay)")
    try:
        for name, text in rendered.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with replace_file(folder / name) as file:
                file.write(text if isinstance(text, bytes) else text.encode())
        for name, text in rendered.secrets.items():
            _write_secret(folder / name, text, rendered.owner)
    except OSError as error:
        raise ClusterError(
            f"{error.filename or folder} cannot be written: {error.strerror}. Make room, or name another one with -o."
        ) from error


def _write_secret(path: Path, text: str, owner: int | None) -> None:
    """Create the file and its folder for one user, with no moment at which others could read it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
    if owner not in (None, os.geteuid()):
        os.chown(path, owner, owner)
        os.chown(path.parent, owner, owner)


def kept_key(path: Path) -> KeyPair:
    """The key pair in a file of an earlier rendering; a new one if there is none. Raises TrustError."""
    try:
        return KeyPair.of_secret(path.read_text().strip())
    except FileNotFoundError:
        return KeyPair.new()
    except (TrustError, ValueError) as error:
        raise TrustError(f"{path}: {error}; remove the file to get a new key") from error


def image_files(image: str) -> dict[str, str | bytes]:
    """The Containerfile of `image`, a wheel of this package, and a .gitignore for the secrets."""
    text = from_template("Containerfile", image=image, home=HOME, user=IMAGE_USER)
    with tempfile.TemporaryDirectory() as folder:
        wheel = write_own_wheel(Path(folder))
        return {"Containerfile": text, wheel.name: wheel.read_bytes(), ".gitignore": "keys/\n*.whl\n"}


def from_template(template: str, **values: object) -> str:
    """The text of a template of the package, in Jinja's notation. Its filter `json` makes YAML of any string."""
    templates = FileSystemLoader(DATA_FOLDER / "render")
    jinja = Environment(
        loader=templates, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    jinja.filters["json"] = partial(json.dumps, ensure_ascii=False)
    return jinja.get_template(template).render(**values)
