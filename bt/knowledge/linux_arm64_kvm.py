"""What Linux on AArch64 draws by lot when it starts: the tag in the addresses that its own hypervisor would have.

Room: `bt/knowledge`. From arch/arm64/kvm/va_layout.c: an address of the kernel becomes one of the hypervisor by `and`,
`ror`, two `add` of the tag's halves and `ror`, written over places that a table of alternatives names; pointers in the
hypervisor's part of the text are given the same tag. Where nothing else differs, text is the same in two runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from bt.image import arm64_tables

if TYPE_CHECKING:
    from bt.image import Image
    from bt.verify.observation import Pages
    from bt.verify.rules import Pair

_FUNCTION: Final = "kvm_update_va_mask"
_MADE_BY_FUNCTION: Final = 1 << 15
"""Of an alternative's capability: a function makes the code (arch/arm64/include/asm/alternative-macros.h)."""
_BYTES: Final = 20
_IMMEDIATE: Final = 0xFFF << 10
_ADD: Final = 0x9100_0000
_SHIFTED: Final = 1 << 22
_ROR, _ROR_MASK = 0x93C0_0000, 0xFFE0_0000


def sites(image: Image) -> frozenset[int]:
    """Addresses, as linked, of the code that takes the tag; none where the kernel or its table is not known."""
    function = image.symbols.address_of(_FUNCTION)
    tables = arm64_tables.read(image)
    if tables is None or function is None:
        return frozenset()
    made = tables.capabilities & _MADE_BY_FUNCTION != 0
    chosen = made & (tables.replacements == np.uint64(function)) & (tables.alternative_lengths == _BYTES)
    return frozenset(map(int, tables.alternative_sites[chosen]))


class Tags:
    """The tags of a pair's runs, and which bytes differ by them alone."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self._sites = sites(pair.image)
        self._shift = -1
        self._tags = 0, 0
        for site in sorted(self._sites)[:1]:
            found = [self._tag(run.memory, site + pair.delta) for run in (pair.reference, pair.rewritten)]
            if -1 not in found and found[0] >> 32 == found[1] >> 32:
                self._shift = found[0] >> 32
                self._tags = found[0] & 0xFFFF_FFFF, found[1] & 0xFFFF_FFFF

    def excuse(self, at: int) -> int:
        """Bytes from the guest-virtual address of a difference on that the tags explain."""
        if self._shift < 0:
            return 0
        return self._in_code(at) or self._in_pointer(at)

    def _in_code(self, at: int) -> int:
        """A difference in one of the two instructions that add a tag."""
        word = at & ~3
        for number in (2, 3):
            site = word - 4 * number
            if site - self.pair.delta in self._sites:
                tags = [self._tag(run.memory, site) for run in (self.pair.reference, self.pair.rewritten)]
                expected = [self._shift << 32 | tag for tag in self._tags]
                return word + 4 - at if tags == expected else 0
        return 0

    def _in_pointer(self, at: int) -> int:
        """A difference in an aligned word of 64 bits."""
        start = at & ~7
        values = [self._word(run.memory, start, 8) for run in (self.pair.reference, self.pair.rewritten)]
        wanted = (self._tags[0] ^ self._tags[1]) << self._shift
        tags = [value >> self._shift & 0xFF_FFFF for value in values]
        return start + 8 - at if values[0] ^ values[1] == wanted and tags == list(self._tags) else 0

    def _tag(self, memory: Pages, site: int) -> int:
        """The tag that is added at a site, below its shift at bit 32; -1 where other code stands there."""
        ror, low, high = (self._word(memory, site + 4 * number, 4) for number in (1, 2, 3))
        register = ror & 0x1F
        same = register << 5 | register
        if ror & _ROR_MASK != _ROR or ror >> 5 & 0x1F != register or ror >> 16 & 0x1F != register:
            return -1
        if low & ~_IMMEDIATE != _ADD | same or high & ~_IMMEDIATE != _ADD | _SHIFTED | same:
            return -1
        return (ror >> 10 & 0x3F) << 32 | (high & _IMMEDIATE) << 2 | (low & _IMMEDIATE) >> 10

    def _word(self, memory: Pages, address: int, size: int) -> int:
        physical = self.pair.physical(address)
        return int.from_bytes(memory.read(physical, size), "little") if physical is not None else -1
