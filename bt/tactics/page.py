"""Patching one page: a tactic for each of its sites, and the page's bytes with them.

Room: `bt/tactics`, the step that a file being rewritten and a page about to run have in common; that they get the
same bytes follows from its being one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bt.pagescan import PAGE, Found, PageScan, branch_targets, mask_of, offsets_of
from bt.tactics.choose import INLINE_CODES, Choice, Tactic, choose
from bt.tactics.layout import apply
from bt.tactics.window import Ground
from bt.textmap import PristinePage


@dataclass(frozen=True, slots=True)
class Placed:
    """What was done at a site."""

    choice: Choice
    fixup: int | None
    """Guest-virtual address of the fixup, for `Tactic.INLINE`."""


@dataclass(frozen=True, slots=True)
class PatchedPage:
    """A page with its patches."""

    code: bytes
    placed: tuple[Placed, ...]
    """One a site, ascending."""
    inside: int
    """Mask of the offsets inside patches, which cannot be entered."""


def patch_page(
    address: int,
    code: bytes,
    sites: Sequence[Found],
    inline: bool,
    ground: Ground | None,
    place: Callable[[Choice], int | None],
    fixed: Callable[[Found], bool] = lambda _: False,
) -> PatchedPage:
    """Patch the page `code` at guest-virtual `address`.

    Without `inline` there are no fixups; `ground` is what `survey` gives. `place` gives a fixup's address, or None when
    it cannot be had; `fixed` says that a site is not to have one.
    """
    result = bytearray(code)
    placed: list[Placed] = []
    inside, covered, owner, owning = 0, 0, 0, 0
    for site in sites:
        if site.offset < covered:
            choice = Choice(site, Tactic.COVERED, f"done by the fixup of the site at {owner:#x}")
            placed.append(Placed(choice, owning))
            continue
        choice = choose(ground, site, inline and not fixed(site))
        fixup = place(choice) if choice.tactic is Tactic.INLINE else None
        if choice.tactic is Tactic.INLINE and fixup is None:
            rest = choose(None, site, False)
            choice = Choice(site, rest.tactic, rest.reason, "no room within a jump's reach is left for its fixup")
        apply(result, address, choice, fixup)
        if choice.tactic is Tactic.INLINE and fixup is not None:
            covered, owner, owning = choice.end, address + site.offset, fixup
            inside |= (1 << choice.end) - (1 << site.offset + 1)
        placed.append(Placed(choice, fixup))
    return PatchedPage(bytes(result), tuple(placed), inside)


def survey(
    address: int,
    whole: bytes,
    scan: PageScan,
    page: PristinePage | None,
    entry: int = -1,
    padded: bool = False,
) -> Ground | None:
    """The page (with what follows it) around its sites, or None where no site could have a fixup."""
    if all(site.code not in INLINE_CODES for site in scan.sites):
        return None
    return Ground(
        address=address,
        code=whole[:PAGE],
        after=whole[PAGE:],
        boundaries=scan.boundaries,
        targets=own_targets(whole, scan) | (page.targets if page is not None else 0),
        taken=page.taken if page is not None else 0,
        entry=entry,
        known=page is not None,
        padded=padded,
    )


def own_targets(whole: bytes, scan: PageScan) -> int:
    """Mask of the page's offsets to which its own direct branches lead."""
    begins = np.append(offsets_of(scan.boundaries), PAGE + scan.overflow)
    leads = branch_targets(np.frombuffer(whole, np.uint8), begins[begins <= len(whole)])
    flags = np.zeros(PAGE, bool)
    flags[leads[(leads >= 0) & (leads < PAGE)]] = True
    return mask_of(flags)
