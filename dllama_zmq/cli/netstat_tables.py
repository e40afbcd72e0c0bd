"""The tables of netstat, for people: one picture of a running cluster, one of a prediction."""

from __future__ import annotations

from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dllama_zmq.cli.netstat_figures import BOTH, OTHER, WIRE_TOLERANCE, Flow, Line, Memory, Prediction, Report, Share
from dllama_zmq.telling import human_bytes

_NAMES = {"step": "step x", "sum": "sums", "partial": "partials", "candidates": "candidates", "more": "asked again"}
_FLOW_NAMES = {
    "layers": "layers",
    "step": "step x",
    "candidates_greedy": "candidates, greedy",
    "candidates_sampled": "candidates, sampled",
    "total_greedy": "total, greedy",
    "total_sampled": "total, sampled",
}


def report_tables(report: Report) -> RenderableType:
    """A running cluster's traffic and waiting."""
    parts: list[RenderableType] = [
        Text(f"{report.cluster}: {report.state}, {_count(report.nodes, 'node')}, sync {report.sync}, {report.model}"),
        Text("The root sends step x and sums; it receives partials and candidates."),
        Text("1 kB is 1024 bytes. Payload is arrays; wire is payload, headers and ZMTP framing."),
    ]
    if report.note:
        parts.append(Text(report.note))
    if len(report.workers) == 0:
        parts.append(Text("One node alone puts nothing on the bus."))
    for phase, lines in report.all_workers.items():
        parts += [Text(), _title(report, phase)]
        parts.append(_phase_table(report, phase, lines))
    if not any(report.tokens.values()):
        parts += [Text(), Text("no tokens yet: make some with `dllama-zmq generate`")]
    if report.workers:
        parts += [Text(), Text("set-up and idle, kB in all", "bold"), _setup_table(report)]
    if report.waiting:
        parts += [Text(), Text("time spent waiting for other nodes", "bold"), _waiting_table(report)]
    if report.agrees is not None:
        parts += [Text(), _verdict(report)]
    return Group(*parts)


def _phase_table(report: Report, phase: str, all_lines: list[Line]) -> Table:
    table = _table("worker", "message", "payload", "planned", "wire", "planned", "differs", "agrees", left=2)
    blocks = [(worker.worker, worker.phases[phase]) for worker in report.workers]
    blocks.append((f"all {len(blocks)}", all_lines))
    for name, lines in blocks:
        for i, line in enumerate(lines):
            n_tokens = report.tokens[phase]
            table.add_row(
                "" if i else name,
                _NAMES.get(line.kind, f"{line.kind} {line.direction}"),
                _kb(line.payload_bytes, n_tokens),
                _kb(line.predicted_payload_bytes, n_tokens),
                _kb(line.wire_bytes, n_tokens),
                _kb(line.predicted_wire_bytes, n_tokens),
                _difference(line),
                _agreement(line.agrees),
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


def _waiting_table(report: Report) -> Table:
    table = _table("node", "phase", "compute s", "wait s", "waiting", left=2)
    for node in dict.fromkeys(row.node for row in report.waiting):
        rows = [row for row in report.waiting if row.node == node]
        for i, row in enumerate(rows):
            share = "" if row.wait_share is None else f"{row.wait_share:.1%}"
            table.add_row("" if i else node, row.phase, f"{row.compute_s:.3f}", f"{row.wait_s:.3f}", share)
    return table


def _title(report: Report, phase: str) -> Text:
    n_tokens, n_steps = report.tokens[phase], report.steps[phase]
    return Text(f"{phase}, kB per token ({_count(n_tokens, 'token')} in {_count(n_steps, 'step')})", "bold")


def _verdict(report: Report) -> Text:
    if report.agrees:
        return Text(f"measured agrees with planned: payload to the byte, wire within {WIRE_TOLERANCE:.0%}", "green")
    reasons = []
    if report.unfinished_steps > 0:
        reasons.append(f"{_count(report.unfinished_steps, 'step')} that did not end")
    if report.sent_again > 0:
        reasons.append(f"{_count(report.sent_again, 'message')} sent again")
    why = f"; the plan does not count {' and '.join(reasons)}" if reasons else ""
    return Text(f"measured differs from planned{why}", "red")


def prediction_tables(prediction: Prediction) -> RenderableType:
    """What a model over a number of nodes will take."""
    parts: list[RenderableType] = [
        Text(
            f"{prediction.model}, {prediction.weight_type} weights, over {_count(prediction.nodes, 'node')}, "
            f"sync {prediction.sync}: the traffic of one generated token. 1 kB is 1024 bytes."
        )
    ]
    if prediction.one_worker is None or prediction.all_workers is None:
        parts.append(Text("One node alone puts nothing on the bus."))
    else:
        parts += [Text(), _share_table(prediction.one_worker, prediction.all_workers)]
        parts.append(
            Text(
                f"Each node sends {prediction.greedy_k} candidate when greedy, {prediction.sampled_k} when sampling; "
                "layers are whole kB, as distributed-llama prints them."
            )
        )
    parts += [Text(), Text(f"memory, with {prediction.seq_len:,} positions", "bold"), _memory_table(prediction.memory)]
    parts.append(
        Text(f"The root reads the embedding ({human_bytes(prediction.embedding_bytes)}) from the mapped file.")
    )
    parts.append(Text(f"This model can be split over {', '.join(map(str, prediction.possible_nodes))} nodes."))
    return Group(*parts)


def _share_table(one: Share, all_workers: Share) -> Table:
    table = _table("", "", "S kB", "R kB", "S wire kB", "R wire kB", "wire adds", left=2)
    shares = [("one worker", one)]
    if all_workers.n_workers > 1:
        shares.append((f"all {all_workers.n_workers}", all_workers))
    for title, share in shares:
        for kind, name in _FLOW_NAMES.items():
            flow: Flow = share.flows[kind]
            sent, received = _kb(flow.sent_bytes or None), _kb(flow.received_bytes or None)
            if kind == "layers":
                sent, received = f"{share.layers_sent_kb:,}    ", f"{share.layers_received_kb:,}    "
            wire = [_kb(n_bytes or None) for n_bytes in (flow.sent_wire_bytes, flow.received_wire_bytes)]
            table.add_row(title, name, sent, received, *wire, f"{flow.overhead:.2%}")
            title = ""
    return table


def _memory_table(memory: list[Memory]) -> Table:
    table = _table("", "weights", "KV cache", "together")
    for (weight_bytes, kv_bytes), group in groupby(memory, key=lambda row: (row.weight_bytes, row.kv_bytes)):
        names = [row.node for row in group]
        name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, each"
        table.add_row(name, *map(human_bytes, (weight_bytes, kv_bytes, weight_bytes + kv_bytes)))
    return table


def _table(*columns: str, left: int = 1) -> Table:
    """A table without lines whose first `left` columns are words and the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=True)
    return table


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _kb(n_bytes: int | None, n_tokens: int = 1) -> str:
    return "" if n_bytes is None else f"{n_bytes / 1024 / max(1, n_tokens):,.3f}"


def _difference(line: Line) -> str:
    if not line.predicted_wire_bytes:
        return ""
    return f"{line.wire_bytes / line.predicted_wire_bytes - 1:+.2%}"


def _agreement(agrees: bool | None) -> Text:
    if agrees is None:
        return Text()
    return Text("yes", "green") if agrees else Text("no", "bold red")
