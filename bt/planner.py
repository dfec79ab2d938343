"""`plan`: decides for every site of an image which tactic it gets, and where its fixup lies.

Room: `bt`, the third stage of the house. Decisions are the instruction set's (`bt.tactics`), page by page in ascending
order; here they are put together into a `Plan`. The same image, sites and strategy give the same plan.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

from bt import collector, progress
from bt.pagescan import PAGE, Found
from bt.plan import Plan, PlannedCall, PlannedChange, PlannedFixup, PlannedSite, elf_digest
from bt.pristine import Pristine
from bt.tactics.page import Placed, patch_page
from bt.tactics.registry import tactics_of
from bt.tactics.tactics import (
    STRATEGIES,
    Arena,
    Choice,
    CodePage,
    Home,
    ImagePatch,
    Ladder,
    OutOfReach,
    Patch,
    Placing,
    Tactic,
)
from emulator.errors import UsageError
from paravirt.translator import Fixup

if TYPE_CHECKING:
    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.scan import Site

Chosen = Callable[["Site"], bool]
_ADDRESS = attrgetter("address")


def plan(
    image: Image,
    sites: Sequence[Site],
    mode: str,
    cache: PageCache | None = None,
    chosen: Chosen | None = None,
    chosen_text: str = "",
) -> Plan:
    """Plan an image by the strategy `mode`; `chosen` says which sites are asked for (all where it is None).

    Raises `UsageError` for an unknown strategy.
    """
    if mode not in STRATEGIES:
        raise UsageError(f"there is no strategy {mode!r}; take one of {', '.join(STRATEGIES)}")
    with collector.paused():
        return _Planner(image, mode, cache, chosen).plan(sites, chosen_text)


class _Planner:
    """A plan while it is made."""

    def __init__(self, image: Image, mode: str, cache: PageCache | None, chosen: Chosen | None) -> None:
        self._image = image
        self._mode = mode
        self._chosen = chosen
        self._ladder: Ladder = tactics_of(image.isa.name, image.byte_order).ladder(mode, image, 0, cache)
        self._arena = Arena.of(self._ladder)
        self._fixups = [
            _planned_fixup(fixup, self._ladder.prepared_clobbers(fixup), b"")
            for fixup in self._ladder.prepare(self._arena.take)
        ]
        self._patches: Sequence[ImagePatch] = self._ladder.patches if chosen is None else ()
        self._pristine = Pristine(image, 0, self._patches, cache)
        self._changes: list[PlannedChange] = []
        self._sites: list[PlannedSite] = []

    def plan(self, sites: Sequence[Site], chosen_text: str) -> Plan:
        """Decide all sites, ascending."""
        never_run = self._ladder.never_run(self._image)
        pages: dict[int, list[Site]] = {}
        left: list[Site] = []
        for site in sorted(sites, key=_ADDRESS):
            if any(start <= site.address < end for start, end in never_run):
                left.append(site)
            else:
                pages.setdefault(site.address & -PAGE, []).append(site)
        with progress.stage("planning", len(pages)) as done:
            for address, here in pages.items():
                self._plan_page(address, here)
                done(1)
        self._plan_homes(left)
        return Plan(
            mode=self._mode,
            isa=self._image.isa.name,
            byte_order=self._image.byte_order,
            sha256=elf_digest(self._image),
            sites=tuple(sorted(self._sites, key=_ADDRESS)),
            fixups=tuple(self._fixups),
            changes=_in_order([*self._changes, *self._kernel_changes()]),
            region=self._ladder.region,
            end=self._arena.next,
            chosen=chosen_text,
        )

    def _plan_page(self, address: int, sites: list[Site]) -> None:
        scan = self._pristine.scan(address)
        assert scan is not None
        whole = self._pristine.contents(address)
        padded = whole.ljust(PAGE, b"\0")
        known = self._pristine.page(address)
        page = CodePage(address, address, padded[:PAGE], padded[PAGE:], scan, known, changed=(0, 0))
        chosen, mode = self._chosen, self._mode
        left = set() if chosen is None else {site.address - address for site in sites if not chosen(site)}
        found = [Found(site.address - address, site.length, site.code) for site in sites]
        patched = patch_page(
            page,
            found,
            self._ladder.survey(page),
            lambda one: "" if one.offset in left else mode,
            lambda choice: self._place(page, choice),
        )
        for site, placed in zip(sites, patched.placed, strict=True):
            self._sites.append(_planned(site, placed, address, padded))
            if len(placed.patches) > 1:
                self._changes += _steps(site, placed, address, padded)

    def _place(self, page: CodePage, choice: Choice) -> tuple[int, tuple[Patch, ...]] | None:
        draft = choice.draft
        assert draft is not None
        at = self._arena.place(draft.size)
        try:
            fixup, patches = draft.place(at, page.address)
        except OutOfReach:
            return None
        if self._arena.take(draft.size) is None:
            return None
        window = (page.code + page.after)[choice.start : choice.end]
        self._fixups.append(_planned_fixup(fixup, draft.clobbers, window))
        return at, patches

    def _plan_homes(self, left: list[Site]) -> None:
        """Sites in code that the kernel copies elsewhere: what they get where they run."""
        homes = self._ladder.homes(self._image) if left else ()
        starts = [home.start for home in homes]
        covered: dict[int, tuple[int, int]] = {}
        for site in left:
            index = bisect_right(starts, site.address) - 1
            home = homes[index] if index >= 0 and site.address < homes[index].end else None
            if home is None or (self._chosen is not None and not self._chosen(site)):
                reason = "the kernel copies it over other code, and it is patched there when that runs"
                self._sites.append(_left(site, reason, 0, None, None))
                continue
            self._sites.append(self._plan_home(site, home, covered))

    def _plan_home(self, site: Site, home: Home, covered: dict[int, tuple[int, int]]) -> PlannedSite:
        """The site where it will run. `covered`: end and fixup of the window that takes in what is there, by home."""
        at = home.address + site.address - home.start
        where = f"the kernel copies it to {at:#x} {home.condition}: there "
        end, fixup = covered.get(home.start, (0, 0))
        if at < end:
            return _left(site, f"{where}another site's fixup does it", at, Tactic.COVERED, fixup)
        page = self._home_page(home, at)
        if page is None:
            return _left(site, f"{where}it is patched when that runs", at, None, None)
        found = Found(at - page.address, site.length, site.code)
        if found not in page.scan.sites:
            return _left(site, f"{where}it is patched when that runs", at, None, None)
        choice = self._ladder.survey(page).choose(found, self._mode)
        placed = self._place(page, choice) if choice.draft is not None and len(page.code) else None
        if choice.draft is not None and placed is None:
            choice = self._ladder.survey(page).choose(found, "trap")
        if placed is not None:
            covered[home.start] = page.address + choice.end, placed[0]
        one = _left(site, where + choice.reason, at, choice.tactic, placed[0] if placed else 0)
        return replace(one, refused=choice.refused, placing=choice.placing)

    def _home_page(self, home: Home, at: int) -> CodePage | None:
        """The page around a home as it will be, where the home lies wholly in it."""
        address = at & -PAGE
        scan, page = self._pristine.scan(address), self._pristine.page(address)
        start = home.address - address
        if scan is None or page is None or start < 0 or start + len(home.code) > PAGE:
            return None
        old = self._pristine.contents(address).ljust(PAGE, b"\0")
        new = old[:start] + home.code + old[start + len(home.code) :]
        tactics = tactics_of(self._image.isa.name, self._image.byte_order)
        changed = tactics.rescan_page(old, scan, new, page.boundaries)
        span = start, start + len(home.code)
        return CodePage(address, address, new[:PAGE], new[PAGE:], changed, page, changed=span)

    def _kernel_changes(self) -> Iterable[PlannedChange]:
        for patch in self._patches:
            segment = self._image.segment_at(patch.address)
            if segment is not None:
                offset = segment.file_offset + patch.address - segment.vaddr
                yield PlannedChange(patch.address, offset, patch.old, patch.new, patch.reason)


def _planned_fixup(fixup: Fixup, clobbers: tuple[str, ...], window: bytes) -> PlannedFixup:
    calls = tuple(
        PlannedCall(address, call.site, call.operation.name, call.resume, call.instruction)
        for address, call in sorted(fixup.hypercalls.items())
    )
    return PlannedFixup(fixup.address, fixup.site, fixup.code, clobbers, calls, window)


def _planned(site: Site, placed: Placed, page: int, whole: bytes) -> PlannedSite:
    choice, row = placed.choice, site.row
    start = choice.start
    old = whole[start : choice.end]
    new = old
    if placed.patches:
        code = placed.patches[0].code
        new = code + old[len(code) :]
    # By position: there may be tens of thousands of them.
    return PlannedSite(
        site.address,
        row.name,
        row.at_user_level.value,
        row.operation.name,
        site.symbol,
        site.section,
        site.file_offset,
        page + start,
        old,
        new,
        choice.tactic,
        choice.placing,
        choice.reason,
        choice.refused,
        placed.fixup or 0,
        site.confidence,
        site.reason,
        site.state,
        tuple(page + patch.offset for patch in placed.patches[1:]),
    )


def _steps(site: Site, placed: Placed, page: int, whole: bytes) -> list[PlannedChange]:
    """What changes on the way to a fixup, besides the site itself."""
    return [
        PlannedChange(
            page + offset,
            site.file_offset + page + offset - site.address,
            whole[offset : offset + len(code)],
            code,
            f"on the way from {site.address:#x} to its fixup",
        )
        for offset, code in placed.patches[1:]
    ]


def _left(site: Site, reason: str, home: int, tactic: Tactic | None, fixup: int | None) -> PlannedSite:
    """A site in code that the kernel copies to `home` (0: nobody knows where), where it gets a tactic, if it is known.

    In the file nothing is done.
    """
    return PlannedSite(
        address=site.address,
        instruction=site.row.name,
        behaviour=site.row.at_user_level.value,
        operation=site.row.operation.name,
        symbol=site.symbol,
        section=site.section,
        file_offset=site.file_offset,
        start=site.address,
        old=site.bytes,
        new=site.bytes,
        tactic=tactic or Tactic.LEAVE,
        placing=Placing.NONE,
        reason=reason,
        refused="",
        fixup=fixup or 0,
        confidence=site.confidence,
        confidence_reason=site.reason,
        state=site.state,
        home=home,
    )


def _in_order(changes: Iterable[PlannedChange]) -> tuple[PlannedChange, ...]:
    return tuple(sorted(changes, key=lambda change: change.address))
