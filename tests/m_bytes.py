"""`.m` files by hand: the keyed header, the old one, and floats that count up."""

from __future__ import annotations

import struct

# dim 2, FFN 4, one layer, one head, vocabulary 3: every value of every tensor is its place in the file.
HAND_PAIRS = {0: 0, 1: 0xABCD00, 2: 2, 3: 4, 4: 1, 5: 1, 6: 1, 7: 0, 8: 0, 9: 3, 10: 16, 11: 1, 12: 10000, 13: 0}
HAND_VALUES = 6 + 4 * 4 + 8 * 3 + 2 + 2 + 2 + 6


def keyed(pairs: dict[int, int], n_values: int = HAND_VALUES) -> bytes:
    """A file of the keyed header and the floats 0, 1, 2, …, by hand."""
    header = struct.pack("<Ii", 0x0A00ABCD, 8 + 8 * len(pairs))
    for key, value in pairs.items():
        header += struct.pack("<ii", key, value)
    return header + struct.pack(f"<{n_values}f", *range(n_values))


def old(numbers: list[int], tensors: bytes, magic: int = 0xABCD00) -> bytes:
    """A file of the old header, by hand."""
    return struct.pack("<I9i", magic, *numbers) + tensors
