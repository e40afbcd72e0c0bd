"""`dllama-zmq pull`, `list` and `rm` beside a hub on this computer, with a cache of their own."""

from __future__ import annotations

import os
import random
import select
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from command_line import Cli, Process, Result
from hub_server import Hub

BIG = random.Random(1).randbytes(3_000_000)
GGUF = "m.Q4_K_M.gguf"
NAMES = (GGUF, "m.Q8_0.gguf")
TAKES_S = 20.0
SILENT_S = 6.0  # lines come after 1.5 and 5 s of a thing


class Puller:
    """The command line beside a hub, with a cache of its own."""

    def __init__(self, hub: Hub, cli: Cli) -> None:
        self.hub, self.cli = hub, cli
        self.cache = cli.folder / "hf" / "hub"
        self.folder = self.cache / "models--org--m"

    def environment(self, **env: str) -> dict[str, str]:
        unwanted = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        cleared = {name: "" for word in unwanted for name in (word, word.lower())}
        home = {"HF_HOME": str(self.cache.parent), "HF_HUB_CACHE": str(self.cache), "HF_ENDPOINT": self.hub.url}
        token = {"HF_TOKEN": "", "HF_TOKEN_PATH": str(self.cache.parent / "token")}
        return cleared | token | home | env

    def run(self, *words: str, **env: str) -> Result:
        return self.cli.run("pull", *words, wait_s=TAKES_S, **self.environment(**env))

    def verb(self, *words: str, **env: str) -> Result:
        """Another command than pull."""
        return self.cli.run(*words, wait_s=TAKES_S, **self.environment(**env))

    def started(self, *words: str, **env: str) -> AbstractContextManager[Process]:
        return self.cli.started("pull", *words, stdin=subprocess.DEVNULL, **self.environment(**env))

    def path(self, *words: str, **env: str) -> Path:
        """What a pull that must work prints, and nothing else, to stdout."""
        result = self.run(*words, **env)
        assert result.code == 0, result.said
        assert result.out.count("\n") == 1, result.said
        assert "\r" not in result.err, result.said  # no bar of another program
        assert "put this path after `model:` in cluster.yaml" in result.err.splitlines()[-1]
        return Path(result.out.rstrip("\n"))

    def python(self, code: str) -> str:
        """What a program prints that uses huggingface_hub, or this package, with the same cache."""
        env = self.cli.environment(**self.environment())
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TAKES_S, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def files(self) -> list[str]:
        """Everything that lies in the cache of the repository."""
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if not path.is_dir())


def read_lines(process: Process, n_lines: int) -> list[str]:
    """The next lines of stderr, none of which comes later than SILENT_S after the one before; the first may."""
    assert process.stderr is not None
    data, wait_s = b"", TAKES_S
    while data.count(b"\n") < n_lines:
        assert select.select([process.stderr], [], [], wait_s)[0], f"silent for {wait_s} s after {data!r}"
        data += os.read(process.stderr.fileno(), 65536)
        wait_s = SILENT_S
    return data.decode().splitlines()[:n_lines]
