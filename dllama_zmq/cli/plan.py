"""`dllama-zmq plan`: how many nodes a model can run on, their memory and speed, before it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from msgspec import Struct
from typer import Argument, Option

from dllama_zmq.bench.calibration import measure_encryption, measure_rates
from dllama_zmq.bench.machine import cpu_name
from dllama_zmq.bench.outlook import Host, Speeds, Wanted, advice, outlook, to_measure, too_little
from dllama_zmq.bench.speed import Link
from dllama_zmq.bus.client_messages import Status
from dllama_zmq.cli import completion, flags
from dllama_zmq.cli.exit_codes import as_json
from dllama_zmq.cli.flag_kinds import KernelChoice, model_flag
from dllama_zmq.cli.flags import cluster_flag
from dllama_zmq.cli.plan_question import (
    USUAL_LINK,
    Source,
    counts_of,
    hosts_of_file,
    hosts_of_nothing,
    hosts_of_status,
    link_of,
    running_cluster,
    size_of,
    source_of,
)
from dllama_zmq.cli.plan_tables import Answer, Computer, show
from dllama_zmq.cli.progress import Display
from dllama_zmq.cli.shape_flags import ShapeNumbers, shape_flag
from dllama_zmq.cluster import Cluster
from dllama_zmq.errors import PlanError, UsageError
from dllama_zmq.host import free_memory_bytes, usable_cores
from dllama_zmq.interrupts import Interrupts
from dllama_zmq.node_config import Security
from dllama_zmq.sharding import Plan, check_sync, context_length, possible_node_counts
from dllama_zmq.spec import Sync, Weights

_USUAL_COUNTS = 8  # the largest number shown without a file and without --nodes


class Options(Struct, frozen=True, kw_only=True):
    """The model, the computers and the link between them."""

    words: Annotated[
        list[str] | None,
        Argument(
            metavar="[MODEL] [FILE]",
            help=f"{flags.MODEL}, or a published shape; and a cluster's file",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None
    model: Annotated[str | None, model_flag("-m", "--model", help="The model, as a flag")] = None
    cluster: Annotated[Path | None, cluster_flag("The cluster's file, as a flag")] = None
    shape: Annotated[str | None, shape_flag("A published shape, without its weights")] = None
    weights: Annotated[Weights | None, flags.weights_flag("Type in which the weights are read")] = None
    nodes: Annotated[
        str | None, Option("--nodes", metavar="N,…", help="Numbers of nodes; up to 8, or the file's, if not given")
    ] = None
    here: Annotated[bool, Option("--here", help="All nodes on this computer; else each on one like it")] = False
    context: Annotated[int | None, flags.CONTEXT] = None
    threads: Annotated[int | None, flags.threads_flag("Compute threads of each node")] = None
    sync: Annotated[Sync | None, flags.SYNC] = None
    kernels: Annotated[KernelChoice | None, flags.KERNELS] = None
    memory: Annotated[
        str | None, Option("--memory", metavar="SIZE", help="Free memory of each other computer, such as 4GB")
    ] = None
    link: Annotated[
        str | None,
        Option("--link", metavar="RATE[,TIME]", help="Rate and round trip of the network; 1Gbit,0.2ms if not given"),
    ] = None
    no_speed: Annotated[bool, Option("--no-speed", help="Only memory and bytes: measure nothing")] = False
    verbose: Annotated[bool, Option("-v", "--verbose", help="Show what each time consists of")] = False
    json: flags.Json = False


def plan(*, options: Options, there: flags.There, shape: ShapeNumbers) -> None:
    """Predict what a model needs and how fast it is on some numbers of nodes, before anything is loaded.

    Speed is predicted from what this computer does with a small model, which takes some seconds.

    Examples:
        dllama-zmq plan llama3-8b --link 1Gbit,0.3ms --memory 4GB
        dllama-zmq plan story.gguf --nodes 1,2 --here
        dllama-zmq plan home.yaml
    """
    if options.link is not None:
        link_of(options.link)  # an error is reported before anything is opened
    words = [*(options.words or []), *([] if options.model is None else [options.model])]
    source = source_of(words, options.cluster, options.shape, options.weights, shape)
    measures_link = options.link is None and not options.no_speed
    running = None if options.here else running_cluster(there, source.file, measures_link)
    wanted = _wanted(options, source, there, None if running is None else running.status)
    for n_nodes in wanted.counts:
        Plan.make(wanted.spec, n_nodes, wanted.model)  # an impossible number is reported before anything is measured
    speeds = None if options.no_speed else _speeds(options, wanted, None if running is None else running.link)
    outlooks = [outlook(wanted, n_nodes, speeds) for n_nodes in wanted.counts]
    computer = Computer(cpu_name(), usable_cores(), free_memory_bytes())
    answer = Answer(wanted, computer, speeds, outlooks, advice(wanted, outlooks, speeds, usable_cores()))
    if options.json:
        typer.echo(as_json(answer.as_map()))
    else:
        show(answer, options.verbose or logging.getLogger().isEnabledFor(logging.DEBUG))
    if all(one.fits is False for one in outlooks):
        raise PlanError(too_little(wanted, outlooks[-1]))


def _wanted(options: Options, source: Source, there: flags.There, status: Status | None) -> Wanted:
    """Raises UsageError and PlanError."""
    spec, cluster = source.spec, None if source.file is None else source.file.cluster
    of_flags = (options.threads, None if options.memory is None else size_of(options.memory))
    sync: Sync = options.sync or ("f32" if cluster is None else cluster.sync)
    check_sync(spec, sync)
    hosts: Callable[[int], Sequence[Host]]
    n_there = None
    if status is not None:
        hosts, n_there = partial(hosts_of_status, status, *of_flags), len(status.nodes)
    elif cluster is not None and not options.here:
        hosts, n_there = partial(hosts_of_file, cluster, *of_flags), cluster.n_nodes
    else:
        hosts = partial(hosts_of_nothing, options.here, *of_flags)
    most = n_there or _USUAL_COUNTS
    counts = [n_nodes for n_nodes in possible_node_counts(spec) if n_nodes <= most]
    if options.nodes is not None:
        counts = counts_of(options.nodes)
    if n_there is not None and max(counts) > n_there:
        raise UsageError(f"--nodes {options.nodes}: the cluster has {n_there} nodes; add workers, or leave it out")
    return Wanted(
        model=source.name,
        spec=spec,
        n_positions=context_length(spec, options.context or (None if cluster is None else cluster.max_seq_len)),
        kv_type="f16" if cluster is None else cluster.kv_cache,
        sync=sync,
        security=_security(there, cluster, status),
        counts=counts,
        hosts=hosts,
    )


def _security(there: flags.There, cluster: Cluster | None, status: Status | None) -> Security:
    """The security of the bus between computers: the running cluster's, the file's, or the flag's."""
    if status is not None:
        return "none" if status.security == "none" else "curve"
    return there.security if cluster is None else cluster.security


def _speeds(options: Options, wanted: Wanted, measured: Link | None) -> Speeds:
    """Measure this computer, which takes some seconds. measured: the link of a running cluster."""
    interrupts = Interrupts()
    asked = wanted.spec.weight_type, wanted.sync, options.kernels or "auto"
    is_apart = any(len(wanted.hosts(n_nodes)) > 1 for n_nodes in wanted.counts)
    # the time of a measured link includes it already
    adds = is_apart and wanted.security == "curve" and measured is None
    level = logging.getLogger().level
    logging.getLogger().setLevel(max(level, logging.WARNING))  # the display shows what nodes log
    try:
        with Display() as display, interrupts.caught():
            rates = measure_rates(*asked, to_measure(wanted, measured is not None), display, interrupts)
            with interrupts.raised():
                encryption = measure_encryption() if adds else None
    finally:
        logging.getLogger().setLevel(level)
    if measured is not None:
        return Speeds(rates=rates, link=measured, measured=True)
    link = USUAL_LINK if options.link is None else link_of(options.link)
    return Speeds(rates=rates, link=link, assumed=options.link is None, encryption=encryption)
