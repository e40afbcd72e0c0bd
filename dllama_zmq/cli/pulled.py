"""`dllama-zmq list` and `rm`: pulled models."""

from __future__ import annotations

import sys
from typing import Annotated

from rich.console import Console
from rich.table import Table
from typer import Argument, Option

from dllama_zmq.cli import completion, flags
from dllama_zmq.cli.exit_codes import as_json
from dllama_zmq.cli.notes import note
from dllama_zmq.errors import UsageError
from dllama_zmq.hub import ModelName
from dllama_zmq.hub.cache import cache_folder
from dllama_zmq.hub.store import find_by_name, list_pulled, plan_removal
from dllama_zmq.reporting import human_bytes
from dllama_zmq.sources import DEMO


def list_models(*, json: flags.Json = False) -> None:
    """List the models that have been pulled: what to type for each, its size, and where.

    Examples:
        dllama-zmq list
    """
    models = list_pulled()
    if json:
        rows = [{"name": str(one.name), "path": str(one.path), "bytes": one.n_bytes} for one in models]
        print(as_json({"models": rows}))  # noqa: T201
        return
    if not models:
        note("no model has been pulled yet; dllama-zmq pull USER/REPO[:FILE] fetches one")
        return
    table = Table("name", "size", box=None, pad_edge=False)
    for one in models:
        table.add_row(str(one.name), human_bytes(one.n_bytes))
    Console(highlight=False, markup=False).print(table)
    note(f"in {cache_folder()}; dllama-zmq run NAME runs one, dllama-zmq list --json tells where each is")


def rm(
    *,
    model: Annotated[
        str, Argument(metavar="REPO[:FILE]", help="A name of `dllama-zmq list`", autocompletion=completion.pulled)
    ],
    yes: Annotated[bool, Option("-y", "--yes", help="Do not ask")] = False,
) -> None:
    """Remove a model that has been pulled. Asks first.

    Examples:
        dllama-zmq rm org/model-GGUF:Q4_K_M
    """
    if model == DEMO:
        raise UsageError(
            f"{DEMO} is part of the package and cannot be removed; `dllama-zmq list` shows what rm removes"
        )
    removal = plan_removal(find_by_name(model) or ModelName.parse(model))
    what = f"{removal.name} ({human_bytes(removal.n_bytes)} in {removal.paths[0].parent})"
    if not yes and not _agreed(f"remove {what}? [y/N] "):
        note("nothing was removed")
        raise SystemExit(1)
    removal.execute()
    note(f"removed {what}")


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("stdin is no terminal, so nobody can confirm; --yes removes the model without a question")
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
