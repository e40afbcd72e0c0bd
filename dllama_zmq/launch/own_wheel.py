"""Build a wheel of the running code, from the folder where Python found this package."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import dllama_zmq
from dllama_zmq.errors import ClusterError

_NAME = "dllama_zmq"
_SCRIPT = "[console_scripts]\ndllama-zmq = dllama_zmq.cli:main\n"
_DATE = (1980, 1, 1, 0, 0, 0)  # constant, so that the same code gives the same bytes


def write_own_wheel(folder: Path) -> Path:
    """Write the wheel into `folder`. Raises ClusterError if this package is not installed here.

    Source: packaging.python.org, "Binary distribution format".
    """
    try:
        found = metadata.distribution("dllama-zmq")
        # PKG-INFO: an editable install of a checkout
        about = found.read_text("METADATA") or found.read_text("PKG-INFO")
    except metadata.PackageNotFoundError:
        about = None
    if about is None:
        raise ClusterError(
            "dllama-zmq runs here without being installed, so its dependencies are not known; install it here with pip"
        )
    info = f"{_NAME}-{found.version}.dist-info"
    path = folder / f"{_NAME}-{found.version}-py3-none-any.whl"
    contents = {
        **dict(_package_files()),
        f"{info}/METADATA": about.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: dllama-zmq\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": _SCRIPT.encode(),
    }
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in contents.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            # Deflating takes most of the time where a model is in it, and makes that smaller by a fifteenth.
            wheel.writestr(entry, data, zipfile.ZIP_STORED if name.endswith(".m") else zipfile.ZIP_DEFLATED)
    return path


def _package_files() -> Iterator[tuple[str, bytes]]:
    folder = Path(dllama_zmq.__file__).parent
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"{_NAME}/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
