"""`I386Tactics`: 32-bit x86's part of scanning and rewriting.

Room: `bt/tactics/x86`. Sweeping and scanning are those of 64-bit code with another decoder; here is what differs: where
fixups lie, what stands for an instruction, and what is known of a Linux.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from bt.pagescan import Found
from bt.tactics.tactics import Choice, CodePage, Home, ImagePatch, Region
from bt.tactics.x86.choose import last_resort
from bt.tactics.x86.tactics import X86Tactics
from paravirt.abi import I386

if TYPE_CHECKING:
    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.tactics.tactics import Ladder
    from paravirt.translator import Fixup

ALIGNMENT: Final = 16
"""Of a fixup's address, bytes."""


class I386Tactics(X86Tactics):
    """See `bt.tactics.tactics.Tactics`."""

    def ladder(self, strategy: str, image: Image | None, delta: int = 0, cache: PageCache | None = None) -> Ladder:
        """With what is known of a Linux, where fixups are allowed."""
        return Ladder32(strategy, image, delta, cache)


class Ladder32:
    """Tactics for one 32-bit guest."""

    def __init__(self, strategy: str, image: Image | None, delta: int, cache: PageCache | None) -> None:
        self.region = Region(I386.base, I386.shared_page)
        self.alignment = ALIGNMENT
        self.patches: Sequence[ImagePatch] = ()

    def prepare(self, take: Callable[[int], int | None]) -> tuple[Fixup, ...]:
        """None."""
        return ()

    def survey(self, page: CodePage) -> Ground32:
        """The page."""
        return Ground32(page)

    def never_run(self, image: Image) -> Sequence[Region]:
        """Linux's section of alternatives' replacements."""
        section = image.section(".altinstr_replacement")
        return (Region(section.vaddr, section.vaddr + section.size),) if section is not None else ()

    def homes(self) -> Sequence[Home]:
        """None."""
        return ()


class Ground32:
    """One page; see `bt.tactics.tactics.Ground`."""

    def __init__(self, page: CodePage) -> None:
        self._page = page

    def choose(self, site: Found, strategy: str, used: int = 0) -> Choice:
        """A trap."""
        return last_resort(site)
