"""A saved machine's page tables: what it says its frames are used as is counted anew, and a lie is found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from paravirt.mmu.direct_audit import adopt, count
from tests.paravirt.mmu.direct_guest import COUNT, FIRST, L2, LARGE, RW, Made, P, U, chain

FOREIGN = FIRST + 3 * COUNT - 1
"""A machine frame of the other domain."""


def made() -> Made:
    """A pinned root, and three tables below it, of which the last one maps twenty pages."""
    guest = Made()
    chain(guest)
    guest.pin(4, 4)
    return guest


def again(guest: Made) -> None:
    """Count everything as for a machine that is put back."""
    levels, pinned = guest.claims()
    count(guest.tables, levels, pinned, guest.roots)


Lie = Callable[[Made, "np.ndarray[tuple[int], np.dtype[np.uint8]]"], None]
LIES: dict[str, tuple[Lie, str]] = {
    "another's frame": (lambda guest, _: guest.put(1, 3, FOREIGN << 12 | RW | U), "is not the guest's"),
    "the hypervisor's frame": (lambda guest, _: guest.put(2, 3, FIRST << 12 | RW | U), "is not the guest's"),
    "no frame at all": (lambda guest, _: guest.put(1, 3, 1 << 44 | RW | U), "is not the guest's"),
    "a table mapped writable": (
        lambda guest, _: guest.put(1, 3, guest.machine(2) << 12 | RW | U),
        "maps a page table writable",
    ),
    "a table of no type": (lambda _, levels: levels.__setitem__(1, 0), "leads to what is no page table of level 1"),
    "a table of another level": (lambda _, levels: levels.__setitem__(2, 1), "leads to what is no page table"),
    "a table that nothing uses": (lambda _, levels: levels.__setitem__(9, 2), "frame 0x9 is used by nothing"),
    "a page the kernel may not reach": (
        lambda guest, _: guest.put(1, 3, guest.machine(103) << 12 | RW),
        "none that a guest may have",
    ),
    "a large page of others": (
        lambda guest, _: guest.put(2, 5, FOREIGN >> 9 << 21 | LARGE | RW | U),
        "maps more than the guest's memory",
    ),
    "a table open to writes as its own page": (
        lambda guest, _: guest.put(2, 5, guest.machine(2) << 12 | RW | U),
        "can be written through",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_machine_that_says_its_frames_are_something_else_is_refused(name: str) -> None:
    guest = made()
    again(guest)
    lie, told = LIES[name]
    levels, pinned = guest.claims()
    lie(guest, levels)
    with pytest.raises(ValueError, match=told):
        count(guest.tables, levels, pinned, guest.roots)


def test_tables_of_one_level_that_lead_to_each_other_in_a_chain_are_refused() -> None:
    guest = made()
    guest.put(8, 0, 1 << 12 | RW)
    guest.put(9, 0, 1 << 12 | RW)
    guest.pin(8, L2)
    guest.pin(9, L2)
    guest.put(8, 1, guest.machine(9) << 12 | P | U)
    again(guest)
    guest.put(9, 1, guest.machine(2) << 12 | P | U)
    with pytest.raises(ValueError, match="in a chain"):
        again(guest)


@pytest.mark.parametrize("root", [FIRST, FOREIGN, FIRST + COUNT + 3])
def test_a_root_that_is_none_is_refused(root: int) -> None:
    guest = made()
    levels, pinned = guest.claims()
    with pytest.raises(ValueError, match="root"):
        count(guest.tables, levels, pinned, [root])


def test_what_is_put_back_is_counted_and_refused_as_before() -> None:
    guest, other = made(), Made()
    levels, pinned = guest.claims()
    other.domain.memory[:] = guest.domain.memory
    adopt(other.tables, count(other.tables, levels, pinned, []))
    other.check()
    other.tables.unpin(other.machine(4))
    guest.tables.unpin(guest.machine(4))
    other.check()
    assert other.domain.memory == guest.domain.memory
