"""`dllama-zmq pull`: the path for `model:` goes to stdout, everything else to stderr."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from pathlib import Path

from dllama_zmq.cli.progress import Display
from dllama_zmq.cli.show import note
from dllama_zmq.hub import ModelName, Pull, load_settings, plan_pull
from dllama_zmq.telling import Tells, human_bytes

_MOST_LISTED = 20


def run(text: str, revision: str, to: Path | None, offline: bool) -> None:
    """Fetch the model of `text`, REPO[:FILE], and say where it is."""
    name = ModelName.parse(text)
    pull = fetch(name, revision, to, offline)
    sys.stdout.write(f"{pull.path()}\n")
    sys.stdout.flush()
    tokenizer = pull.tokenizer_path()
    beside = f", and after `tokenizer:` {tokenizer}" if tokenizer else ""
    typed = name if to is None and revision == "main" else shlex.quote(str(pull.path()))
    note(f'try: dllama-zmq run {typed} "Once upon a time"')
    note(f"for a cluster put this path after `model:` in cluster.yaml{beside}")


def fetch(name: ModelName, revision: str = "main", to: Path | None = None, offline: bool = False) -> Pull:
    """Fetch a model, telling on stderr how far it is."""
    with Display() as display:
        display.now("loading huggingface_hub")
        _quieten()
        display.now(f"looking for {name}")
        pull = plan_pull(name, revision, to, offline=offline, on_wait=display.line)
        _announce(pull, display)
        pull.check_room()
        try:
            pull.fetch(display)
        except KeyboardInterrupt:
            display.line("stopped; what has come is kept, and the same command goes on from there")
            raise
    return pull


def _announce(pull: Pull, tells: Tells) -> None:
    if not pull.files:
        tells.line(f"{pull.repo} is in the cache")
        return
    missing = pull.missing()
    n_files = f"{len(pull.files)} file{'s' if len(pull.files) > 1 else ''}"
    tells.line(f"{pull.repo} at {pull.revision} ({pull.commit[:8]}): {n_files}, {human_bytes(pull.n_bytes)}")
    for file in pull.files[:_MOST_LISTED]:
        state = "" if file in missing else ", here already"
        if file in missing and missing[file] < file.n_bytes:
            state = f", {human_bytes(missing[file])} to go"
        tells.line(f"  {file.name} ({human_bytes(file.n_bytes)}{state})")
    if len(pull.files) > _MOST_LISTED:
        tells.line(f"  and {len(pull.files) - _MOST_LISTED} more")


def _quieten() -> None:
    """Load huggingface_hub without what it and its HTTP client would say: it is told here, in our words.

    Not even --verbose shows their logs, for headers and signed addresses are in them.
    """
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # what it would ask and tell of this computer beside
    load_settings()
    import huggingface_hub.hf_api  # noqa: F401 - the slow part

    for package in ("huggingface_hub", "httpx2", "httpcore2", "filelock"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
