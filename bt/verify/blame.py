"""Which fixup is to blame: runs with ever fewer fixups until one alone makes the difference.

Room: `bt/verify`. A plan is data: a site whose tactic is changed to the trap runs without its fixup, and everything
else stays where it was. So a wrong fixup is found by halving, in as many runs as the number of sites has digits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bt.plan import Plan, PlannedSite
from bt.planner import plan
from bt.scan import scan
from bt.tactics.tactics import Tactic
from bt.verify import run_and_compare
from bt.verify.show import disassemble

if TYPE_CHECKING:
    from bt.session import Options
    from bt.verify import Verification


WITH_FIXUPS = (Tactic.INLINE, Tactic.HYPERCALL, Tactic.REPLACED)
"""What stands for an instruction without being a trap."""


@dataclass(frozen=True, slots=True)
class Blame:
    """What the search found."""

    runs: int
    """How many it took."""
    site: PlannedSite | None
    """The site whose fixup makes the difference; None where the runs differ without any."""
    isa: str = "x86-64"
    order: str = "little"
    """The image's byte order."""

    def lines(self) -> Sequence[str]:
        """For people."""
        if self.site is None:
            return (
                f"after {self.runs} runs: the runs differ without the fixups of the image's sites, too; look at what "
                "is patched before the start, at code written at run time, and at the traps",
            )
        site = self.site
        return (
            f"after {self.runs} runs: without the fixup at {site.address:#x} <{site.symbol}> ({site.instruction}) the "
            "runs agree, with it they do not",
            *(f"    {line}" for line in disassemble(site.old, site.address, self.isa, order=self.order)),
        )


def blame(
    verification: Verification, options: Options, say: Callable[[str], None] = lambda _: None, mode: str = "inline"
) -> Blame:
    """Find the site by whose fixup a run by the strategy `mode` parts from the reference.

    Takes it for granted that of the sites in ascending order one alone is enough; of several it finds one.
    """
    whole = plan(verification.guest.image, scan(verification.guest.image), mode)
    inline = [site for site in whole.sites if site.tactic in WITH_FIXUPS]
    runs = 0

    def agree(count: int) -> bool:
        nonlocal runs
        runs += 1
        say(f"{verification.guest.name}: {count} of {len(inline)} sites with fixups")
        kept = frozenset(site.address for site in inline[:count])
        return run_and_compare(verification, options, mode, without(whole, kept)).passed

    if not agree(0):
        return Blame(runs, None)
    good, bad = 0, len(inline)
    while bad - good > 1:
        middle = (good + bad) // 2
        if agree(middle):
            good = middle
        else:
            bad = middle
    image = verification.guest.image
    return Blame(runs, inline[bad - 1] if inline else None, image.isa.name, image.byte_order)


def without(whole: Plan, kept: frozenset[int]) -> Plan:
    """The plan with a fixup at the sites in `kept` only; at the others stands what would without fixups.

    What a fixup does besides for sites behind its own stands or falls with it.
    """
    fixups = {site.fixup for site in whole.sites if site.address in kept}

    def stays(site: PlannedSite) -> bool:
        if site.tactic is Tactic.COVERED:
            return site.fixup in fixups
        return site.address in kept or site.tactic not in WITH_FIXUPS

    # A trap with a fixup says that the page is made anew when it runs, not taken from the plan (`bt.planned`).
    sites = tuple(
        site if stays(site) else replace(site, tactic=Tactic.TRAP, fixup=site.fixup or site.address)
        for site in whole.sites
    )
    return replace(whole, sites=sites)
