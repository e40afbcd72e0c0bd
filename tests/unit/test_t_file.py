"""`.t` files: read from bytes written by hand, written and read back, and refused in words."""

from __future__ import annotations

import struct

import pytest
from msgspec.structs import replace
from tiny import tiny_tokenizer_data

from dllama_zmq.errors import FormatError
from dllama_zmq.formats import read_t, write_t

# Vocabulary size, longest token, BOS, the list's EOS count, add_bos: what every keyed file below begins with.
PAIRS = [(0, 1), (1, 3), (2, 4), (3, 1)]
PIECES = [(b"<unk>", 0.0), (b"<s>", -0.5), (b" a\xc3\xa9", -2.25)]


def vocabulary(pieces: list[tuple[bytes, float]]) -> bytes:
    return b"".join(struct.pack("<fI", score, len(piece)) + piece for piece, score in pieces)


def keyed(pairs: list[tuple[int, int]], after_header: bytes = b"", pieces: list[tuple[bytes, float]] = PIECES) -> bytes:
    """A file of the keyed header, by hand; `after_header` is template, chat stop and EOS list."""
    header = struct.pack("<Ii", 0x567124, 8 + 8 * len(pairs)) + b"".join(struct.pack("<ii", *pair) for pair in pairs)
    return header + after_header + vocabulary(pieces)


def test_a_keyed_file_written_by_hand_gives_its_tokens_and_template(tmp_path):
    path = tmp_path / "a.t"
    path.write_bytes(keyed([*PAIRS, (7, 5), (9, 2), (10, 0)], "{{é}}"[1:-1].encode() + b"!" + struct.pack("<2i", 2, 0)))
    data = read_t(path)
    assert (data.pieces, data.scores) == ([b"<unk>", b"<s>", b" a\xc3\xa9"], [0.0, -0.5, -2.25])
    assert (data.bos_id, data.eos_ids, data.add_bos) == (1, (2, 0), False)
    assert (data.chat_template, data.max_token_length, data.source) == ("{é}!", 5, str(path))


def test_an_old_file_written_by_hand_gives_its_tokens(tmp_path):
    path = tmp_path / "a.t"
    path.write_bytes(struct.pack("<3I3i", 0x567123, 3, 999, 1, 2, -1) + vocabulary(PIECES))
    data = read_t(path)
    assert (data.pieces, data.scores) == ([b"<unk>", b"<s>", b" a\xc3\xa9"], [0.0, -0.5, -2.25])
    assert (data.bos_id, data.eos_ids, data.add_bos, data.chat_template) == (1, (2,), True, None)
    assert data.max_token_length == 5


def test_the_chat_stop_of_older_files_lies_after_the_template_and_is_skipped(tmp_path):
    path = tmp_path / "a.t"
    path.write_bytes(keyed([*PAIRS, (4, 2), (8, 4), (7, 6)], b"{{ t }}"[:6] + b"STOP"))
    data = read_t(path)
    assert data.chat_template == "{{ t }"
    assert data.pieces[2] == b" a\xc3\xa9"


def test_eos_ids_are_the_legacy_keys_in_file_order_then_the_list(tmp_path):
    path = tmp_path / "a.t"
    path.write_bytes(keyed([*PAIRS, (6, 2), (4, 0), (9, 2)], struct.pack("<2i", 1, 2)))
    assert read_t(path).eos_ids == (2, 0, 1)


def test_a_file_older_than_the_add_bos_key_wants_the_bos(tmp_path):
    path = tmp_path / "a.t"
    path.write_bytes(keyed([*PAIRS, (4, 2)]))
    assert read_t(path).add_bos is True


@pytest.mark.parametrize("written", ["raw", "text"])
def test_byte_pieces_are_raw_bytes_however_the_converter_wrote_them(tmp_path, written):
    raw = [bytes([value]) for value in range(256)]
    text = [f"<0x{value:02X}>".encode() for value in range(256)]
    head, tail = [b"<unk>", b"<s>", b"</s>"], [b"a", b"<0x41>"]
    pieces = [(piece, 0.0) for piece in [*head, *(raw if written == "raw" else text), *tail]]
    path = tmp_path / "a.t"
    path.write_bytes(keyed([(0, 1), (1, len(pieces)), (3, 1), (4, 2)], b"", pieces))
    assert read_t(path).pieces == [*head, *raw, *tail]


def test_a_written_vocabulary_reads_back_the_same(tmp_path):
    path = tmp_path / "a.t"
    data = replace(
        tiny_tokenizer_data(), eos_ids=(2, 7), add_bos=False, chat_template="{{ 'ünï' }}\n", source=str(path)
    )
    write_t(path, data)
    assert read_t(path) == data


def test_the_writer_makes_these_bytes(tmp_path):
    path = tmp_path / "a.t"
    data = replace(tiny_tokenizer_data(260), pieces=[b"ab", b"c"], scores=[-1.0, 0.5], bos_id=0, eos_ids=(1,))
    write_t(path, data)
    pairs = [(0, 1), (1, 2), (2, 2), (3, 0), (9, 1), (10, 1)]
    assert path.read_bytes() == keyed(pairs, struct.pack("<i", 1), [(b"ab", -1.0), (b"c", 0.5)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scores": [0.0]}, "288 pieces and 1 scores"),
        ({"pieces": [b""] * 288}, "no empty piece"),
        ({"bos_id": 288}, "bos_id is 288; expected 0 to 287"),
        ({"eos_ids": (2, -1)}, "eos id is -1"),
        ({"eos_ids": ()}, "no EOS id"),
    ],
)
def test_data_that_is_no_vocabulary_is_refused_and_the_file_before_stays(tmp_path, changes, words):
    path = tmp_path / "a.t"
    path.write_bytes(b"what was here before")
    with pytest.raises(FormatError, match=words):
        write_t(path, replace(tiny_tokenizer_data(), **changes))
    assert path.read_bytes() == b"what was here before"
    assert list(tmp_path.iterdir()) == [path]
