"""`I386Tactics`: 32-bit x86's part of scanning and rewriting.

Room: `bt/tactics/x86`. Sweeping and scanning are those of 64-bit code with another decoder, and the ladder is the same;
here is what differs: where fixups lie, what stands for an instruction (`forms32`), and what is known of a Linux.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt.knowledge import linux_i386, linux_x86
from bt.tactics.tactics import Region
from bt.tactics.x86.forms32 import FORMS_32
from bt.tactics.x86.tactics import X86Ladder, X86Tactics
from paravirt.abi import I386

if TYPE_CHECKING:
    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.tactics.tactics import Ladder

REGION_32: Final = Region(I386.base, I386.shared_page)
"""Where fixups of 32-bit guests lie."""


class I386Tactics(X86Tactics):
    """See `bt.tactics.tactics.Tactics`."""

    def ladder(self, strategy: str, image: Image | None, delta: int = 0, cache: PageCache | None = None) -> Ladder:
        """With what is known of a Linux, where fixups are allowed."""
        return Ladder32(strategy, image, delta, cache, REGION_32)


class Ladder32(X86Ladder):
    """Tactics for one 32-bit guest."""

    forms = FORMS_32

    def _know(self, image: Image | None, cache: PageCache | None) -> linux_x86.Known:
        """What is known of a kernel; nothing, where it is None."""
        return linux_i386.known(image, cache) if image is not None else linux_x86.Known((), ())
