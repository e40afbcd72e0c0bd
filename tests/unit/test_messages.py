"""What is on the wire: every message there and back, golden bytes, and whatever else may come."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from any_message import structs
from hypothesis import given, settings
from hypothesis import strategies as st

from dllama_zmq.bus import messages
from dllama_zmq.bus.arrays import decode_array, encode_floats, encode_plain, stage_header
from dllama_zmq.bus.client_messages import FROM_CLIENT, TO_CLIENT, Generate
from dllama_zmq.bus.codec import MAX_HEADER_BYTES, decode, encode
from dllama_zmq.bus.messages import (
    PROTOCOL,
    TO_ROOT,
    TO_WORKER,
    ArrayHead,
    Beacon,
    Kinds,
    Message,
    Partial,
    RowAsk,
    Step,
    Sum,
)
from dllama_zmq.errors import ProtocolError
from dllama_zmq.sampling import Sampling

DIRECTIONS = {"to_worker": TO_WORKER, "to_root": TO_ROOT, "from_client": FROM_CLIENT, "to_client": TO_CLIENT}
ALL_KINDS = [(kinds, kind) for kinds in DIRECTIONS.values() for kind in kinds]
VERSION = msgpack.packb(PROTOCOL)  # as every header has it, after the byte of the array
in_any_direction = pytest.mark.parametrize("allowed", DIRECTIONS.values(), ids=DIRECTIONS)

# --- every message, there and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("allowed", "kind"), ALL_KINDS, ids=[kind for _, kind in ALL_KINDS])
@settings(max_examples=20)
@given(data=st.data())
def test_every_message_comes_back_as_it_was(allowed: Kinds, kind: str, data: st.DataObject) -> None:
    message = data.draw(structs(allowed[kind]))
    arrays = [bytes(head.nbytes) for head in getattr(message, "arrays", [])]
    back, frames = decode([bytes(frame) for frame in encode(message, arrays)], allowed)
    assert back == message
    assert frames == arrays


@pytest.mark.parametrize(
    ("message", "header"),
    [
        (Beacon(epoch=1760936591360), b"\x93" + VERSION + b"\xa6beacon\xcf\x00\x00\x01\x9a\x00\x00\x00\x00"),
        (
            Step(
                7,
                300,
                [(5, 2)],
                [RowAsk(1, 64, 0.5, True, 3, False)],
                [ArrayHead("f32", 2, 64), ArrayHead("i32", 1, 1)],
            ),
            b"\x97"
            + VERSION
            + b"\xa4step\x07\xcd\x01\x2c\x91\x92\x05\x02\x91\x96\x01\x40\xcb\x3f\xe0\x00\x00\x00\x00\x00\x00\xc3"
            b"\x03\xc2\x92\x93\xa3f32\x02\x40\x93\xa3i32\x01\x01",
        ),
        (
            Sum(7, 300, 4, [ArrayHead("q80", 1, 32)]),
            b"\x96" + VERSION + b"\xa3sum\x07\xcd\x01\x2c\x04\x91\x93\xa3q80\x01\x20",
        ),
        (
            Generate(1, "hé", None, Sampling(seed=9, logit_bias={5: -1.0}), False, ["."]),
            b"\x9b" + VERSION + b"\xa8generate\x01\xa3h\xc3\xa9\xc0\x8b"
            b"\xabtemperature\xcb\x00\x00\x00\x00\x00\x00\x00\x00\xa5top_p\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00"
            b"\xa5top_k\x00\xa4seed\x09\xa5min_p\xcb\x00\x00\x00\x00\x00\x00\x00\x00"
            b"\xa9typical_p\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00"
            b"\xb2repetition_penalty\xcb\x3f\xf0\x00\x00\x00\x00\x00\x00"
            b"\xb0presence_penalty\xcb\x00\x00\x00\x00\x00\x00\x00\x00"
            b"\xb1frequency_penalty\xcb\x00\x00\x00\x00\x00\x00\x00\x00"
            b"\xaalogit_bias\x81\x05\xcb\xbf\xf0\x00\x00\x00\x00\x00\x00\xa8logprobs\xc0\xc2\x91\xa1.\xc0\x01\xc2",
        ),
    ],
    ids=["beacon", "step", "sum", "generate"],
)
def test_headers_are_these_bytes_for_every_reader_of_msgpack(message: Message, header: bytes) -> None:
    assert encode(message)[0] == header
    by_hand = msgspec.to_builtins(message)
    # Without that this reader refuses maps by token, which only roots read.
    assert msgpack.unpackb(header, strict_map_key=False) == [
        PROTOCOL,
        type(message).__name__.lower(),
        *plain(by_hand[1:]),
    ]


@given(
    kind=st.sampled_from([Sum, Partial]),
    epoch=st.integers(0, 1 << 62),
    step=st.integers(0, 1 << 62),
    stages=st.lists(st.integers(0, 1 << 31), min_size=1),
    head=st.builds(ArrayHead, st.sampled_from(["f32", "f16", "q80"]), st.integers(0, 1 << 31), st.integers(0, 1 << 31)),
)
def test_a_header_made_for_many_stages_is_the_one_that_encode_makes(
    kind: type[Sum | Partial], epoch: int, step: int, stages: list[int], head: ArrayHead
) -> None:
    header = stage_header(kind, epoch, step, head)
    for stage in stages:
        assert [header(stage)] == encode(kind(epoch, step, stage, [head]))


def plain(value: Any) -> Any:
    """Tuples as lists, as msgpack gives them."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def test_arrays_are_these_bytes() -> None:
    ramp = np.arange(32, dtype=np.float32)[None] - 16
    assert bytes(encode_floats(ramp[:, 15:18], "f32")[1]) == b"\0\0\x80\xbf\0\0\0\0\0\0\x80\x3f"
    assert bytes(encode_floats(ramp[:, 15:18], "f16")[1]) == b"\0\xbc\0\0\0\x3c"
    head, frame = encode_floats(ramp, "q80")
    assert head == ArrayHead("q80", 1, 32)
    assert bytes(frame[:2]) == np.float16(16 / 127).tobytes()
    assert list(np.frombuffer(frame[2:], np.int8)[[0, 8, 16, 31]]) == [-127, -64, 0, 119]  # -63.5 goes to even
    assert bytes(encode_plain(np.array([[1, -1]]), "i32")[1]) == b"\x01\0\0\0\xff\xff\xff\xff"


# --- whatever else may come -------------------------------------------------------------------------------------------


def decode_or_refuse(frames: list[bytes], allowed: Kinds) -> bool:
    """decode gives a message of a kind allowed, with its frames, or ProtocolError in words of bounded length.

    Returns whether it gave a message.
    """
    refusal = ""
    try:
        message, arrays = decode(frames, allowed)
    except ProtocolError as error:
        refusal = str(error)
    else:
        assert type(message) in allowed.values()
        assert len(arrays) == len(getattr(message, "arrays", []))
    assert len(refusal) < 1000
    return not refusal


frames_of_bytes = st.lists(st.binary(max_size=200), max_size=4)


@in_any_direction
@settings(max_examples=60)
@given(frames=frames_of_bytes)
def test_any_bytes_give_a_message_or_a_protocol_error(allowed: Kinds, frames: list[bytes]) -> None:
    decode_or_refuse(frames, allowed)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@in_any_direction
def test_any_fields_of_any_kind_give_a_message_or_a_protocol_error(allowed: Kinds) -> None:
    one_field = st.integers(0, 300).map(lambda n: [n])

    @settings(max_examples=100)
    @given(
        fields=st.lists(anything, max_size=9) | one_field,
        kind=st.sampled_from(list(allowed)) | st.sampled_from([kind for _, kind in ALL_KINDS]),
    )
    def read(fields: list[Any], kind: str) -> None:
        decode_or_refuse([msgpack.packb([PROTOCOL, kind, *fields])], allowed)

    read()
    one_number = [[msgpack.packb([PROTOCOL, kind, 7])] for kind in allowed]
    assert any(decode_or_refuse(frames, allowed) for frames in one_number), "none is understood"


@in_any_direction
@settings(max_examples=60)
@given(data=st.data())
def test_a_valid_message_with_bytes_changed_gives_a_message_or_a_protocol_error(
    allowed: Kinds, data: st.DataObject
) -> None:
    message = data.draw(structs(allowed[data.draw(st.sampled_from(list(allowed)))]))
    frames = [bytearray(f) for f in encode(message, [bytes(h.nbytes) for h in getattr(message, "arrays", [])])]
    header = frames[0]
    for at in data.draw(st.lists(st.integers(0, len(header) - 1), min_size=1, max_size=4)):
        header[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(header)))
    decode_or_refuse([bytes(frame) for frame in frames], allowed)
    decode_or_refuse([bytes(header[:cut])], allowed)
    decode_or_refuse([bytes(frame) for frame in [*frames, b"one too many"]], allowed)


@pytest.mark.parametrize(
    "header",
    [
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x93" + VERSION + b"\xa6beacon\xdb\xff\xff\xff\xff",
        b"\x93" + VERSION + b"\xa6beacon\xc6\xff\xff\xff\xff",
        b"\x93" + VERSION + b"\xdb\x7f\xff\xff\xffbeacon",
        b"\x93" + VERSION + b"\xa6beacon\xc9\xff\xff\xff\xff\x01",
        b"\x92" + VERSION + bytes([0xDC, 0xFF, 0xFF]) * 20,
    ],
    ids=["array", "map", "string", "bytes", "kind", "extension", "arrays in arrays"],
)
@in_any_direction
def test_a_length_that_the_header_does_not_have_is_refused(allowed: Kinds, header: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"not msgpack|no integer|not an array|expected one of"):
        decode([header], allowed)


def repr_of_few(item: bytes) -> str:
    return repr(item[:4])


@pytest.mark.parametrize("kind", ["status_request", "cancel", "nothing"])
@pytest.mark.parametrize("item", [b"\x90", b"\xc0", b"\x80", b"\xdc\x10\x00" + b"\x90" * 4096], ids=repr_of_few)
def test_a_header_of_a_million_items_that_nobody_asked_for_costs_milliseconds(kind: str, item: bytes) -> None:
    name = msgpack.packb(kind)
    n = 1_000_000 // len(item)
    header = b"\xdd" + (n + 3).to_bytes(4, "big") + VERSION + name + b"\x01" + item * n
    times = []
    for _ in range(3):
        begun = time.process_time()
        decode_or_refuse([header], FROM_CLIENT)
        times.append(time.process_time() - begun)
    assert min(times) < 0.05  # 3 ms; building it took 250


PLAN_TO_ITS_SPEC = b"\x9a" + VERSION + b"\xa4plan\x81\xa1x"
PLAN_AFTER_ITS_SPEC = b"\x02\xa3f32\xa4auto\xa3f16\x01\x01\xcb" + bytes(8)


@pytest.mark.parametrize("depth", [100, 500, 900, 1000, 1023, 1024, 5000, 500_000])
@pytest.mark.parametrize("before", [b"\x92", b"\x92" + VERSION, b"\x93" + VERSION + b"\xa4plan", PLAN_TO_ITS_SPEC])
def test_any_depth_is_refused_or_read(before: bytes, depth: int) -> None:
    nest = b"\x91" * depth + b"\x01"
    decode_or_refuse([before + nest], TO_WORKER)
    decode_or_refuse([before + nest + b"\xa4plan"], TO_WORKER)
    decode_or_refuse([before + nest + PLAN_AFTER_ITS_SPEC], TO_WORKER)
    decode_or_refuse([b"\x94" + VERSION + b"\xa6beacon\x01" + nest], TO_WORKER)


def test_a_deep_map_is_read_where_the_depth_is_not_refused() -> None:
    plan, _ = decode([PLAN_TO_ITS_SPEC + b"\x91" * 100 + b"\x01" + PLAN_AFTER_ITS_SPEC], TO_WORKER)
    assert isinstance(plan, messages.Plan)
    assert list(plan.spec) == ["x"]


@pytest.mark.parametrize("protocol", [0, 1, 99])
def test_another_protocol_is_refused_by_its_number(protocol: int) -> None:
    with pytest.raises(ProtocolError, match=rf"protocol {protocol}; this side speaks {PROTOCOL}"):
        decode([msgpack.packb([protocol, "beacon", 1])], TO_WORKER)


@pytest.mark.parametrize("protocol", [True, 1.0, "1", None, [[1]]])
def test_a_protocol_that_is_no_integer_is_refused(protocol: Any) -> None:
    with pytest.raises(ProtocolError, match=f"expected the integer {PROTOCOL}"):
        decode([msgpack.packb([protocol, "beacon", 1])], TO_WORKER)


@in_any_direction
def test_a_kind_of_another_direction_is_refused(allowed: Kinds) -> None:
    for kinds, kind in ALL_KINDS:
        if kind not in allowed:
            with pytest.raises(ProtocolError, match=f"a message '{kind}'; expected one of"):
                decode([msgpack.packb([PROTOCOL, kind, 1, 2, 3, 4])], allowed)
        assert kind in kinds


def test_a_header_longer_than_the_bound_is_refused_unread() -> None:
    with pytest.raises(ProtocolError, match="a header of 1048577 bytes"):
        decode([bytes(MAX_HEADER_BYTES + 1)], TO_WORKER)


@pytest.mark.parametrize(
    ("heads", "frames"),
    [
        ([("f32", 2, 3)], [b"\0" * 23]),
        ([("f32", 2, 3)], [b"\0" * 25]),
        ([("f32", 2, 3)], []),
        ([("f32", 2, 3)], [b"\0" * 24, b""]),
        ([], [b""]),
        ([("q80", 1, 33)], [b"\0" * 34]),
        ([("f32", 1 << 31, 1 << 31)], [b""]),
        ([("f32", 1 << 32, 1)], [b""]),
        ([("f32", -1, -1)], [b"\0" * 4]),
        ([("f32", 1.0, 1)], [b"\0" * 4]),
        ([("f8", 1, 1)], [b"\0"]),
        ([("u8", 0, 0)] * 5, [b""] * 5),
    ],
)
def test_frames_that_are_not_as_their_heads_say_are_refused(heads: list[Any], frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        decode([msgpack.packb([PROTOCOL, "partial", 1, 1, 1, heads]), *frames], TO_ROOT)


@pytest.mark.parametrize("wanted", ["f16", "f64"])
def test_an_array_of_another_type_or_shape_than_expected_is_refused(wanted: Any) -> None:
    head, frame = encode_floats(np.zeros((2, 32), np.float32), "f32")
    with pytest.raises(ProtocolError, match="2 x 32 f32"):
        decode_array(head, frame, wanted, (2, 32))
    with pytest.raises(ProtocolError, match="expected 1 x 64 f32"):
        decode_array(head, frame, "f32", (1, 64))


def test_fields_beyond_those_known_are_ignored() -> None:
    assert decode([msgpack.packb([PROTOCOL, "beacon", 5, "of a later version"])], TO_WORKER)[0] == Beacon(5)


def test_numbers_that_are_none_are_refused_where_seconds_are_expected() -> None:
    for value in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ProtocolError):
            decode([msgpack.packb([PROTOCOL, "candidates", 1, 1, 1, value, 0.0, []])], TO_ROOT)
