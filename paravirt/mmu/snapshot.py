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
        shadow = self._shadow
        flush = len(self._invalidated) == _MOST_INVALIDATED
        if flush:
            shadow.pool.revalidate_all()
            self._invalidated.clear()
            self._reached.clear()
        self._invalidated.append(address)
        pages = 0
        for root in shadow.roots_of(address):
            level = shadow.invalidate_in(root, address)
            flush |= level > 1
            pages += level == 1
            if self._reached.get(root, 0) == len(self._invalidated) - 1:
                self._reached[root] = len(self._invalidated)
        if flush:
            shadow.flush_tlb()
        elif pages:
            shadow.flush_page(address, pages)

    def entered(self, view: int, roots: tuple[int, ...]) -> None:
        """Drop in the roots in use what was flushed while they were not."""
        if view in self._stale:
            self._stale.discard(view)
            for root in roots:
                self._shadow.pool.revalidate_from(root)
        if self._invalidated:
            self._catch_up(roots)

    def _catch_up(self, roots: tuple[int, ...]) -> None:
        upto, shadow = len(self._invalidated), self._shadow
        for region, root in enumerate(roots):
            since = self._reached.get(root, 0)
            if since != upto:
                for address in self._invalidated[since:]:
                    if shadow.guest.region(address) == region:
                        shadow.invalidate_in(root, address)
                self._reached[root] = upto

    def forget(self) -> None:
        """All tables are gone."""
        self._invalidated.clear()
        self._reached.clear()
        self._stale = set()
