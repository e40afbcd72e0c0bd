"""The tables of netstat: of a running cluster, and of a prediction."""

from __future__ import annotations

import os

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dllama_zmq.cli.netstat_figures import (
    BOTH,
    OTHER,
    TOTAL,
    WIRE_TOLERANCE,
    Flow,
    Line,
    Prediction,
    Report,
    Share,
)
from dllama_zmq.cli.slow_nodes import legend
from dllama_zmq.reporting import plural

_NAMES = {
    "step": "step x",
    "sum": "sums",
    "partial": "partials",
    "candidates": "candidates",
    "more_candidates": "asked again",
}
_NO_TOKENS = "no tokens yet: make some with `dllama-zmq generate`"
_ALONE = "One node alone puts nothing on the bus."
_FLOW_NAMES = {
    "layers": "layers",
    "step": "step x",
    "candidates_greedy": "candidates, greedy",
    "candidates_sampled": "candidates, sampled",
    "total_greedy": "total, greedy",
    "total_sampled": "total, sampled",
}


def summary_table(report: Report) -> RenderableType:
    """A running cluster's traffic in a few lines: all workers together."""
    table = _table("kB per token, all workers", "payload", "plan", "wire", "plan", "differs")
    for phase, lines in report.all_workers.items():
        for line in lines:
            if line.kind == TOTAL:
                table.add_row(f"{phase}, {line.direction} by the root", *_cells(line, report.tokens[phase]))
    parts: list[RenderableType] = [table if report.workers else Text(_ALONE)]
    if report.workers and not any(report.tokens.values()):
        parts = [Text(_NO_TOKENS)]
    parts += _slowest(report)
    if report.agrees is not None:
        parts.append(_verdict(report))
    return Group(*parts)


def report_tables(report: Report) -> RenderableType:
    """A running cluster's traffic and waiting."""
    parts: list[RenderableType] = [
        Text(f"{report.cluster}: {report.state}, {plural(report.nodes, 'node')}, sync {report.sync}"),
        Text(f"model: {os.path.normpath(report.model)}"),
        Text("The root sends step x and sums; it receives partials and candidates."),
        Text("Payload: arrays. Wire: payload, headers, framing of ZMTP and CURVE."),
    ]
    if report.note:
        parts.append(Text(report.note))
    if len(report.workers) == 0:
        parts.append(Text(_ALONE))
    for phase, lines in report.all_workers.items() if report.workers else ():
        parts += [Text(), _title(report, phase), _phase_table(report, phase, lines)]
    if not any(report.tokens.values()):
        parts += [Text(), Text(_NO_TOKENS)]
    if report.workers:
        parts += [Text(), Text("set-up and idle, kB in all", "bold"), _setup_table(report)]
    if report.waiting:
        parts += [Text(), Text("who waited, and for whom, in the last steps", "bold"), Text(_windows(report))]
        parts += [_waiting_table(report), *map(Text, legend(report.oversubscribed)), *_slowest(report)]
    if report.agrees is not None:
        parts += [Text(), _verdict(report)]
    return Group(*parts)


def _phase_table(report: Report, phase: str, all_lines: list[Line]) -> Table:
    table = _table("worker", "message", "payload", "plan", "wire", "plan", "differs", left=2)
    blocks = [(worker.worker, worker.phases[phase]) for worker in report.workers]
    blocks.append((f"all {len(blocks)}", all_lines))
    for name, lines in blocks:
        for i, line in enumerate(lines):
            n_tokens = report.tokens[phase]
            table.add_row(
                "" if i else name,
                _NAMES.get(line.kind, f"{line.kind} {line.direction}"),
                *_cells(line, n_tokens),
            )
    return table


def _setup_table(report: Report) -> Table:
    table = _table("worker", "message", "payload", "wire", left=2)
    for worker in report.workers:
        weights = [line for line in worker.setup if line.kind == "weights"]
        rest = [line for line in worker.setup if line.kind != "weights"]
        groups = [("weights", weights)]
        groups += [(f"{OTHER} {way}", [line for line in rest if line.direction == way]) for way in BOTH]
        name = worker.worker
        for kind, lines in groups:
            if lines:
                payload, wire = sum(line.payload_bytes for line in lines), sum(line.wire_bytes for line in lines)
                table.add_row(name, kind, _kb(payload), _kb(wire))
                name = ""
    return table


def _windows(report: Report) -> str:
    """The number of last steps of each phase, and their seconds."""
    steps = (f"{plural(one.steps, 'step')} of {one.phase} ({one.wall_s:.1f} s)" for one in report.recent)
    return f"in the last {' and '.join(steps)}"


def _waiting_table(report: Report) -> Table:
    table = _table("node", "phase", "compute s", "wait s", "waiting", "others wait s", "paused", "messages", left=2)
    for node in dict.fromkeys(row.node for row in report.waiting):
        rows = [row for row in report.waiting if row.node == node]
        for i, row in enumerate(rows):
            share = "" if row.wait_share is None else f"{row.wait_share:.1%}"
            table.add_row(
                "" if i else node,
                row.phase,
                f"{row.compute_s:.3f}",
                f"{row.wait_s:.3f}",
                share,
                f"{row.waited_for_s:.3f}",
                f"{row.paused_s:.3f}",
                f"{row.messages_s:.3f}",
            )
    return table


def _slowest(report: Report) -> list[Text]:
    """The node that the others wait for, in each phase where one stands out."""
    return [
        Text(f"{one.phase}: the others wait mostly for {one.node}, {one.share:.0%} of all waiting", "yellow")
        for one in report.slowest
    ]


def _title(report: Report, phase: str) -> Text:
    n_tokens, n_steps = report.tokens[phase], report.steps[phase]
    return Text(f"{phase}, kB per token ({plural(n_tokens, 'token')} in {plural(n_steps, 'step')})", "bold")


def _verdict(report: Report) -> Text:
    if report.agrees:
        return Text(f"measured agrees with planned: payload to the byte, wire within {WIRE_TOLERANCE:.0%}", "green")
    reasons = []
    if report.unfinished_steps > 0:
        reasons.append(f"{plural(report.unfinished_steps, 'step')} that did not end")
    if report.sent_again > 0:
        reasons.append(f"{plural(report.sent_again, 'message')} sent again")
    why = f"; the plan does not count {' and '.join(reasons)}" if reasons else ""
    return Text(f"measured differs from planned{why}", "red")


def prediction_tables(prediction: Prediction) -> RenderableType:
    """The predicted traffic of a model."""
    parts: list[RenderableType] = [
        Text(
            f"{prediction.model}, {prediction.weight_type} weights, over {plural(prediction.nodes, 'node')}, "
            f"sync {prediction.sync}: the traffic of one generated token"
        )
    ]
    if prediction.one_worker is None or prediction.all_workers is None:
        parts.append(Text(_ALONE))
    else:
        parts += [Text(), _share_table(prediction.one_worker, prediction.all_workers)]
        curve = "with CURVE" if prediction.security == "curve" else "without CURVE (--security none)"
        parts.append(Text(f"Wire is {curve}. Ethernet and TCP/IP add 66 bytes to each packet of up to 1,448."))
        layers = prediction.all_workers.flows["layers"]
        parts.append(
            Text(
                f"Each node sends {prediction.greedy_k} candidate when greedy, {prediction.sampled_k} when sampling. "
                f"distributed-llama prints the layers as S {layers.sent_bytes // 1024:,} and "
                f"R {layers.received_bytes // 1024:,}: in kB of 1024 bytes."
            )
        )
    parts.append(Text("`dllama-zmq plan` says what each node must hold, and how fast it will be."))
    return Group(*parts)


def _share_table(one: Share, all_workers: Share) -> Table:
    table = _table("", "kB", "S", "R", "S wire", "R wire", "adds", left=2)
    shares = [("one", one)]
    if all_workers.n_workers > 1:
        shares.append((f"all {all_workers.n_workers}", all_workers))
    for title, share in shares:
        for kind, name in _FLOW_NAMES.items():
            flow: Flow = share.flows[kind]
            sent, received = _kb(flow.sent_bytes or None), _kb(flow.received_bytes or None)
            wire = [_kb(n_bytes or None) for n_bytes in (flow.sent_wire_bytes, flow.received_wire_bytes)]
            table.add_row(title, name, sent, received, *wire, f"{flow.overhead:.2%}")
            title = ""
    return table


def _table(*columns: str, left: int = 1) -> Table:
    """A table without lines. The first `left` columns are words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=i > 0, overflow="fold")
    return table


def _kb(n_bytes: int | None, n_tokens: int = 1) -> str:
    return "" if n_bytes is None else f"{n_bytes / 1000 / max(1, n_tokens):,.3f}"


def _cells(line: Line, n_tokens: int) -> tuple[str | Text, ...]:
    """Payload and wire, measured and planned, and the relative difference of the wire; ! if they do not agree."""
    difference = f"{line.wire_bytes / line.predicted_wire_bytes - 1:+.2%}" if line.predicted_wire_bytes else ""
    return (
        _kb(line.payload_bytes, n_tokens),
        _kb(line.predicted_payload_bytes, n_tokens),
        _kb(line.wire_bytes, n_tokens),
        _kb(line.predicted_wire_bytes, n_tokens),
        Text(f"{difference} !", "bold red") if line.agrees is False else Text(difference),
    )
