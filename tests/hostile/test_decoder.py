"""Random and altered frames through the decoder, as a flood brings them: each is a message as agreed, or refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

import msgpack
import pytest
from any_message import structs
from hypothesis import Phase, given, settings

from dllama_zmq.bus.client_messages import FROM_CLIENT, TO_CLIENT
from dllama_zmq.bus.codec import decode, encode
from dllama_zmq.bus.messages import PROTOCOL, TO_ROOT, TO_WORKER, Kinds
from dllama_zmq.errors import ProtocolError

DIRECTIONS = {"to_worker": TO_WORKER, "to_root": TO_ROOT, "from_client": FROM_CLIENT, "to_client": TO_CLIENT}
FEW, MANY = 20_000, 250_000  # of each of the four directions: many are one million in all
VERSION = msgpack.packb(PROTOCOL)
STRANGE = [
    b"\xc0", b"\xc1", b"\xc3", b"\x80", b"\x90", b"\xa0", b"\xff",
    b"\xc4\xff", b"\xc6\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xd4\x01\x00",
    b"\xca\x7f\xc0\x00\x00", b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00", b"\xcb\xff\xf8\x00\x00\x00\x00\x00\x00",
    b"\xcf" + b"\xff" * 8, b"\xd3\x80" + bytes(7), b"\xce\x80\x00\x00\x00", b"\xd9\xff", b"\xdb\xff\xff\xff\xff",
    b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\x91" * 2000, b"\xa2\xff\xfe",
]  # fmt: skip
"""Values of msgpack that are rare, too long for what follows, too deep, or none."""


@cache
def sound(direction: str) -> Sequence[Sequence[bytes]]:
    """Some messages of every kind of a direction, as frames."""
    kinds, found = DIRECTIONS[direction], []
    for kind in kinds.values():

        @settings(max_examples=20, phases=[Phase.generate])
        @given(message=structs(kind))
        def collect(message: object) -> None:
            arrays = [bytes(head.nbytes) for head in getattr(message, "arrays", [])]
            found.append([bytes(frame) for frame in encode(message, arrays)])  # type: ignore[arg-type]

        collect()
    return found


def altered(frames: Sequence[bytes], other: Sequence[bytes], draw: random.Random) -> list[bytes]:
    """These frames with something done to them that a stranger, a bug or another version may do."""
    change: Callable[[bytes, bytes, random.Random], bytes] = draw.choice(CHANGES)
    header = change(frames[0], other[0], draw)
    arrays = [draw.randbytes(len(frame)) for frame in frames[1:]]
    if draw.random() < 0.2:
        arrays.append(draw.randbytes(draw.choice([0, 1, 4, 100])))
    elif arrays and draw.random() < 0.2:
        arrays.pop(draw.randrange(len(arrays)))
    elif arrays and draw.random() < 0.2:
        arrays[-1] += b"longer"
    return [header, *arrays]


def nothing(header: bytes, other: bytes, draw: random.Random) -> bytes:
    return header


def random_bytes(header: bytes, other: bytes, draw: random.Random) -> bytes:
    return draw.randbytes(draw.randrange(100))


def random_fields(header: bytes, other: bytes, draw: random.Random) -> bytes:
    kind = header[1 + len(VERSION) :][: 1 + (header[1 + len(VERSION)] & 0x1F)]
    return bytes([0x90 | draw.randrange(16)]) + VERSION + kind + draw.randbytes(draw.randrange(40))


def flipped(header: bytes, other: bytes, draw: random.Random) -> bytes:
    data = bytearray(header)
    for _ in range(draw.choice([1, 1, 2, 8])):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def cut(header: bytes, other: bytes, draw: random.Random) -> bytes:
    return header[: draw.randrange(len(header))]


def with_something_strange(header: bytes, other: bytes, draw: random.Random) -> bytes:
    at, n_replaced = draw.randrange(1, len(header)), draw.choice([0, 0, 1, 1, 2, 9])
    return header[:at] + draw.choice(STRANGE) + header[at + n_replaced :]


def spliced(header: bytes, other: bytes, draw: random.Random) -> bytes:
    return header[: draw.randrange(len(header))] + other[draw.randrange(len(other)) :]


CHANGES = [nothing, random_bytes, random_fields, flipped, cut, with_something_strange, spliced]


def send_all(direction: str, n_messages: int) -> None:
    """Decode so many altered messages, of which some are as agreed all the same."""
    kinds, draw, n_understood = DIRECTIONS[direction], random.Random(direction), 0
    messages = sound(direction)
    for _ in range(n_messages):
        frames = altered(draw.choice(messages), draw.choice(messages), draw)
        try:
            n_understood += decodes(frames, kinds)
        except Exception as error:
            error.add_note(f"the frames are {frames!r}")
            raise
    assert n_messages / 20 < n_understood < n_messages / 2


def decodes(frames: Sequence[bytes], kinds: Kinds) -> bool:
    """Whether it is understood: as a message of that direction, which is said again in the same way."""
    refusal = ""
    try:
        message, arrays = decode(frames, kinds)
    except ProtocolError as error:
        refusal = str(error)
    assert len(refusal) < 1000
    if refusal:
        return False
    assert type(message) in kinds.values()
    assert arrays == list(frames[1:])
    assert [len(array) for array in arrays] == [head.nbytes for head in getattr(message, "arrays", [])]
    said = encode(message, arrays)
    again, _ = decode(said, kinds)
    assert encode(again, arrays) == said
    return True


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_altered_frames_are_a_message_as_agreed_or_refused(direction: str) -> None:
    send_all(direction, FEW)


@pytest.mark.release
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_million_altered_frames_are_messages_as_agreed_or_refused(direction: str) -> None:
    send_all(direction, MANY)
