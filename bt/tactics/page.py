"""Patching one page: a tactic for each of its sites, and the page's bytes with them.

Room: `bt/tactics`, the step that a file being rewritten and a page about to run have in common; that they get the
same bytes follows from its being one function. Knows no instruction set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bt.pagescan import PAGE, Found
from bt.tactics.tactics import ONLY_PLANT, PLANT, Choice, CodePage, Ground, Patch, Tactic


@dataclass(frozen=True, slots=True)
class Placed:
    """What was done at a site."""

    choice: Choice
    fixup: int | None = None
    """Guest-virtual address of the fixup, where there is one."""
    patches: tuple[Patch, ...] = ()
    """What changed; the first is the site's own."""


@dataclass(frozen=True, slots=True)
class PatchedPage:
    """A page with its patches."""

    code: bytes
    placed: tuple[Placed, ...]
    """One a site, ascending."""
    inside: int
    """Mask of the offsets inside patches, which cannot be entered."""


Place = Callable[[Choice], "tuple[int, tuple[Patch, ...]] | None"]
"""Gives a fixup its address: that and the patches that lead to it, or None where it cannot be had."""


def patch_page(
    page: CodePage,
    sites: Sequence[Found],
    ground: Ground,
    strategy: Callable[[Found], str],
    place: Place,
) -> PatchedPage:
    """Patch a page. `strategy` says for each site what is allowed ("" leaves it alone)."""
    code = bytearray(page.code)
    placed: list[Placed] = []
    inside = covered = used = planted = 0
    for site in sites:
        if strategy(site) in (PLANT, ONLY_PLANT):  # no other site's fixup may do it
            planted |= _span(site.offset, site.offset + site.length)
    owner, owning = 0, 0
    for site in sites:
        allowed = strategy(site)
        if site.offset < covered:
            reason = f"done by the fixup of the site at {page.address + owner:#x}"
            placed.append(Placed(Choice(site, Tactic.COVERED, reason), owning))
            continue
        if not allowed:
            placed.append(Placed(Choice(site, Tactic.LEAVE, "it was not chosen")))
            continue
        one = _decide(site, allowed, ground, used if allowed == PLANT else used | planted, place)
        choice = one.choice
        used |= _span(site.offset, site.offset + site.length)
        for number, patch in enumerate(one.patches):
            start, new = patch
            end = start + len(new)
            code[start:end] = new
            used |= _span(start, end)
            if number:
                inside |= _span(start, end)
        if one.fixup is not None or choice.tactic is Tactic.REPLACED:
            start, end = choice.start, choice.end
            if choice.tactic is not Tactic.REPLACED:  # what was replaced in place can be entered where it could before
                inside |= _span(start + 1, end)
            covered, owner, owning = end, site.offset, one.fixup or 0
        placed.append(one)
    return PatchedPage(bytes(code[:PAGE]), tuple(placed), inside)


def _decide(site: Found, allowed: str, ground: Ground, used: int, place: Place) -> Placed:
    """The best tactic that finds a place."""
    choice = ground.choose(site, allowed, used)
    if choice.draft is None:
        return Placed(choice, None, (Patch(choice.start, choice.code),) if choice.code else ())
    found = place(choice)
    if found is not None:
        return Placed(choice, *found)
    choice = ground.choose(site, "trap", used)
    choice = replace(choice, refused="no room within a branch's reach is left for its fixup")
    return Placed(choice, None, (Patch(choice.start, choice.code),) if choice.code else ())


def _span(start: int, end: int) -> int:
    return (1 << end) - (1 << start) if end > start else 0
