"""A plan as a run follows it: pages as the rewritten file has them, and the fixups that lie ready for the rest.

Room: `bt`, beside `loadtime`. Where a page still is what the file was made from, what executes is what the file holds,
byte for byte, and nothing is scanned or decided again. Where it changed, sites that did not keep their fixups.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt.pagescan import PAGE
from bt.tactics.tactics import Tactic

if TYPE_CHECKING:
    from bt.plan import Plan, PlannedFixup, PlannedSite
    from emulator.isa.operation import Operation
    from paravirt.translator import Fixup

_FIXED = (Tactic.INLINE, Tactic.HYPERCALL, Tactic.REPLACED)


@dataclass(frozen=True, slots=True)
class StaticPage:
    """A page of the rewritten file."""

    patches: tuple[tuple[int, bytes, bytes], ...]
    """Offset in the page, what the original has there, and what stands there now; it may end in the next page."""
    inside: int
    """Mask of the offsets inside patches, which cannot be entered."""
    sites: int

    def code(self, original: bytes) -> bytes | None:
        """The page made of the original's (PAGE bytes and some that follow), or None where that is not as planned."""
        code = bytearray(original)
        for offset, old, new in self.patches:
            if code[offset : offset + len(old)] != old[: len(code) - offset]:
                return None
            code[offset : offset + len(new)] = new[: len(code) - offset]
        return bytes(code[:PAGE])


class Planned:
    """A plan, indexed for a run. Addresses are those at which the image is linked."""

    def __init__(self, plan: Plan, fixed_place: bool, trapped: Collection[Operation] = ()) -> None:
        """`fixed_place`: the guest lies where it is linked, so that the plan's fixups are right as they are. `trapped`
        are operations that must have traps, whatever was planned for them."""
        self.end = plan.end
        self._sites = {site.address: site for site in plan.sites}
        names = {operation.name for operation in trapped}
        self._not_followed = {site.address & -PAGE for site in plan.sites if site.operation in names}
        self._by_page: dict[int, list[PlannedSite]] = {}
        for site in plan.sites:
            if site.old != site.new or site.tactic is Tactic.COVERED:
                self._by_page.setdefault(site.address & -PAGE, []).append(site)
        steps = {step for site in plan.sites for step in site.steps}
        self._steps: dict[int, list[tuple[int, bytes, bytes]]] = {}
        for change in plan.changes:
            if change.address in steps:
                row = (change.address % PAGE, change.old, change.new)
                self._steps.setdefault(change.address & -PAGE, []).append(row)
        self._fixed_place = fixed_place
        self._fixups = {(fixup.site, fixup.window): fixup for fixup in plan.fixups if fixup.window}
        self._places = {(fixup.site, len(fixup.window)): fixup for fixup in plan.fixups if fixup.window}
        self._pages: dict[int, StaticPage | None] = {}

    def site(self, address: int) -> PlannedSite | None:
        """The site at an address."""
        return self._sites.get(address)

    def ready(self) -> tuple[Fixup, ...]:
        """Fixups that are valid from the beginning: all, where the guest lies where it is linked."""
        return tuple(fixup.fixup() for fixup in self._fixups.values()) if self._fixed_place else ()

    def page(self, address: int) -> StaticPage | None:
        """The page at `address` as the file has it; None where its bytes are not valid, or not to be followed."""
        if not self._fixed_place:
            return None
        if address not in self._pages:
            self._pages[address] = self._static(address)
        return self._pages[address]

    def _static(self, address: int) -> StaticPage | None:
        patches = list(self._steps.get(address, ()))
        inside = 0
        for offset, _, new in patches:
            inside |= (1 << offset + len(new)) - (1 << offset)
        if address in self._not_followed:
            return None
        here = self._by_page.get(address, ())
        for site in here:
            if site.tactic is Tactic.TRAP and site.fixup:
                return None  # somebody took its fixup away (`bt.verify.blame`)
            if site.tactic is Tactic.COVERED:
                continue
            start = site.start - address
            patches.append((start, site.old, site.new))
            if site.tactic in _FIXED and site.fixup:
                inside |= (1 << start + len(site.old)) - (1 << start + 1)
        return StaticPage(tuple(patches), inside, len(here))

    def fixup(self, address: int, window: bytes, size: int) -> tuple[int, bool] | None:
        """Place of the plan's fixup of `size` bytes for a window, and whether it is ready; None where there is none."""
        found: PlannedFixup | None
        if self._fixed_place:
            found = self._fixups.get((address, window))
        else:  # relocation changed bytes, so that only the size tells
            found = self._places.pop((address, len(window)), None)
        if found is None or len(found.code) != size:
            return None
        return found.address, self._fixed_place
