"""`dllama-zmq netstat`: the traffic of a running cluster, measured and planned; or predicted for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Struct
from rich.console import Console, Group, RenderableType
from typer import Option

from dllama_zmq.cli import completion, flags
from dllama_zmq.cli.chosen import client_of
from dllama_zmq.cli.exit_codes import as_json
from dllama_zmq.cli.flag_kinds import MAX, choice, number
from dllama_zmq.cli.flags import CLUSTER, cluster_flag
from dllama_zmq.cli.netstat_figures import Prediction, Report, measured, predicted
from dllama_zmq.cli.netstat_tables import prediction_tables, report_tables, summary_table
from dllama_zmq.cli.shape_flags import is_shape
from dllama_zmq.cli.watch import check_watch, watched
from dllama_zmq.errors import UsageError
from dllama_zmq.formats import open_model
from dllama_zmq.shapes import shape
from dllama_zmq.sources import model_at
from dllama_zmq.spec import ModelSpec, Sync

_STATUS_S = 10.0  # the root answers between two steps
_MIN_WIDTH = 80
_NODES = 4


class Options(Struct, frozen=True, kw_only=True):
    """A running cluster, by its file or address, or a model to predict."""

    cluster: Annotated[Path | None, cluster_flag(CLUSTER)] = None
    predict: Annotated[
        str | None,
        Option(
            "--predict",
            metavar="MODEL",
            help="No cluster: a published shape, or a model",
            autocompletion=completion.shapes,
        ),
    ] = None
    nodes: Annotated[int | None, number("--nodes", least=-MAX, help="With --predict: the nodes; 4 if not given")] = None
    sync: Annotated[Sync | None, choice("--sync", of=Sync, help="With --predict: f32 if not given")] = None
    summary: Annotated[bool, Option("--summary", help="A few lines: all workers together, and whether all agrees")] = (
        False
    )
    watch: flags.Watch = None
    json: flags.Json = False


def netstat(*, options: Options, there: flags.There) -> None:
    """Show a running cluster's traffic beside what its plan predicts, or predict a model's.

    Examples:
        dllama-zmq netstat --watch
        dllama-zmq netstat --predict llama3-8b --nodes 8 --sync q80 --security none
    """
    _check(options, there)
    console = Console(highlight=False)
    if not console.is_terminal or options.watch is None:
        console.width = max(console.width, _MIN_WIDTH)  # a narrower terminal wraps lines and loses nothing
    if options.predict is not None:
        n_nodes = _NODES if options.nodes is None else options.nodes
        figures = predicted(options.predict, _spec(options.predict), n_nodes, options.sync or "f32", there.security)
        watched(lambda: figures, _as_json if options.json else _tables, None, console)
        return
    with client_of(there, options.cluster) as client:
        show = _as_json if options.json else summary_table if options.summary else _tables
        watched(lambda: measured(client.status(_STATUS_S)), show, options.watch, console)


def _check(options: Options, there: flags.There) -> None:
    """Raise UsageError for flags that exclude each other."""
    if sum(one is not None for one in (options.cluster, there.connect, options.predict)) > 1:
        raise UsageError("--cluster, --connect and --predict exclude each other; give one of them")
    if options.predict is None and (options.nodes is not None or options.sync is not None):
        raise UsageError("--nodes and --sync go with --predict; a running cluster has its own")
    if options.summary and options.predict is not None:
        raise UsageError("--summary goes with a running cluster; a prediction is short")
    if options.predict is not None and options.watch is not None:
        raise UsageError("--watch goes with a running cluster; a prediction does not change")
    check_watch(options.watch)


def _tables(figures: Report | Prediction) -> RenderableType:
    return Group(report_tables(figures) if isinstance(figures, Report) else prediction_tables(figures), "")


def _as_json(figures: Report | Prediction) -> str:
    return as_json(figures)


def _spec(model: str) -> ModelSpec:
    """The numbers of a published shape or a model. Raises UsageError, FormatError."""
    if is_shape(model):
        return shape(model)
    with open_model(model_at(model)) as file:
        return file.spec
