"""Shadow tables that are revalidated when the guest flushes, by comparing with a snapshot.

Room: `paravirt/mmu`, a technique. A guest may edit its tables freely: as with a TLB, nothing is noticed until it
flushes. Then a table whose contents differ from the snapshot taken when it was last looked at loses the changed
entries. No store to a guest's table ever exits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.isa.paging import PageWalk
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW

if TYPE_CHECKING:
    from paravirt.mmu.shadow import ShadowPaging

_MOST_INVALIDATED = 256
"""Single translations that were dropped and are remembered; then everything is looked through once."""


class Snapshot:
    """Compares at every flush."""

    name = "snapshot"
    ahead = True

    def __init__(self, shadow: ShadowPaging) -> None:
        self._shadow = shadow
        self._stale: set[int] = set()
        self._invalidated: list[int] = []
        """Addresses of which single translations were dropped; a root that was not in use then drops them when it is
        next: they may have been global, and such a one goes everywhere."""
        self._reached: dict[int, int] = {}
        """By root table, how many of these it has dropped."""
        self._again = False
        """The last of these was invalidated once more, and no root that is not in use has dropped it since."""

    def mirrored(self, table: int) -> None:
        """Its snapshot was just taken."""

    def found(self, table: int) -> None:
        """It may have been out of reach of the roots that were loaded since, and so may what it links: a guest that
        frees and allocates its tables in order builds the same tree again, of the same frames."""
        self._shadow.pool.revalidate_from(table)

    def linked(self, at: int, below: int) -> None:
        """Of no interest."""

    def walked(self, walk: PageWalk) -> None:
        """Of no interest: entries are compared on the way."""

    def root_loaded(self) -> None:
        """What the root's two views reach is compared when each is entered."""
        self._stale = {KERNEL_VIEW, USER_VIEW}

    def flushed_all(self) -> None:
        """Every table is compared."""
        self._shadow.pool.revalidate_all()
        self._stale = set()

    def invalidated(self, address: int) -> None:
        """One path is compared."""
        shadow, dropped, reached = self._shadow, self._invalidated, self._reached
        roots, flush, pages = shadow.roots_of(address), False, 0
        if dropped and dropped[-1] == address:
            self._drop_last_again(roots)
        else:
            if len(dropped) == _MOST_INVALIDATED:
                flush = True
                shadow.pool.revalidate_all()
                dropped.clear()
                reached.clear()
            self._again = False
            dropped.append(address)
        upto = len(dropped)
        for root in roots:
            level = shadow.invalidate_in(root, address)
            if level == 1:
                pages += 1
            elif level:
                flush = True
            if reached.get(root, 0) == upto - 1:
                reached[root] = upto
        if flush:
            shadow.flush_tlb()
        elif pages:
            shadow.flush_page(address, pages)

    def _drop_last_again(self, roots: tuple[int, ...]) -> None:
        """An address that is borrowed is invalidated again and again: it is remembered once, and dropped again by every
        root that did so before, but for those that do it now."""
        if not self._again:
            self._again = True
            reached, upto = self._reached, len(self._invalidated)
            for root, count in reached.items():
                if count == upto and root not in roots:
                    reached[root] = upto - 1

    def entered(self, view: int, roots: tuple[int, ...]) -> None:
        """Drop in the roots in use what was flushed while they were not."""
        if view in self._stale:
            self._stale.discard(view)
            for root in roots:
                self._shadow.pool.revalidate_from(root)
        upto = len(self._invalidated)
        if upto:
            for root in roots:
                if self._reached.get(root, 0) != upto:
                    self._catch_up(roots)
                    return

    def _catch_up(self, roots: tuple[int, ...]) -> None:
        upto, shadow = len(self._invalidated), self._shadow
        for region, root in enumerate(roots):
            since = self._reached.get(root, 0)
            if since != upto:
                for address in self._invalidated[since:]:
                    if shadow.guest.region(address) == region:
                        shadow.invalidate_in(root, address)
                self._reached[root] = upto
                self._again = False

    def forget(self) -> None:
        """All tables are gone."""
        self._invalidated.clear()
        self._reached.clear()
        self._again = False
        self._stale = set()
