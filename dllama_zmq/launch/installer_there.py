"""Runs on a worker's computer as text over ssh: makes or updates the virtual environment of `up --install`.

stdin is a tar of wheels. The first argument names this package's wheel. The second says where its dependencies come
from: `index` (as pip is configured there) or `sent` (only the tar). The last line of stdout is a JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NO_VENV, NO_PACKAGES = 4, 5
"""Exit codes."""
_PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


def main(wheel_name: str, source: str) -> int:
    """Install the wheels that stdin brings."""
    base = Path.home() / ".local/share/dllama-zmq"
    venv, stamp = base / "venv", base / "installed"
    python = venv / "bin/python"
    with tempfile.TemporaryDirectory() as folder:
        _unpack(Path(folder))
        wheel = Path(folder) / wheel_name
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if stamp.exists() and stamp.read_text() == digest and _version(venv) == wheel_name.split("-")[1]:
            return 0
        base.mkdir(mode=0o700, parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        # false after an upgrade of the system's Python
        is_sound = python.exists() and _runs(str(python), "-m", "pip", "--version")
        if not is_sound and not _runs(sys.executable, "-m", "venv", "--clear", str(venv)):
            return NO_VENV
        pip = [str(python), *_PIP, "install", "--find-links", folder]
        here = ["--no-index", "--no-deps", "--force-reinstall"]  # the same version may have other code
        needs = ["--no-index"] if source == "sent" else ["--retries", "1", "--timeout", "10"]
        if not (_runs(*pip, *here, str(wheel)) and _runs(*pip, *needs, "--only-binary", ":all:", str(wheel))):
            print(_tags(str(python)), flush=True)  # noqa: T201
            return NO_PACKAGES
        stamp.write_text(digest)
    return 0


def _runs(*command: str) -> bool:
    """Run a command with its output on stderr; returns whether it succeeded."""
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False).returncode == 0


def _version(venv: Path) -> str:
    """What `dllama-zmq --version` in `venv` prints."""
    try:
        found = subprocess.run([venv / "bin/dllama-zmq", "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip().rpartition(" ")[2]


def _unpack(folder: Path) -> None:
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        for member in tar:
            data = tar.extractfile(member)
            if data is not None:
                (folder / os.path.basename(member.name)).write_bytes(data.read())


def _tags(python: str) -> str:
    """The wheel tags that this Python accepts, as flags of pip."""
    text = """
import json, sys
from pip._vendor.packaging.tags import sys_tags
tags = list(sys_tags())
print(json.dumps({
    "platforms": sorted({tag.platform for tag in tags if tag.platform != "any"}),
    "abis": sorted({tag.abi for tag in tags}),
    "python": "%d.%d" % sys.version_info[:2],
    "implementation": "cp",
}))
"""
    found = subprocess.run([python, "-c", text], capture_output=True, text=True, check=False)
    return found.stdout.strip() or json.dumps({})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
