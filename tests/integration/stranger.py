"""A worker written from bus/PROTOCOL.md alone, with pyzmq, msgpack and NumPy: nothing here imports the package.

Section numbers are the document's. Tests make bad workers of it by overriding `send_heard` and `send_part`. `RawRoot`
is the root's sockets with nothing behind them.
"""

from __future__ import annotations

import contextlib
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

_PAGE = Path(__file__).parents[2] / "dllama_zmq" / "bus" / "PROTOCOL.md"
PROTOCOL = int(re.findall(r"^Protocol \*\*(\d+)\*\*", _PAGE.read_text(), re.MULTILINE)[0])
BLOCK = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 34)}  # §6: values and bytes of a block, by weight_type
F32, F16, Q40, Q80 = range(4)


class Void(Exception):
    """The step will never end (§7); `message` is why."""


class Again(Exception):
    """Join again (§5)."""


class Exit(Exception):
    """The root said bye."""


class Stranger:
    """Run it in a thread; it ends at a bye with stay = false, at `stop()`, or with `self.refused` set."""

    def __init__(self, context: zmq.Context[Any], root: str, name: str = "") -> None:
        self.context, self.root, self.name = context, root, name
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
        socket = self.context.socket(kind)
        for option, value in {
            zmq.SNDHWM: 0, zmq.RCVHWM: 0, zmq.LINGER: 0, zmq.MAXMSGSIZE: 64 << 20, zmq.HEARTBEAT_IVL: 500,
            zmq.HEARTBEAT_TIMEOUT: 2000, zmq.HEARTBEAT_TTL: 2000, zmq.RECONNECT_IVL: 50, zmq.RECONNECT_IVL_MAX: 1000,
        }.items():  # fmt: skip
            socket.set(option, value)
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
                self.send_heard(fields[0])
            self.epoch = fields[0]
        elif kind == "ping":
            self._answer_ping(*fields)
        elif kind == "step" and fields[0] == self.epoch and fields[1] > self.step:
            try:
                self._step(fields, arrays[0])
            except Void as void:
                self._handle(*void.args)
            except (ValueError, IndexError, ArithmeticError) as error:
                self.send("fault", self.epoch, fields[1], str(error))
        elif kind == "more" and fields[:3] == [self.epoch, self.step, self.stage + 1]:
            self._answer_candidates(fields[3])

    def _answer_ping(self, epoch: int, step: int, stage: int) -> None:
        if epoch == self.epoch and (step, stage) > (self.step, self.stage):
            self.send("missed", epoch, step, stage)

    def send_heard(self, epoch: int) -> None:
        self.send("heard", epoch)

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
        seq_len: int,
        slots: int,
        step_s: float,
    ) -> None:
        self.spec, self.sync, self.step_s, self.nodes = spec, sync, step_s, nodes
        n_heads, head_dim, node = spec["n_heads"], spec["head_dim"], self.node
        group = n_heads // spec["n_kv_heads"]
        values, _ = BLOCK[spec["weight_type"]]
        heads = (n_heads * node // nodes, n_heads * (node + 1) // nodes)
        kv_heads = (heads[0] // group, -(-heads[1] // group))
        n_blocks = spec["hidden_dim"] // values
        self.first_id = spec["vocab_size"] * node // nodes
        width = {
            "one": 1,
            "embed": spec["dim"],
            "heads": (heads[1] - heads[0]) * head_dim,
            "kv_heads": (kv_heads[1] - kv_heads[0]) * head_dim,
            "ffn": (n_blocks * (node + 1) // nodes - n_blocks * node // nodes) * values,
            "vocab": spec["vocab_size"] * (node + 1) // nodes - self.first_id,
        }
        self.kv_of_head = [h // group - kv_heads[0] for h in range(*heads)]
        possible = [
            n for n in (1, 2, 4, 8, 16, 32, 64)
            if n_heads % n == 0 and n_heads * head_dim % (n * values) == 0 and spec["hidden_dim"] % (n * values) == 0
            and n <= spec["vocab_size"]
        ]  # fmt: skip
        self.segments = max(possible) // nodes
        layers = range(spec["n_layers"])
        self.kv_most = np.float32(65504 if kv == "f16" else np.inf)
        self.cache = np.zeros(
            (len(layers), slots, 2, kv_heads[1] - kv_heads[0], seq_len, head_dim),
            {"f16": np.float16, "f32": np.float32}[kv],
        )
        tensors = []
        for i in layers:
            tensors += [(f"layers.{i}.attention.{n}", "heads" if n == "q" else "kv_heads", "embed") for n in "qkv"]
            tensors += [(f"layers.{i}.attention.o", "embed", "heads"), (f"layers.{i}.ffn.gate", "ffn", "embed")]
            tensors += [(f"layers.{i}.ffn.down", "embed", "ffn"), (f"layers.{i}.ffn.up", "ffn", "embed")]
            tensors += [(f"layers.{i}.attention_norm", "one", "embed"), (f"layers.{i}.ffn_norm", "one", "embed")]
        tensors += [("final_norm", "one", "embed"), ("head", "vocab", "embed")]
        self.send("credit", 4)
        self.weights: dict[str, tuple[int, Any]] = {}
        total = 0
        for name, rows, columns in tensors:
            weight_type = F32 if rows == "one" else spec["weight_type"]
            block_values, block_bytes = BLOCK[weight_type]
            row_bytes = width[columns] // block_values * block_bytes
            data = self._region(name, width[rows] * row_bytes)
            total += len(data)
            self.weights[name] = (weight_type, np.frombuffer(bytes(data), np.uint8).reshape(width[rows], row_bytes))
        self.send("loaded", total)

    def _region(self, tensor: str, size: int) -> bytearray:
        data = bytearray()
        while len(data) < size:
            kind, fields, arrays = self._next()
            if kind == "weights":
                if fields[:2] != [tensor, len(data)] or fields[2] != [["u8", 1, len(arrays[0])]]:
                    raise Again
                data += arrays[0]
                self.send("credit", 1)
        return data

    # --- §1, §7: a step ---------------------------------------------------------------------------------------------

    def _step(self, fields: list[Any], frame: bytes) -> None:
        _, self.step, runs, wanted, k, [[_, n_rows, _]] = fields
        self.stage, self.wait_s, self.begun = 0, 0.0, time.monotonic()
        x = self._decode(frame, n_rows)
        positions = np.concatenate([np.arange(start, start + count) for _, start, count in runs])
        cos, sin = self._angles(positions)
        middle = n_rows // 16 * 8 if n_rows >= 64 else n_rows
        batches = [
            (x[rows], self._runs_in(runs, rows), cos[rows], sin[rows])
            for rows in (slice(0, middle), slice(middle, n_rows))
            if rows.start < rows.stop
        ]
        parts: list[Any] = [None] * len(batches)
        for i in range(2 * self.spec["n_layers"]):
            for j, (rows, *of_rows) in enumerate(batches):
                if i > 0:  # a stage behind, or two with two micro-batches
                    rows = rows + self._sum(self.stage + 1 - len(batches), parts[j])
                    batches[j] = (rows, *of_rows)
                name = f"layers.{i // 2}.{'ffn' if i % 2 else 'attention'}_norm"
                normed = self._norm(rows, name)
                partial = self._feed_forward(i // 2, normed) if i % 2 else self._attention(i // 2, normed, *of_rows)
                parts[j] = self._send_partial(partial)
        last = self.stage + 1 - len(batches)
        x = np.concatenate([rows + self._sum(last + j, parts[j]) for j, (rows, *_) in enumerate(batches)])
        rows = x[[row for row, _ in wanted]]
        self.temperatures = [temperature for _, temperature in wanted]
        self.logits = self._product("head", self._norm(rows, "final_norm")) if wanted else None
        self._answer_candidates(k)

    def _runs_in(self, runs: list[list[int]], rows: slice) -> list[list[int]]:
        """The runs of a micro-batch."""
        cut, end = [], 0
        for slot, start, count in runs:
            begin, end = end, end + count
            first, stop = max(begin, rows.start), min(end, rows.stop)
            if first < stop:
                cut.append([slot, start + first - begin, stop - first])
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

    def _answer_candidates(self, k: int) -> None:
        self.stage += 1
        heads: list[list[Any]] = []
        frames: list[bytes] = []
        if self.logits is not None:
            arrays = [("f32", self.logits)]
            if k:
                order = np.argsort(-self.logits, axis=1, kind="stable")[:, :k]  # stable: of equals the lower id
                best = np.take_along_axis(self.logits, order, axis=1)
                sums = [self._log_sum_exp(*row) for row in zip(self.logits, self.temperatures, strict=True)]
                arrays = [("i32", (order + self.first_id).astype("<i4")), ("f32", best)]
                arrays += [("f64", np.array(sums, "<f8")[:, None])]
            heads = [[kind, *array.shape] for kind, array in arrays]
            frames = [array.tobytes() for _, array in arrays]
        compute_s = max(0.0, time.monotonic() - self.begun - self.wait_s)
        fields = (self.epoch, self.step, self.stage, compute_s, self.wait_s, heads)
        self.send_part("candidates", *fields, arrays=tuple(frames))

    def _log_sum_exp(self, row: Any, temperature: float) -> float:
        if temperature == 0:
            return 0.0
        scaled = row.astype(np.float64) / temperature
        return float(scaled.max() + np.log(np.exp(scaled - scaled.max()).sum()))

    # --- §8: arithmetic ---------------------------------------------------------------------------------------------

    def _encode(self, x: Any) -> tuple[list[Any], bytes]:
        head = [self.sync, *x.shape]
        if self.sync == "q80":
            q, d = self._to_q80(x)
            blocks = np.concatenate([d.astype("<f2")[..., None].view(np.uint8), q.view(np.uint8)], axis=2)
            return head, blocks.tobytes()
        return head, x.astype({"f32": "<f4", "f16": "<f2"}[self.sync]).tobytes()

    def _decode(self, frame: bytes, n_rows: int) -> Any:
        code = {"f32": F32, "f16": F16, "q80": Q80}[self.sync]
        if n_rows < 1:
            raise ValueError("no rows")
        return self._values(code, np.frombuffer(frame, np.uint8).reshape(n_rows, -1))

    def _to_q80(self, x: Any) -> tuple[Any, Any]:
        """Signed bytes (T, b, 32) and scales (T, b), before these are stored as f16."""
        blocks = x.reshape(len(x), -1, 32)
        d = np.abs(blocks).max(-1) / np.float32(127)
        inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > np.float32(1e-37))
        q = np.clip(np.rint(blocks * inverse[..., None]), -127, 127).astype(np.int8)
        return q, np.minimum(d, np.float32(65504))

    def _blocks(self, code: int, data: Any) -> tuple[Any, Any]:
        """Whole numbers (rows, b, 32) and scales (rows, b) of Q40 or Q80 rows."""
        blocks = data.reshape(len(data), -1, BLOCK[code][1])
        d = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
        if code == Q80:
            return blocks[..., 2:].view(np.int8), d
        nibbles = blocks[..., 2:]
        return np.concatenate([nibbles & 15, nibbles >> 4], axis=2).astype(np.int8) - np.int8(8), d

    def _values(self, code: int, data: Any) -> Any:
        if code in (F32, F16):
            return np.ascontiguousarray(data).view("<f4" if code == F32 else "<f2").astype(np.float32)
        q, d = self._blocks(code, data)
        return (q.astype(np.float32) * d[..., None]).reshape(len(data), -1)

    def _tree(self, parts: list[Any]) -> Any:
        while len(parts) > 1:
            parts = [parts[i] + parts[i + 1] if i + 1 < len(parts) else parts[i] for i in range(0, len(parts), 2)]
        return parts[0]

    def _product(self, name: str, x: Any, segments: int = 1) -> Any:
        code, data = self.weights[name]
        if code in (F32, F16):
            weights = self._values(code, data)
            cut = weights.shape[1] // segments
            return self._tree([x[:, i * cut :][:, :cut] @ weights[:, i * cut :][:, :cut].T for i in range(segments)])
        q, d = self._blocks(code, data)
        xq, xd = self._to_q80(x)
        xd = xd.astype("<f2").astype(np.float32)
        dots = np.einsum("tbj,rbj->btr", xq.astype(np.int32), q.astype(np.int32)).astype(np.float32)
        terms = dots * (xd.T[:, :, None] * d.T[:, None, :])
        parts = []
        for segment in terms.reshape(segments, -1, *terms.shape[1:]):
            total = segment[0]
            for term in segment[1:]:
                total = total + term
            parts.append(total)
        return self._tree(parts)

    def _norm(self, x: Any, name: str) -> Any:
        gain = self._values(*self.weights[name])[0]
        mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        return x / np.sqrt(mean + np.float32(self.spec["norm_eps"])) * gain

    def _angles(self, positions: Any) -> tuple[Any, Any]:
        rope, head_dim = self.spec["rope"], self.spec["head_dim"]
        f = rope["theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
        if (scaling := rope["scaling"]) is not None:
            low, high, length = (scaling[k] for k in ("low_freq_factor", "high_freq_factor", "original_seq_len"))
            w = 2 * math.pi / f
            s = (length / w - low) / (high - low)
            between = (1 - s) * f / scaling["factor"] + s * f
            f = np.where(w > length / low, f / scaling["factor"], np.where(w < length / high, f, between))
        angles = positions[:, None] * f
        return np.cos(angles).astype(np.float32)[:, None], np.sin(angles).astype(np.float32)[:, None]

    def _rotate(self, x: Any, cos: Any, sin: Any) -> Any:
        half = x.shape[-1] // 2
        interleaved = self.spec["rope"]["layout"] == "interleaved"
        first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(half), slice(half, None))
        a, b = x[..., first], x[..., second]
        turned = np.empty_like(x)
        turned[..., first], turned[..., second] = a * cos - b * sin, a * sin + b * cos
        return turned

    def _attention(self, i: int, x: Any, runs: list[list[int]], cos: Any, sin: Any) -> Any:
        shape = (len(x), -1, self.spec["head_dim"])
        q, k, v = (self._product(f"layers.{i}.attention.{n}", x).reshape(shape) for n in "qkv")
        q, k = self._rotate(q, cos, sin), self._rotate(k, cos, sin)
        out = np.empty_like(q)
        row = 0
        for slot, start, count in runs:
            rows, end = slice(row, row + count), start + count
            store = self.cache[i, slot]
            if end > store.shape[2]:
                raise ValueError(f"positions to {end}; room for {store.shape[2]}")
            for both, new in zip(store, (k, v), strict=True):
                both[:, start:end] = np.clip(new[rows].swapaxes(0, 1), -self.kv_most, self.kv_most)
            later = np.arange(end) > np.arange(start, end)[:, None]
            for head, kv in enumerate(self.kv_of_head):
                scores = (q[rows, head] * np.float32(1 / shape[2] ** 0.5)) @ store[0, kv, :end].T.astype(np.float32)
                scores[later] = -np.inf
                weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
                weights /= weights.sum(axis=-1, keepdims=True, dtype=np.float32)
                out[rows, head] = weights @ store[1, kv, :end].astype(np.float32)
            row += count
        return self._product(f"layers.{i}.attention.o", out.reshape(len(x), -1), self.segments)

    def _feed_forward(self, i: int, x: Any) -> Any:
        gate, up = self._product(f"layers.{i}.ffn.gate", x), self._product(f"layers.{i}.ffn.up", x)
        with np.errstate(over="ignore"):
            return self._product(f"layers.{i}.ffn.down", gate / (1 + np.exp(-gate)) * up, self.segments)


class RawRoot:
    """The root's two sockets; a test says what they say. Close it, or use it in a `with` block."""

    def __init__(self, context: zmq.Context[Any], replies: str, steps: str) -> None:
        self.addresses = replies, steps
        self.stays = False
        self._heard: set[bytes] = set()
        self.router, self.pub = context.socket(zmq.ROUTER), context.socket(zmq.PUB)
        self.router.set(zmq.ROUTER_HANDOVER, 1)  # or one that joins again while its old connection lives is not heard
        for socket, address in zip((self.router, self.pub), self.addresses, strict=True):
            socket.set(zmq.LINGER, 0)
            socket.bind(address)

    def say(self, identity: bytes, kind: str, *fields: Any, arrays: tuple[bytes, ...] = ()) -> None:
        self.router.send_multipart([identity, msgpack.packb([PROTOCOL, kind, *fields]), *arrays])

    def publish(self, kind: str, *fields: Any, arrays: tuple[bytes, ...] = ()) -> None:
        self.pub.send_multipart([msgpack.packb([PROTOCOL, kind, *fields]), *arrays])

    def hear(self, kind: str, wait_s: float = 20.0, of: bytes | None = None) -> tuple[bytes, list[Any], list[bytes]]:
        """The next message of this kind (of this identity): who sent it, its fields, its arrays."""
        until = time.monotonic() + wait_s
        while self.router.poll(max(0, math.ceil((until - time.monotonic()) * 1000))):
            identity, header, *arrays = self.router.recv_multipart()
            self._heard.add(identity)
            fields = msgpack.unpackb(header)
            if fields[1] == kind and of in (None, identity):
                return identity, fields[2:], arrays
        raise AssertionError(f"no {kind} within {wait_s} s")

    def hear_last(self, kind: str, fields: list[Any]) -> None:
        """The message of this kind with these fields; whatever comes before it is dropped."""
        while self.hear(kind)[1] != fields:
            pass

    def take_in(self, plan: list[Any], pieces: list[tuple[list[Any], bytes]], node: int = 1) -> bytes:
        """Bring one worker to having heard a beacon of epoch 1; returns its identity."""
        identity, _, _ = self.hear("join")
        self.say(identity, "welcome", node, f"worker{node}", self.addresses[1], self.addresses[0])
        self.say(identity, "plan", *plan)
        self.hear("credit")
        for fields, data in pieces:
            self.say(identity, "weights", *fields, arrays=(data,))
        self.hear("loaded", wait_s=120.0)  # its kernels may have to be compiled
        for _ in range(100):
            self.publish("beacon", 1)
            with contextlib.suppress(AssertionError):
                self.hear("heard", 0.05)
                return identity
        raise AssertionError("no beacon was heard")

    def __enter__(self) -> RawRoot:
        return self

    def __exit__(self, *_: object) -> None:
        for identity in self._heard:
            self.say(identity, "bye", self.stays, "the test is over")
        self.router.close(linger=200)
        self.pub.close()
