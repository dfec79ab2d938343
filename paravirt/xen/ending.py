"""The end of a domain: ports are closed, what it had mapped of others is given back, and its frames are the host's.

Room: `paravirt/xen`. A domain may end at any instruction, by itself or by being killed, and leaves others' frames
mapped. Its tables are read once more for these, since nothing of it will unmap them. Frames of its own that another
domain still holds or has mapped keep it from being succeeded on the same frames; all others are cleared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from paravirt.mmu.frame_types import NOBODY, TABLE_1
from paravirt.xen.public import INVALID_FRAME

if TYPE_CHECKING:
    from paravirt.xen.domain import Domain

_FRAME: Final = 0x000F_FFFF_FFFF_F000
_PRESENT, _WRITE = 1, 2
_RELEASED: Final = "@releaseDomain"


def end(domain: Domain) -> bool:
    """Undo what a domain has taken, once; whether its frames are free for another domain."""
    host = domain.host
    if host.domains.get(domain.number) is not domain:
        return False
    domain.set_timer(None)
    domain.repeat_timer(0)
    for back_end in list(domain.back_ends):
        back_end.close()
    domain.events.reset()
    unmap_foreign(domain)
    domain.grants.forget_all()
    del host.domains[domain.number]
    for other in host.domains.values():
        other.settle_tables()
    host.store.remove(f"/local/domain/{domain.number}")
    host.store.tell(_RELEASED)
    if domain.grants.held or mapped_by_others(domain):
        return False
    _free(domain)
    return True


def unmap_foreign(domain: Domain) -> int:
    """Clear the entries of a domain's tables that lead to others' frames; how many there were."""
    frames, number = domain.frames, domain.owned.number
    cleared = 0
    tables = (frames.owner_array == number) & (frames.kind_array == TABLE_1) & (frames.uses_array != 0)
    for at in np.flatnonzero(tables).tolist():
        words = np.frombuffer(domain.page(at + frames.first), dtype=np.uint64)
        targets = ((words & np.uint64(_FRAME)) >> np.uint64(12)).astype(np.int64) - frames.first
        inside = (words & np.uint64(_PRESENT) != 0) & (targets >= 0) & (targets < frames.count)
        foreign = np.flatnonzero(inside)
        foreign = foreign[frames.owner_array[targets[foreign]] != number]
        if not len(foreign):
            continue
        writable = foreign[words[foreign] & np.uint64(_WRITE) != 0]
        frames.leave_many(targets[foreign], targets[writable])
        words[foreign] = 0
        cleared += len(foreign)
    return cleared


def mapped_by_others(domain: Domain) -> bool:
    """Whether another guest has mapped a frame of this one, which it was granted."""
    return any(
        mapping.table.domain is domain
        for other in domain.host.domains.values()
        for mapping in other.grants.mapped.values()
    )


def _free(domain: Domain) -> None:
    """Clear a domain's frames, and let the next one of that size have them."""
    frames, host, owned = domain.frames, domain.host, domain.owned
    at = owned.first - frames.first
    span = slice(at, at + owned.count)
    for array in (frames.uses_array, frames.refs_array, frames.kind_array):
        array[span] = 0
    frames.valid[span] = frames.pinned[span] = bytes(owned.count)
    frames.owner_array[span] = NOBODY
    frames.left_array[span] = frames.flushes
    owned.memory[:] = bytes(owned.memory.nbytes)
    np.frombuffer(host.machine_to_physical, dtype=np.uint64)[owned.first : owned.first + owned.count] = INVALID_FRAME
    host.free.setdefault(owned.count, []).append(owned.first)


__all__ = ["end", "mapped_by_others", "unmap_foreign"]
