"""Which parts of an ARM image are A32, T32 or data: by mapping symbols, or bit 0 of function symbols and of the entry.

Room: `bt/image`. ELF for the Arm Architecture (AAELF32, 5.5.3 and 5.5.5): `$a`, `$t` and `$d` begin a run of A32, T32
or data; where an image has none, bit 0 of a function's address says which it is. All else is A32. Nothing is trusted.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.image.elf import FORMS, SHT_SYMTAB

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image.image import Image

A32, T32, DATA = 0, 1, 2
_MAPPING: Final = {b"$a": A32, b"$t": T32, b"$d": DATA}
_FUNCTION: Final = 2
"""STT_FUNC."""


@dataclass(frozen=True, slots=True)
class States:
    """What begins where."""

    addresses: tuple[int, ...]
    """Guest-virtual, ascending; each state goes on to the next one."""
    states: tuple[int, ...]
    exact: bool
    """Mapping symbols tell data as well; else literal pools are yet to be found."""

    @property
    def plain(self) -> bool:
        """All is A32, and nothing says which words are data."""
        return not self.exact and T32 not in self.states

    def at(self, address: int) -> int:
        """The state at guest-virtual `address`."""
        index = bisect_right(self.addresses, address) - 1
        return self.states[index] if index >= 0 else A32

    def halfwords(self, address: int, count: int) -> NDArray[np.uint8]:
        """The states of `count` halfwords from `address` on."""
        first = bisect_right(self.addresses, address)
        places = np.array(self.addresses[first:], np.int64)
        cuts = np.clip(places - address + 1 >> 1, 0, count)
        runs = np.diff(cuts, prepend=0, append=count)
        return np.repeat(np.array((self.at(address), *self.states[first:]), np.uint8), runs)


def of(image: Image) -> States:
    """The states of an image, read once and then kept with it."""
    return image.once("arm states", lambda: _read(image))


def _read(image: Image) -> States:
    mapping, functions = _marks(image)
    exact = any(start <= place < end for place in mapping for start, end in image.text_ranges)
    if exact:
        found = mapping
    else:
        found = functions
        if image.entry & 1:
            found.setdefault(image.entry & -2, T32)
            if len(found) == 1:  # nothing else is known: its whole range is code of its state
                start = next((start for start, end in image.text_ranges if start <= image.entry < end), image.entry)
                found[start & -2] = T32
    order = sorted(found)
    return States(tuple(order), tuple(found[place] for place in order), exact)


def _marks(image: Image) -> tuple[dict[int, int], dict[int, int]]:
    """Address -> state by mapping symbols, and by functions."""
    mapping: dict[int, int] = {}
    functions: dict[int, int] = {}
    table = next((section for section in image.sections if section.type == SHT_SYMTAB), None)
    form = FORMS[image.isa.bits, image.byte_order]
    if table is None or table.link >= len(image.sections) or len(table.data) % form.symbol.size:
        return mapping, functions
    names = bytes(image.sections[table.link].data)
    for name_at, value, _, info, _, index in form.symbol.iter_unpack(table.data):
        if not 0 < index < len(image.sections):
            continue
        if image.relocatable:
            value += image.sections[index].vaddr
        name = names[name_at : name_at + 3]
        state = _MAPPING.get(name[:2])
        if state is not None and name[2:] in (b"\0", b".", b""):
            mapping[value] = state
        elif info & 15 == _FUNCTION:
            functions[value & -2] = T32 if value & 1 else A32
    return mapping, functions
