"""A worker written from bus/PROTOCOL.md alone, with pyzmq, msgpack and NumPy: nothing here imports the package.

Section numbers are the document's. Tests make bad workers of it by overriding `send_beacon_ack` and `send_part`.
`RawRoot` is the root's sockets with nothing behind them.
"""

from __future__ import annotations

import hashlib
import math
import re
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq
from integration.stranger_blocks import F16, F32, Q80, row_bytes, to_q80, values_of
from integration.stranger_shard import PAGE, Shard

_PAGE = Path(__file__).parents[2] / "dllama_zmq" / "bus" / "PROTOCOL.md"
PROTOCOL = int(re.findall(r"^Protocol \*\*(\d+)\*\*", _PAGE.read_text(), re.MULTILINE)[0])


class Void(Exception):
    """The step will never end (§7); `message` is why."""


class Again(Exception):
    """Join again (§5)."""


class Exit(Exception):
    """The root said bye."""


class Stranger:
    """Run it in a thread; it ends at a bye with stay = false, at `stop()`, or with `self.refused` set."""

    def __init__(
        self, context: zmq.Context[Any], root: str, name: str = "", keys: tuple[str, str, str] | None = None
    ) -> None:
        """keys: its public key, its secret key and the root's public key, where the root has CURVE (§2.1)."""
        self.context, self.root, self.name, self.keys = context, root, name, keys
        self.identity = f"stranger-{secrets.token_hex(6)}".encode()
        self.refused = ""
        self.n_joins = 0
        self._stopped = threading.Event()

    def stop(self) -> None:
        self._stopped.set()

    def run(self) -> None:
        address = self.root
        while not self._stopped.is_set():
            self.dealer, self.sub = self._socket(zmq.DEALER), self._socket(zmq.SUB)
            self.identity = f"stranger-{secrets.token_hex(6)}".encode()
            self.dealer.set(zmq.IDENTITY, self.identity)
            self.dealer.set(zmq.IMMEDIATE, 1)
            self.sub.set(zmq.SUBSCRIBE, b"")
            try:
                self.dealer.connect(address)
                address = self._serve_root(address)
            except Again:
                address = self.root
            except Exit:
                return
            finally:
                self.dealer.close(linger=200)
                self.sub.close()

    # --- §2, §3: sockets and messages -------------------------------------------------------------------------------

    def _socket(self, kind: int) -> zmq.Socket[Any]:
        socket: zmq.Socket[Any] = self.context.socket(kind)
        for option, value in {
            zmq.SNDHWM: 0,
            zmq.RCVHWM: 0,
            zmq.LINGER: 0,
            zmq.MAXMSGSIZE: 64 << 20,
            zmq.HEARTBEAT_IVL: 250,
            zmq.HEARTBEAT_TIMEOUT: 1500,
            zmq.HEARTBEAT_TTL: 2000,
            zmq.RECONNECT_IVL: 50,
            zmq.RECONNECT_IVL_MAX: 1000,
        }.items():
            socket.set(option, value)
        if self.keys is not None:
            options = (zmq.CURVE_PUBLICKEY, zmq.CURVE_SECRETKEY, zmq.CURVE_SERVERKEY)
            for option, key in zip(options, self.keys, strict=True):
                socket.set(option, key.encode())
        return socket

    def send(self, kind: str, *fields: Any, arrays: tuple[bytes, ...] = ()) -> None:
        try:
            self.dealer.send_multipart([msgpack.packb([PROTOCOL, kind, *fields]), *arrays], zmq.NOBLOCK)
        except zmq.Again:
            raise Again from None

    def receive(self, wait_s: float) -> tuple[str, list[Any], list[bytes]] | None:
        """The next message of either socket: kind, fields, array frames. What is not as agreed is dropped."""
        until = time.monotonic() + wait_s
        poller = zmq.Poller()
        poller.register(self.dealer, zmq.POLLIN)
        poller.register(self.sub, zmq.POLLIN)
        while (left_s := until - time.monotonic()) > 0 and not self._stopped.is_set():
            for socket, _ in poller.poll(min(100, math.ceil(left_s * 1000))):
                header, *arrays = socket.recv_multipart()
                fields = msgpack.unpackb(header)
                if fields[0] == PROTOCOL:
                    return fields[1], fields[2:], arrays
        if self._stopped.is_set():
            raise Exit
        return None

    # --- §5: the life of a worker -----------------------------------------------------------------------------------

    def _serve_root(self, address: str) -> str:
        welcome = self._join()
        self.node, self.my_name, steps, replies = welcome
        replies, steps = self._resolved(replies, address), self._resolved(steps, address)
        if replies != address:
            return replies
        self.sub.connect(steps)
        while True:
            kind, fields, _ = self._next()
            if kind == "plan":
                break
        self._load(*fields)
        self.epoch = self.step = self.stage = 0
        while True:
            self._handle(*self._next())

    def _join(self) -> list[Any]:
        self.n_joins += 1
        while True:
            try:
                self.send("join", self.name, f"host of {self.identity.decode()}", 1, "stranger", "elsewhere", 1, None)
                arrived = self.receive(1.0)
            except Again:  # not connected yet
                arrived = self.receive(0.02)
            if arrived is not None and arrived[0] == "welcome":
                return arrived[1]
            if arrived is not None and arrived[0] == "refuse":
                self.refused, again = arrived[1]
                if not again:
                    raise Exit
                self._stopped.wait(1.0)

    def _resolved(self, endpoint: str, address: str) -> str:
        return endpoint.replace("tcp://*", address.rpartition(":")[0]) if endpoint.startswith("tcp://*") else endpoint

    def _next(self) -> tuple[str, list[Any], list[bytes]]:
        while (arrived := self.receive(1.0)) is None:
            pass
        if arrived[0] == "bye":
            raise Again if arrived[1][0] else Exit
        return arrived

    def _handle(self, kind: str, fields: list[Any], arrays: list[bytes]) -> None:
        """§7: one message between steps."""
        if kind == "welcome":
            raise Again
        if kind == "beacon":
            if fields[0] != self.epoch:
                self.send_beacon_ack(fields[0])
            self.epoch = fields[0]
        elif kind == "ping":
            self._answer_ping(*fields)
        elif kind == "probe":
            self._answer_probe(*fields)
        elif kind == "step" and fields[0] == self.epoch and fields[1] > self.step:
            try:
                self._step(fields, arrays)
            except Void as void:
                self._handle(*void.args)
            except (ValueError, IndexError, ArithmeticError) as error:
                self.send("fault", self.epoch, fields[1], str(error))
        elif kind == "more_candidates" and fields[:3] == [self.epoch, self.step, self.stage + 1]:
            self._answer_candidates([[row, k, *self.asks[row][2:]] for row, k in fields[3]])

    def _answer_ping(self, epoch: int, step: int, stage: int) -> None:
        if epoch == self.epoch and (step, stage) > (self.step, self.stage):
            self.send("resend", epoch, step, stage)

    def _answer_probe(self, number: int, answer_bytes: int, heads: list[Any]) -> None:
        heads = [["u8", 1, answer_bytes]] if answer_bytes else []
        self.send("probed", number, time.time_ns() // 1000, heads, arrays=(bytes(answer_bytes),) * len(heads))

    def send_beacon_ack(self, epoch: int) -> None:
        self.send("beacon_ack", epoch)

    def send_part(self, kind: str, *fields: Any, arrays: tuple[bytes, ...]) -> None:
        """A `partial` or `candidates`; fields begin with epoch, step, stage."""
        self.send(kind, *fields, arrays=arrays)

    # --- §6: what a node holds --------------------------------------------------------------------------------------

    def _load(
        self,
        spec: dict[str, Any],
        nodes: int,
        sync: str,
        kernels: str,
        kv: str,
        pages: int,
        step_s: float,
    ) -> None:
        self.sync, self.step_s, self.nodes = sync, step_s, nodes
        self.shard = Shard(spec, self.node, nodes, {"f16": np.float16, "f32": np.float32}[kv], pages)
        self.send("credit", 4)
        self.hashes: dict[str, str] = {}
        total = 0
        for name, n_rows, columns, weight_type in self.shard.table:
            data = self._region(name, n_rows * row_bytes(weight_type, columns))
            total += len(data)
            region = np.frombuffer(bytes(data), np.uint8).reshape(n_rows, -1)
            self.shard.weights[name] = (weight_type, region, columns)
        self.send("loaded", total)

    def _region(self, tensor: str, size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            kind, fields, arrays = self._next()
            if kind == "offer":
                self.hashes |= dict(fields[0])
                self.send("need", [[name, 0] for name, _ in fields[0]])
            if kind == "weights":
                if fields[:2] != [tensor, len(data)] or fields[2] != [["u8", 1, len(arrays[0])]]:
                    raise Again
                data += arrays[0]
                self.send("credit", 1)
        if hashlib.sha256(data).hexdigest() != self.hashes[tensor]:
            self.send("fault", 0, 0, f"{tensor} has another SHA-256 than was offered")
            raise Again
        return data

    # --- §1, §7: a step ---------------------------------------------------------------------------------------------

    def _step(self, fields: list[Any], frames: list[bytes]) -> None:
        _, self.step, bounds, asks, [[_, n_rows, _], *_] = fields
        self.stage, self.wait_s, self.begun, self.begun_on_core = 0, 0.0, time.monotonic(), time.thread_time()
        shard = self.shard
        x = shard.embedded(self._decode(frames[0], n_rows))
        spans = self._spans(bounds, np.frombuffer(frames[1], "<i4"))
        positions = np.concatenate([np.arange(start, start + count) for start, count in bounds])
        n_experts, n_active = shard.spec["n_experts"] or 1, shard.spec["n_active_experts"] or 1
        middle = n_rows // 16 * 8 if n_rows * n_active >= 64 * n_experts else n_rows
        batches = [
            (x[rows], self._spans_in(spans, rows), positions[rows])
            for rows in (slice(0, middle), slice(middle, n_rows))
            if rows.start < rows.stop
        ]
        parts: list[Any] = [None] * len(batches)
        for i in range(2 * shard.spec["n_layers"]):
            for j, (rows, of_rows, at) in enumerate(batches):
                if i > 0:  # a stage behind, or two with two micro-batches
                    rows = rows + shard.finished(i - 1, self._sum(self.stage + 1 - len(batches), parts[j]))
                    batches[j] = (rows, of_rows, at)
                partial = shard.feed_forward(i // 2, rows) if i % 2 else shard.attention(i // 2, rows, of_rows, at)
                parts[j] = self._send_partial(partial)
        last = self.stage + 1 - len(batches)
        ends = [
            rows + shard.finished(2 * shard.spec["n_layers"] - 1, self._sum(last + j, parts[j]))
            for j, (rows, *_) in enumerate(batches)
        ]
        rows = [ask[0] for ask in asks]
        self.asks = {ask[0]: ask for ask in asks}
        self.logits = dict(zip(rows, shard.logits(np.concatenate(ends)[rows]), strict=True)) if rows else {}
        self._keep_ids(asks, frames[2:])
        self._answer_candidates(asks)

    def _keep_ids(self, asks: list[list[Any]], frames: list[bytes]) -> None:
        """Of each row, which of this node's ids are listed, and which may be candidates."""
        n_listed, vocab_bytes = sum(ask[4] for ask in asks), (self.shard.spec["vocab_size"] + 7) // 8
        listed = np.frombuffer(frames[0], "<i4") if n_listed else np.zeros(0, "<i4")
        masks = np.frombuffer(frames[-1] if any(ask[5] for ask in asks) else b"", np.uint8).reshape(-1, vocab_bytes)
        self.listed, self.may_be, at, n_masks = {}, {}, 0, 0
        for row, _, _, _, n_of_row, is_masked in asks:
            first, n = self.shard.first_id, len(self.logits[row])
            of_row = listed[at : at + n_of_row] - first
            self.listed[row] = of_row[(of_row >= 0) & (of_row < n)]
            at += n_of_row
            may_be = np.ones(n, bool)
            if is_masked:
                may_be = np.array([masks[n_masks][i // 8] >> i % 8 & 1 for i in range(first, first + n)], bool)
                n_masks += 1
            may_be[self.listed[row]] = False
            self.may_be[row] = may_be

    def _spans(self, bounds: list[list[int]], ids: Any) -> list[tuple[int, int, Any]]:
        """Each span with its pages."""
        spans, used = [], 0
        for start, count in bounds:
            n_pages = -(-(start + count) // PAGE)
            spans.append((start, count, ids[used : used + n_pages]))
            used += n_pages
        return spans

    def _spans_in(self, spans: list[tuple[int, int, Any]], rows: slice) -> list[tuple[int, int, Any]]:
        """The spans of a micro-batch."""
        cut, end = [], 0
        for start, count, pages in spans:
            begin, end = end, end + count
            first, stop = max(begin, rows.start), min(end, rows.stop)
            if first < stop:
                cut.append((start + first - begin, stop - first, pages))
        return cut

    def _send_partial(self, partial: Any) -> tuple[int, bytes]:
        self.stage += 1
        head, frame = self._encode(partial)
        self.send_part("partial", self.epoch, self.step, self.stage, [head], arrays=(frame,))
        return len(partial), frame

    def _sum(self, stage: int, part: tuple[int, bytes]) -> Any:
        n_rows, frame = part
        start = heard = time.monotonic()
        while True:
            arrived = self.receive(heard + self.step_s - time.monotonic())
            if arrived is None:
                raise Again
            heard = time.monotonic()
            kind, fields, arrays = arrived
            if kind == "sum" and fields[:3] == [self.epoch, self.step, stage]:
                self.wait_s += heard - start
                total = self._decode(arrays[0], n_rows)
                return total + self._decode(frame, n_rows) if self.nodes == 2 else total
            if kind == "bye":
                raise Again if fields[0] else Exit
            if kind == "welcome" or (kind == "beacon" and fields[0] != self.epoch):
                raise Void(kind, fields, arrays)
            if kind == "ping":
                self._answer_ping(*fields)

    def _answer_candidates(self, asks: list[list[Any]]) -> None:
        self.stage += 1
        ids, logits, sums = [], [], []
        for row, k, temperature, logprobs, *_ in asks:
            values, left = self.logits[row], np.flatnonzero(self.may_be[row])
            if k == 0:
                logits.append(values)
                sums.append([0.0, 0.0])
                continue
            best = left[np.argsort(-values[left], kind="stable")[:k]]  # stable: of equals the lower id
            ids.append(best + self.shard.first_id)
            logits += [values[best], values[self.listed[row]]]
            of_all = self._log_sum_exp(values, 1.0) if logprobs else 0.0
            sums.append([self._log_sum_exp(values[left], temperature) if temperature else 0.0, of_all])
        heads: list[list[Any]] = []
        frames: list[bytes] = []
        if asks:
            all_ids = np.concatenate([np.zeros(0), *ids]).astype("<i4")[None]
            arrays = [("i32", all_ids), ("f32", np.concatenate(logits)[None]), ("f64", np.array(sums, "<f8"))]
            heads = [[kind, *array.shape] for kind, array in arrays]
            frames = [array.tobytes() for _, array in arrays]
        compute_s = max(0.0, time.monotonic() - self.begun - self.wait_s)
        paused_s = max(0.0, compute_s - (time.thread_time() - self.begun_on_core))
        fields = (self.epoch, self.step, self.stage, compute_s, paused_s, self.wait_s, heads)
        self.send_part("candidates", *fields, arrays=tuple(frames))

    def _log_sum_exp(self, values: Any, temperature: float) -> float:
        if not len(values):
            return -math.inf
        scaled = values.astype(np.float64) / temperature
        return float(scaled.max() + np.log(np.exp(scaled - scaled.max()).sum()))

    def _encode(self, x: Any) -> tuple[list[Any], bytes]:
        head = [self.sync, *x.shape]
        if self.sync == "q80":
            q, d = to_q80(x)
            blocks = np.concatenate([d.astype("<f2")[..., None].view(np.uint8), q.view(np.uint8)], axis=2)
            return head, blocks.tobytes()
        return head, x.astype({"f32": "<f4", "f16": "<f2"}[self.sync]).tobytes()

    def _decode(self, frame: bytes, n_rows: int) -> Any:
        code = {"f32": F32, "f16": F16, "q80": Q80}[self.sync]
        if n_rows < 1:
            raise ValueError("no rows")
        return values_of(code, np.frombuffer(frame, np.uint8).reshape(n_rows, -1))
