"""`X86Tactics`: x86's part of scanning and rewriting, in 64-bit mode (and, for scanning, in 32-bit mode).

Room: `bt/tactics/x86`; fulfils `bt.tactics.tactics.Tactics`. It joins the rooms beside it and decides nothing itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.image import linux_tables
from bt.knowledge import linux_x86
from bt.pagescan import PAGE, Found, PageScan
from bt.tactics.tactics import NO_ADDRESS, Choice, CodePage, Home, ImagePatch, Region, Tactic
from bt.tactics.x86 import pagescan
from bt.tactics.x86.choose import VOID, choose
from bt.tactics.x86.forms64 import FORMS_64
from bt.tactics.x86.pagescan import LONGEST
from bt.tactics.x86.template import scratch_words
from bt.tactics.x86.window import Forms, Ground
from emulator.isa.sensitive import SensitiveInstruction
from emulator.isa.x86.table import ROW_OF_CODE
from paravirt.abi import CROSSING_CODE, FIXUP_BASE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.tactics.tactics import Ladder
    from bt.textmap import Stretch
    from emulator.isa.isas import Isa
    from emulator.isa.operation import Operation
    from paravirt.translator import Fixup

ALIGNMENT: Final = 16
"""Of a fixup's address, bytes."""
AROUND: Final = 160
"""Bytes before and behind a site on which its tactic may depend: a short jump's reach and a jump behind it."""
REMEMBERED: Final = 1 << 16
"""Choices that a ladder keeps at most."""
REGION_64: Final = Region(FIXUP_BASE, CROSSING_CODE)
"""Where fixups of 64-bit guests lie."""


class X86Tactics:
    """See `bt.tactics.tactics.Tactics`."""

    def __init__(self, isa: Isa, byte_order: str) -> None:
        self.isa = isa
        self.byte_order = byte_order
        self.longest = LONGEST

    @cached_property
    def _version(self) -> str:
        import iced_x86

        # The distribution's version stands in a name beside the package; asking importlib.metadata costs 30 ms.
        installed = sorted(path.name for path in Path(iced_x86.__file__).parent.parent.glob("iced_x86-*.dist-info"))
        rows = " ".join(f"{code}:{row.name}" for code, row in sorted(ROW_OF_CODE.items()))
        return hashlib.sha256(f"{' '.join(installed)} {rows}".encode()).hexdigest()[:16]

    def version(self) -> str:
        """Changes with the table and with the decoder's numbering of encodings."""
        return self._version

    def row_of(self, code: int) -> SensitiveInstruction:
        """The row of an iced-x86 `Code`."""
        return ROW_OF_CODE[code]

    def sweep(self, image: Image) -> tuple[Stretch, ...]:
        """One linear sweep."""
        from bt.tactics.x86 import sweep

        return sweep.sweep(image, self.isa.bits)

    def scan_page(self, code: bytes, after: bytes, start: int, pristine: int = 0) -> PageScan:
        """Linear decoding."""
        return pagescan.scan_page(code, after, start, pristine, self.isa.bits)

    def rescan_page(self, old: bytes, scan: PageScan, new: bytes, pristine: int = 0) -> PageScan:
        """Linear decoding of what changed."""
        return pagescan.rescan_page(old, scan, new, pristine, self.isa.bits)

    def with_entry(self, scan: PageScan, code: bytes, after: bytes, entry: int) -> PageScan:
        """Decoding from the entry until both streams meet."""
        return pagescan.with_entry(scan, code, after, entry, self.isa.bits)

    def starts(self, before: bytes, whole: bytes) -> Sequence[int]:
        """What decoding the bytes before the page says most often."""
        return pagescan.likely_starts(before, whole, self.isa.bits)

    def ladder(self, strategy: str, image: Image | None, delta: int = 0, cache: PageCache | None = None) -> Ladder:
        """With what is known of a Linux, where fixups are allowed."""
        return X86Ladder(strategy, image, delta, cache)


class X86Ladder:
    """Tactics for one guest; in 64-bit mode, unless a subclass says otherwise."""

    alignment: int = ALIGNMENT
    forms: Forms = FORMS_64

    def __init__(
        self, strategy: str, image: Image | None, delta: int, cache: PageCache | None, region: Region = REGION_64
    ) -> None:
        # What has no address before it is loaded cannot hold the way to a fixup.
        self.region = region if image is None or not image.relocatable else Region(0, 0)
        self.patches: Sequence[ImagePatch] = ()
        self.choices: dict[tuple[object, ...], Choice] = {}
        """Choices by all that they depend on."""
        self._padded = False
        self._delta = delta
        self._image = image
        self._known = self._know(image if strategy in ("inline", "auto") else None, cache)

    def _know(self, image: Image | None, cache: PageCache | None) -> linux_x86.Known:
        """What is known of a kernel; nothing, where it is None."""
        return linux_x86.known(image, cache) if image is not None else linux_x86.Known((), ())

    def prepare(self, take: Callable[[int], int | None]) -> tuple[Fixup, ...]:
        """The functions that pv_ops leads to, and with them the patches of the image."""
        fixups = linux_x86.stubs(self._known, self._delta, take)
        self._padded = bool(fixups)
        self.patches = linux_x86.image_patches(self._known, fixups, self._delta)
        return fixups

    def prepared_clobbers(self, fixup: Fixup) -> tuple[str, ...]:
        """Those of the template that the function is made of."""
        return next(
            (
                scratch_words((slot.template, *((slot.template.finish,) if slot.template.finish else ())))
                for slot in self._known.slots
                if slot.function + self._delta == fixup.site
            ),
            (),
        )

    def extend(self, operations: frozenset[Operation]) -> None:
        """Do these in the guest, too; see `bt.tactics.x86.forms_dear`. In 32-bit mode there are none."""
        if self.forms is FORMS_64:
            from bt.tactics.x86.forms_dear import DearForms

            self.forms = DearForms(operations)

    def survey(self, page: CodePage) -> PageGround:
        """The page; what it needs is found when it is asked for."""
        return PageGround(self, page)

    def ground(self, page: CodePage) -> Ground:
        """The page as windows are composed on it."""
        known = page.pristine
        return Ground(
            address=page.address,
            code=page.code,
            after=page.after,
            boundaries=page.scan.boundaries,
            targets=_own_targets(page) | (known.targets if known else 0),
            taken=known.taken if known is not None else 0,
            entry=page.entry,
            known=known is not None,
            padded=self._padded,
            guarded=self._guarded(page.linked),
            forms=self.forms,
        )

    @cached_property
    def _exceptions(self) -> NDArray[np.uint64]:
        """Read when a page is looked at: a run may have all its translations from an earlier one."""
        return _exceptions(self._image)

    def _guarded(self, linked: int) -> int:
        """Mask of a page's instructions that the kernel's exception table names."""
        if linked < 0 or not len(self._exceptions):
            return 0
        first, last = np.searchsorted(self._exceptions, np.array([linked, linked + PAGE], np.uint64))
        return sum(1 << int(at) - linked for at in set(self._exceptions[first:last].tolist()))

    def never_run(self, image: Image) -> Sequence[Region]:
        """Linux's section of alternatives' replacements."""
        section = image.section(".altinstr_replacement")
        return (Region(section.vaddr, section.vaddr + section.size),) if section is not None else ()

    def homes(self, image: Image) -> Sequence[Home]:
        """The alternatives of a Linux."""
        from bt.knowledge import linux_alternatives

        return linux_alternatives.homes(image)


def _own_targets(page: CodePage) -> int:
    """Where branches of the page lead in it, but for those that the image's marks tell of already."""
    if page.changed is None or page.pristine is None:
        return pagescan.own_targets(page.code + page.after, page.scan)
    start, end = page.changed
    part = (1 << end) - (1 << start)
    return pagescan.own_targets(page.code + page.after, page.scan, part) if part else 0


def _exceptions(image: Image | None) -> NDArray[np.uint64]:
    tables = linux_tables.of(image) if image is not None else None
    return np.sort(tables.exceptions.instructions) if tables is not None else np.empty(0, np.uint64)


class PageGround:
    """One page; see `bt.tactics.tactics.Ground`."""

    def __init__(self, ladder: X86Ladder, page: CodePage) -> None:
        self._ladder = ladder
        self._page = page

    @cached_property
    def _ground(self) -> Ground:
        return self._ladder.ground(self._page)

    def choose(self, site: Found, strategy: str, used: int = 0) -> Choice:
        """Climb."""
        idle = strategy == "inline" and site.code not in self._ladder.forms.INLINE_CODES | VOID
        if strategy != "trap" and self._ladder.region.start == self._ladder.region.end:
            whole = choose(self._ground, site, strategy, used)  # in place it may still be done
            if whole.tactic in (Tactic.REPLACED, Tactic.SAME):
                return whole
            return replace(choose(None, site, "trap"), refused=NO_ADDRESS)
        if strategy == "trap" or idle:
            return choose(None, site, strategy, used)
        return self._climb(site, strategy, used)

    def _climb(self, site: Found, strategy: str, used: int) -> Choice:
        """The choice, remembered by all that it depends on: a kernel patches its pages often, but little of each."""
        ground, known = self._ground, self._ladder.choices
        low, high = max(site.offset - AROUND, 0), site.offset + AROUND
        part = (1 << high - low) - 1
        masks = (ground.boundaries, ground.targets, ground.taken, ground.guarded, used)
        key = (
            ground.address,
            site,
            strategy,
            (ground.code + ground.after)[low:high],
            *(mask >> low & part for mask in masks),
            ground.entry if low <= ground.entry < high else -1,
            ground.known,
        )
        choice = known.get(key)
        if choice is None:
            if len(known) >= REMEMBERED:
                known.clear()
            choice = known[key] = choose(ground, site, strategy, used)
        return choice
