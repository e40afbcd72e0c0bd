"""A living cluster, and bytes to send to its sockets: anything, near-messages and lengths beyond all bounds."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgpack
import zmq
from any_message import structs
from contexts import a_context
from hypothesis import settings
from hypothesis import strategies as st
from secured import Secured
from served import served
from surroundings import free_ports
from tiny import tiny_spec

from dllama_zmq import Client
from dllama_zmq.bus.client_messages import FROM_CLIENT, TO_CLIENT, Queued, TokenText
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.links import Endpoints
from dllama_zmq.bus.messages import PROTOCOL, TO_ROOT, TO_WORKER, Kinds
from dllama_zmq.bus.security import Peer
from dllama_zmq.errors import ProtocolError
from dllama_zmq.formats import ModelFile, read_tokenizer
from dllama_zmq.node_config import Limits
from dllama_zmq.root.root import Root, RootSettings
from dllama_zmq.spec import FloatType
from dllama_zmq.trust import Role

SPEC = tiny_spec(dim=128, hidden_dim=256, n_heads=8, weight_type=FloatType.Q40)
ANSWER_S = 20.0
ANSWER_MS = 20_000
LINKS = ("steps", "replies", "clients")
Context: TypeAlias = zmq.Context[zmq.Socket[bytes]]
Frames: TypeAlias = Sequence[bytes]

KINDS = sorted({*TO_WORKER, *TO_ROOT, *FROM_CLIENT, *TO_CLIENT})
ENDS = ("stop", "bye", "refuse", "welcome")  # they rightly end what their receiver does
VERSION = msgpack.packb(PROTOCOL)  # as every header has it, after the byte of the array
LENGTHS = [0, 1, 33, 128, 1 << 31, (1 << 62) + 1, (1 << 64) - 1]
numbers = st.integers(-2, 300) | st.sampled_from(LENGTHS) | st.floats() | st.booleans() | st.none()
heads = st.lists(
    st.tuples(st.sampled_from(["f32", "f16", "q80", "i32", "f64", "u8", "f8", ""]), numbers, numbers), max_size=5
)
fields = st.lists(
    numbers
    | st.text(max_size=9)
    | heads
    | st.lists(numbers, max_size=4)
    | st.dictionaries(st.text(max_size=5), numbers, max_size=3),
    max_size=9,
)
DEEP = b"\x91" * 990 + b"\x01"
HUGE_LENGTHS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\x93" + VERSION + b"\xa6beacon\xdb\xff\xff\xff\xff",
    DEEP,
    b"\x92" + DEEP + b"\xa4join",
    b"\x9a" + VERSION + b"\xa4plan\x81\xa1x" + DEEP + b"\x02\xa3f32\xa4auto\xa3f16\x01\x01\xcb" + bytes(8),
    bytes(2 << 20),
]


@st.composite
def headers(draw: st.DrawFn) -> bytes:
    """A header that has much of a message's form: any kind but those that rightly end something, any fields."""
    kind = draw(st.sampled_from([kind for kind in KINDS if kind not in ENDS]))
    protocol = draw(st.sampled_from([PROTOCOL] * 4 + [PROTOCOL - 1, PROTOCOL + 1, True]))
    return bytes(msgpack.packb([protocol, kind, *draw(fields)]))


@st.composite
def messages(draw: st.DrawFn, kinds: Kinds) -> list[bytes]:
    """A message with fields as agreed, now and then with a frame too many; of any kind but those that end something."""
    message = draw(structs(kinds[draw(st.sampled_from([kind for kind in kinds if kind not in ENDS]))]))
    arrays = [bytes(head.nbytes) for head in getattr(message, "arrays", [])]
    return [bytes(frame) for frame in encode(message, arrays)] + draw(st.sampled_from([[], [], [], [b"one too many"]]))


def understood(frames: Frames, kinds: Kinds) -> bool:
    try:
        decode(frames, kinds)
    except ProtocolError:
        return False
    return True


hostile = st.lists(st.binary(max_size=64) | headers() | st.sampled_from(HUGE_LENGTHS), min_size=1, max_size=4)
few = settings(max_examples=40, deadline=None)


@dataclass
class Living:
    """A cluster that serves clients over TCP, its addresses, and what it answers."""

    addresses: dict[str, str]
    answer: list[int]
    secured: Secured | None = None

    def answers_as_before(self) -> None:
        """A normal request gives the tokens that it gave at first."""
        assert tokens(self.addresses["clients"], self.client) == self.answer

    @property
    def client(self) -> Peer | None:
        """What a client must have."""
        return None if self.secured is None else self.secured.peer("laptop")

    def peer(self, link: str) -> Peer | None:
        """What must have who connects to that link: the keys of a worker, or a client's."""
        return self.client if self.secured is None or link == "clients" else self.secured.peer("worker1")


def tokens(address: str, security: Peer | None = None) -> list[int]:
    with Client(address, security) as client:
        answers = client.generate("once upon a time", max_tokens=8, ignore_eos=True)
        until = time.monotonic() + ANSWER_S
        found = []
        for answer in answers:
            assert time.monotonic() < until, f"no end of it; last {answer}"
            assert not isinstance(answer, Queued) or time.monotonic() < until
            found += [answer.token] if isinstance(answer, TokenText) else []
        return found


@contextlib.contextmanager
def living(
    model: ModelFile, worker: Callable[[Context, str], Callable[[], None]], secured: Secured | None = None
) -> Iterator[Living]:
    """A root with one worker, each in its thread, until the block ends. secured: the keys, where it has CURVE."""
    with a_context() as context:
        addresses = {link: f"tcp://127.0.0.1:{port}" for link, port in zip(LINKS, free_ports(3), strict=True)}
        settings = RootSettings(
            names=["worker1"], kernels="numpy", spin_s=0.0, limits=Limits(join_s=10, load_s=10, step_s=5)
        )
        of_workers, of_clients = (None if secured is None else secured.server(role) for role in Role)
        places = Endpoints([addresses["steps"]], [addresses["replies"]], security=of_workers)
        root = Root(context, model, settings, places)
        tokenizer = read_tokenizer(Path(model.path).with_suffix(".t"))
        node = threading.Thread(target=worker(context, addresses["replies"]), daemon=True)
        try:
            with served(context, root, tokenizer, addresses["clients"], security=of_clients):
                node.start()
                living = Living(addresses, [], secured)
                living.answer += tokens(addresses["clients"], living.client)
                yield living
        finally:
            root.close("the test is over")
            node.join(ANSWER_S)
    assert not node.is_alive()


def connected(context: Context, kind: int, address: str, security: Peer | None = None) -> zmq.Socket[bytes]:
    """A socket that has shaken hands, so that what it sends arrives."""
    connecting = context.socket(kind)
    if security is not None:
        security.apply(connecting)
    monitor = connecting.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
    connecting.set(zmq.LINGER, 1000)
    connecting.connect(address)
    assert monitor.poll(ANSWER_MS), f"no handshake with {address}"
    connecting.disable_monitor()
    monitor.close(linger=0)
    return connecting
