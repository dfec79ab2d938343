"""What stands behind the name of a gdb packet: numbers in hexadecimal, parted by commas.

Room: `bt/gdb`. Raises ValueError for what is none; the server answers that as an error.
"""

from __future__ import annotations

from bt.gdb.packets import LONGEST


def piece(whole: bytes, span: str) -> bytes:
    """A piece of what is transferred, OFFSET,SIZE, and whether it is the last."""
    offset, _, size = span.partition(",")
    start, count = int(offset, 16), min(int(size, 16), LONGEST - 16)
    return (b"m" if start + count < len(whole) else b"l") + whole[start : start + count]


def read_span(text: str) -> tuple[int, int]:
    """ADDRESS,SIZE."""
    address, _, size = text.partition(",")
    return int(address, 16) & (1 << 64) - 1, int(size, 16)


def read_point(text: str) -> tuple[str, int, int]:
    """KIND,ADDRESS,SIZE and what may follow."""
    kind, address, size = text.split(";")[0].split(",")
    return kind, int(address, 16), int(size, 16)
