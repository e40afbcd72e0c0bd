"""What crosses the bus: measured in a running cluster beside its plan's prediction, or predicted for a model alone.

    python tools/netstat.py                                             the cluster of ./cluster.yaml
    python tools/netstat.py --connect tcp://192.168.1.10:5572 --watch   a cluster elsewhere, every 2 seconds
    python tools/netstat.py --predict llama3-8b --nodes 8 --sync q80    no cluster

Exit codes are those of dllama-zmq: 0 done, 1 failed, 2 wrong use, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import msgspec
import typer
from netstat_figures import Prediction, Report, measured, predicted
from netstat_tables import prediction_tables, report_tables
from rich.console import Console
from rich.live import Live

from dllama_zmq.cli.endings import with_exit_codes
from dllama_zmq.client import Client
from dllama_zmq.cluster import DATA_FOLDER, DEMO, load_cluster
from dllama_zmq.formats import open_model
from dllama_zmq.launch.lifecycle import connect
from dllama_zmq.shapes import SHAPES, shape
from dllama_zmq.spec import ModelSpec

_WATCH_S = 2.0
_STATUS_S = 10.0  # the root answers between two steps
_FULL_WIDTH = 120
_NODES = 4


def main(argv: list[str] | None = None) -> int:
    """Run the tool; returns the exit code."""
    args = _arguments(argv)
    try:
        _run(args)
    except typer.Exit as ending:
        return ending.exit_code
    return 0


@with_exit_codes
def _run(args: argparse.Namespace) -> None:
    console = Console(highlight=False)
    if not console.is_terminal or args.watch is None:
        console.width = max(console.width, _FULL_WIDTH)  # a terminal that is narrower wraps lines and loses nothing
    if args.predict is not None:
        n_nodes = _NODES if args.nodes is None else args.nodes
        _show(console, predicted(args.predict, _spec(args.predict), n_nodes, args.sync or "f32"), args.json)
        return
    with Client(args.connect) if args.connect else connect(load_cluster(args.cluster).cluster.name) as client:
        if args.watch is None:
            _show(console, measured(client.status(_STATUS_S)), args.json)
        elif console.is_terminal and not args.json:
            _watch_live(console, client, args.watch)
        else:
            while True:
                _show(console, measured(client.status(_STATUS_S)), args.json)
                time.sleep(args.watch)


def _watch_live(console: Console, client: Client, every_s: float) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(report_tables(measured(client.status(_STATUS_S))), refresh=True)
            time.sleep(every_s)


def _show(console: Console, figures: Report | Prediction, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(figures).decode() + "\n")
    else:
        console.print(report_tables(figures) if isinstance(figures, Report) else prediction_tables(figures))
        console.print()
    sys.stdout.flush()


def _spec(model: str) -> ModelSpec:
    """The numbers of a published shape, of a model file, or of the demo. Raises UsageError, FormatError."""
    path = DATA_FOLDER / f"{DEMO}.m" if model == DEMO else Path(model)
    if model != DEMO and path.suffix != ".m" and "/" not in model:
        return shape(model)
    with open_model(path) as file:
        return file.spec


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="netstat.py",
        description="Show the traffic of a running cluster beside its plan's prediction, or predict a model's.",
        epilog="1 kB is 1024 bytes. Sent is from the root to a worker. Payload is arrays, wire adds what carries them.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--cluster", type=Path, metavar="FILE", default=Path("cluster.yaml"), help="the file of the running cluster"
    )
    which.add_argument("--connect", metavar="ADDRESS", help="a running root's address for clients, as tcp://HOST:5572")
    which.add_argument(
        "--predict", metavar="MODEL", help=f"predict, with no cluster: {', '.join(SHAPES)}, {DEMO}, or a .m file"
    )
    parser.add_argument(
        "--nodes", type=int, metavar="N", help=f"with --predict: the root and its workers (default {_NODES})"
    )
    parser.add_argument(
        "--sync", choices=["f32", "f16", "q80"], help="with --predict: the type of activations on the bus (default f32)"
    )
    parser.add_argument(
        "--watch", type=_seconds, nargs="?", const=_WATCH_S, metavar="SECONDS",
        help=f"show it again every SECONDS ({_WATCH_S:g} if not given) until Ctrl-C",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object (with --watch: one each time)")
    args = parser.parse_args(argv)
    if args.predict is None and (args.nodes is not None or args.sync is not None):
        parser.error("--nodes and --sync go with --predict; a running cluster has its own")
    if args.predict is not None and args.watch is not None:
        parser.error("--watch goes with a running cluster; a prediction does not change")
    return args


def _seconds(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and 0 < seconds <= 86400):
        raise ValueError(text)
    return seconds


_seconds.__name__ = "number of seconds"  # argparse names it in "invalid number of seconds value: '-1'"


if __name__ == "__main__":
    sys.exit(main())
