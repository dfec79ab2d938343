"""The climb on a fixed-width instruction set: replaced in place, branch to a fixup, the same by a veneer, trap.

Room: `bt/tactics/fixed`. `FixedLadder` asks the instruction set for what stands in an instruction's place and for the
body of a fixup; whether a branch reaches it, whether the window may be covered, and why not, is decided here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Final

from bt.pagescan import PAGE, Found
from bt.tactics.fixed.body import Body, BranchDraft
from bt.tactics.tactics import (
    NO_ADDRESS,
    Choice,
    CodePage,
    Home,
    ImagePatch,
    OutOfReach,
    Placing,
    Refused,
    Region,
    Tactic,
)

if TYPE_CHECKING:
    from bt.image import Image
    from bt.tactics.fixed.tactics import FixedWidth
    from paravirt.translator import Fixup


_WHY_NOT_BETTER: Final = {
    Placing.DISPLACED: "in place: it is narrower than a branch with all that belongs to it",
    Placing.PADDING: "in place: its fixup is out of a branch's reach",
}
"""Why a site's fixup is not reached in a better way, as a clause."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """Code of the same length that needs no exit."""

    code: bytes
    reason: str
    """Why it does the same, as a clause."""


class FixedLadder(ABC):
    """Tactics for one guest; see `bt.tactics.tactics.Ladder`."""

    alignment: int = 8
    patches: Sequence[ImagePatch] = ()

    def __init__(self, tactics: FixedWidth, region: Region, image: Image | None = None) -> None:
        """`region`: where fixups of this guest may lie; empty (start == end) where there is no such place, as for a
        relocatable `image`."""
        self.tactics = tactics
        module = image is not None and image.relocatable
        self.region = Region(region.start, region.start) if module else region
        self.nowhere = NO_ADDRESS if module else "there is no place for fixups in this guest's address space"
        """Why there is no fixup where the region is empty, as a clause."""

    # -- what an instruction set says ---------------------------------------------------------

    def replacement(self, page: CodePage, site: Found) -> Replacement | None:
        """What may stand in the instruction's place; None where nothing may."""
        return None

    def native(self, page: CodePage, site: Found) -> str:
        """Why the instruction does the same deprivileged as it is, as a clause; "" where it does not."""
        return ""

    @abstractmethod
    def body(self, page: CodePage, site: Found, strategy: str) -> tuple[Tactic, str, Body]:
        """INLINE or HYPERCALL, why, and the fixup, by a strategy that allows fixups. Raises `Refused`."""

    def bodies(self, page: CodePage, site: Found, strategy: str) -> Iterator[tuple[Tactic, str, Body]]:
        """As `body`, where there are several, best first; a later one is asked for where the one before has no room.
        Raises `Refused` where there is no further one."""
        yield self.body(page, site, strategy)

    def prepare(self, take: Callable[[int], int | None]) -> tuple[Fixup, ...]:
        """None."""
        return ()

    def prepared_clobbers(self, fixup: Fixup) -> tuple[str, ...]:
        """There are none."""
        return ()

    def never_run(self, image: Image) -> Sequence[Region]:
        """None."""
        return ()

    def homes(self, image: Image) -> Sequence[Home]:
        """None."""
        return ()

    def survey(self, page: CodePage) -> FixedGround:
        """The page; what it needs is found when it is asked for."""
        return FixedGround(self, page)


class FixedGround:
    """One page; see `bt.tactics.tactics.Ground`."""

    def __init__(self, ladder: FixedLadder, page: CodePage) -> None:
        self._ladder = ladder
        self._tactics = ladder.tactics
        self._page = page

    @cached_property
    def _targets(self) -> int:
        known = self._page.pristine
        return self._tactics.own_targets(self._page.code) | (known.targets if known is not None else 0)

    def choose(self, site: Found, strategy: str, used: int = 0) -> Choice:
        """Climb."""
        ladder, page = self._ladder, self._page
        inline = strategy in ("inline", "auto")
        why = ladder.native(page, site) if inline else ""
        if why:
            return Choice(site, Tactic.SAME, why)
        replacement = ladder.replacement(page, site) if inline else None
        if replacement is not None:
            return Choice(site, Tactic.REPLACED, replacement.reason, code=replacement.code)
        rest = self._last_resort(site)
        if strategy == "trap":
            return rest
        refused: list[str] = []
        try:
            for tactic, reason, body in ladder.bodies(page, site, strategy):
                try:
                    self._check_window(site, body, used)
                    return self._chosen(site, tactic, reason, body, self._draft(body, used))
                except Refused as refusal:
                    refused.append(str(refusal))
        except Refused as refusal:
            refused.append(str(refusal))
        return Choice(site, rest.tactic, rest.reason, "; ".join(dict.fromkeys(refused)), code=rest.code)

    def _chosen(self, site: Found, tactic: Tactic, reason: str, body: Body, draft: BranchDraft) -> Choice:
        placing = Placing.IN_PLACE if body.end - body.start == site.length else Placing.DISPLACED
        if sum(body.start <= other.offset < body.end for other in self._page.scan.sites) > 1:
            placing = Placing.CLUSTER
        if draft.veneer >= 0:
            placing = Placing.PADDING
        refused = _WHY_NOT_BETTER.get(placing, "")
        return Choice(site, tactic, reason, refused, placing, body.start, body.end, draft=draft)

    def _last_resort(self, site: Found) -> Choice:
        if self._tactics.needs_trap(site.code):
            code = self._tactics.trap(site)
            return Choice(site, Tactic.TRAP, "completes in user mode, so it must be made to trap", code=code)
        return Choice(site, Tactic.NATIVE, "exits by itself in user mode")

    def _check_window(self, site: Found, body: Body, used: int) -> None:
        """Whether the bytes that a body stands for may be covered. Raises `Refused`."""
        page = self._page
        inside = (1 << body.end) - (1 << body.start + 1)
        if body.start < 0 or body.end > PAGE:
            raise Refused("the room for a branch crosses the end of its page")
        if used & (inside | 1 << body.start):
            raise Refused("another patch holds what is beside it")
        if body.end - body.start == site.length:
            return  # nothing but the instruction itself
        if page.pristine is None:
            raise Refused("what is beside it would have to move, and not all branches are known here")
        if (self._targets & inside) >> body.start:
            raise Refused("a branch leads into the room for a branch")
        if (page.pristine.taken & inside) >> body.start:
            raise Refused("what is beside it is a place that the kernel looks at or patches itself")
        if body.start < page.entry < body.end:
            raise Refused("execution begins inside the room for a branch")

    def _draft(self, body: Body, used: int) -> BranchDraft:
        """The body with a branch, or two, that reach it wherever in the region it lies. Raises `Refused`."""
        tactics, page, region = self._tactics, self._page, self._ladder.region
        if region.start == region.end:
            raise Refused(self._ladder.nowhere)
        size = tactics.branch_size
        there = self._reaches(page.address + body.start, region)
        back = not body.leaves or self._reaches_back(region, page.address + body.end)
        if there and back:
            return BranchDraft(body, tactics.branch, tactics.branch, size, tactics.fill)
        if not tactics.far_size:
            raise Refused("its fixup is out of a branch's reach")
        leave, leave_size = (tactics.branch, size) if back else (tactics.far_branch, tactics.far_size)
        veneer = -1 if there else self._veneer(body, used)
        return BranchDraft(
            body, tactics.branch, leave, leave_size, tactics.fill, tactics.far_clobbers, veneer, tactics.far_branch
        )

    def _veneer(self, body: Body, used: int) -> int:
        """The nearest padding that holds a far branch and is in reach. Raises `Refused`."""
        return self._find_padding(body, used, self._tactics.far_size)

    def _find_padding(self, body: Body, used: int, size: int) -> int:
        """Offset of the nearest padding of so many bytes that a branch from a body's site reaches. Raises `Refused`."""
        tactics, page = self._tactics, self._page
        taken = page.pristine.taken if page.pristine is not None else -1
        held = used | self._targets | taken | (1 << body.end) - (1 << body.start)
        found = [
            offset
            for start, length in tactics.padding(page)
            for offset in range(start, start + length - size + 1, len(tactics.fill))
            if not held >> offset & (1 << size) - 1
            and self._can_branch(page.address + body.start, page.address + offset)
        ]
        if not found:
            raise Refused(f"its fixup is out of a branch's reach, and there is no padding for a veneer of {size} bytes")
        return min(found, key=lambda offset: (abs(offset - body.start), offset))

    def _reaches(self, source: int, region: Region) -> bool:
        return self._can_branch(source, region.start) and self._can_branch(
            source, region.end - self._tactics.branch_size
        )

    def _reaches_back(self, region: Region, target: int) -> bool:
        return self._can_branch(region.start, target) and self._can_branch(
            region.end - self._tactics.branch_size, target
        )

    def _can_branch(self, source: int, target: int) -> bool:
        try:
            self._tactics.branch(source, target)
        except OutOfReach:
            return False
        return True
