"""The page shared with a guest's kernel as words of the guest's byte order.

Room: `paravirt`. A memoryview's own words are the host's; where the guest's are the others, `SwappedWords` takes its
place, with as much of its interface as the hypervisor uses.
"""

from __future__ import annotations

import struct
import sys
from typing import Any, Final, Literal

_FORMATS: Final[dict[int, Literal["I", "Q"]]] = {4: "I", 8: "Q"}


class SwappedWords:
    """Words of a page whose bytes lie the other way round than the host's."""

    __slots__ = ("_page", "_read", "_size", "_write")

    def __init__(self, page: memoryview, size: int) -> None:
        """`size`: bytes of a word."""
        form = struct.Struct(f"{'>' if sys.byteorder == 'little' else '<'}{_FORMATS[size]}")
        self._page, self._size = page, size
        self._read, self._write = form.unpack_from, form.pack_into

    def __len__(self) -> int:
        return len(self._page) // self._size

    def _at(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"word {index} of a page of {len(self)}")
        return index * self._size

    def __getitem__(self, index: int) -> int:
        value: int = self._read(self._page, self._at(index))[0]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self._write(self._page, self._at(index), value)

    def cast(self, form: Literal["B", "I", "Q"]) -> memoryview:
        """The page itself, as `memoryview.cast` gives it: its words are the host's again."""
        return self._page.cast("B").cast(form)


def words(page: memoryview, size: int, byte_order: str) -> Any:
    """A page as words of `size` bytes: a memoryview, or what stands for it where the byte order is not the host's."""
    return page.cast(_FORMATS[size]) if byte_order == sys.byteorder else SwappedWords(page, size)
