"""`dllama-zmq pull`: the path for `model:` goes to stdout, everything else to stderr."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from dllama_zmq.cli.notes import note
from dllama_zmq.cli.progress import Display
from dllama_zmq.hub import ModelName
from dllama_zmq.hub.http import load_settings
from dllama_zmq.hub.pull import Pull, plan_pull
from dllama_zmq.reporting import Reporter, human_bytes, plural

_MAX_LISTED = 20


def pull(
    *,
    model: Annotated[
        str,
        Argument(metavar="REPO[:FILE]", help="USER/REPO; FILE is a file's name, a glob, or a quantization as Q4_K_M"),
    ],
    revision: Annotated[
        str, Option("--revision", metavar="NAME", help="A branch, tag or commit of the repository")
    ] = "main",
    to: Annotated[
        Path | None,
        Option("--to", metavar="FOLDER", help="Put the files there, not into the cache that other tools share"),
    ] = None,
    offline: Annotated[bool, Option("--offline", help="Ask no hub: only say where the cache has it")] = False,
) -> None:
    """Fetch a model from a Hugging Face hub and print its path. Goes on where an earlier call stopped.

    Examples:
        dllama-zmq pull TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M
    """
    name = ModelName.parse(model)
    fetched = fetch(name, revision, to, offline)
    sys.stdout.write(f"{fetched.path()}\n")
    sys.stdout.flush()
    tokenizer = fetched.tokenizer_path()
    beside = f", and after `tokenizer:` {tokenizer}" if tokenizer else ""
    typed = name if to is None and revision == "main" else shlex.quote(str(fetched.path()))
    note(f'try: dllama-zmq run {typed} "Once upon a time"')
    note(f"for a cluster put this path after `model:` in cluster.yaml{beside}")


def fetch(name: ModelName, revision: str = "main", to: Path | None = None, offline: bool = False) -> Pull:
    """Fetch a model, with progress on stderr."""
    with Display() as display:
        display.activity("loading huggingface_hub")
        _quieten()
        display.activity(f"looking for {name}")
        pull = plan_pull(name, revision, to, offline=offline, on_wait=display.line)
        _announce(pull, display)
        pull.check_room()
        try:
            pull.fetch(display)
        except KeyboardInterrupt:
            display.line("stopped; the same command resumes the download")
            raise
    return pull


def _announce(pull: Pull, reporter: Reporter) -> None:
    if not pull.files:
        reporter.line(f"{pull.repo} is in the cache")
        return
    missing = pull.missing()
    n_files = plural(len(pull.files), "file")
    reporter.line(f"{pull.repo} at {pull.revision} ({pull.commit[:8]}): {n_files}, {human_bytes(pull.n_bytes)}")
    for file in pull.files[:_MAX_LISTED]:
        state = "" if file in missing else ", here already"
        if file in missing and missing[file] < file.n_bytes:
            state = f", {human_bytes(missing[file])} to go"
        reporter.line(f"  {file.name} ({human_bytes(file.n_bytes)}{state})")
    if len(pull.files) > _MAX_LISTED:
        reporter.line(f"  and {len(pull.files) - _MAX_LISTED} more")


def _quieten() -> None:
    """Load huggingface_hub, and silence it and its HTTP client: progress is shown here.

    Even --verbose does not show their logs, which contain headers and signed URLs.
    """
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # else it would send telemetry
    load_settings()
    import huggingface_hub.hf_api  # noqa: F401 - the slow part

    for package in ("huggingface_hub", "httpx2", "httpcore2", "filelock"):
        logger = logging.getLogger(package)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
