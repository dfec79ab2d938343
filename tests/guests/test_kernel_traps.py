"""A guest's kernel loads null segments where a fixup has no room: without an exit once it does so
often, and with one whatever is not so, or is somebody's to see.

Skipped, with the reason that the engine gives, where KVM cannot be had.
"""

from __future__ import annotations

import pytest

from tests.emulator.guest_image import KERNEL_DATA
from tests.guests.test_stops_within_faults import BACK, CALLED, Guest

pytestmark = pytest.mark.kvm
PAGES = 60
PLAIN, BEHIND = CALLED[: CALLED.index(BACK)], CALLED[CALLED.index(BACK) + len(BACK) :]


def called(code: str) -> str:
    """What the kernel does at a system call: this before it goes back. RAX and RDX are kept."""
    code = f"50 52 {code} 5a 58"
    far = len(bytes.fromhex(code + BACK)).to_bytes(4, "little").hex()
    return PLAIN.replace(f"74{len(bytes.fromhex(BACK)):02x}", "0f84" + far) + code + BACK + BEHIND


def counts(guest: Guest, name: str) -> tuple[int, int]:
    """How often something exited, and was done inside."""
    found = guest.hypervisor.exits.counts
    return found.get((name, "trap"), 0) + found.get((name, "chained"), 0), found.get((name, "inside"), 0)


@pytest.mark.parametrize("watched", [False, True])
def test_null_segments_need_no_exit_where_nobody_watches(watched: bool) -> None:
    # xor edx, edx; mov fs, edx; there: test edx, edx; jnz there; mov es, edx; there: ...
    guest = Guest(PAGES, called("31d2 8ee2 85d2 75fc 8ec2 85d2 75fc"))
    if watched:
        guest.hypervisor.observe = lambda *_event: None
    try:
        guest.run(PAGES)
    finally:
        guest.machine.close()
    exits, inside = counts(guest, "WRITE_SEGMENT_SELECTOR")
    assert (inside == 0) is watched
    if not watched:
        assert inside >= 2 * PAGES
        assert exits < 100


def test_a_segment_that_is_loaded_with_something_exits_and_so_does_what_takes_it_away() -> None:
    # mov edx, KERNEL_DATA; again: mov es, edx; there: test edx, edx; jnz there, but once: mov ecx, es; xor edx, edx; ..
    selector = KERNEL_DATA.to_bytes(4, "little").hex()
    guest = Guest(PAGES, called(f"ba{selector} 8ec2 83fa01 72fb 8cc1 01ca 29ca 31d2 8ec2 83fa01 73fb"))
    try:
        guest.run(PAGES)
    finally:
        guest.machine.close()
    exits, inside = counts(guest, "WRITE_SEGMENT_SELECTOR")
    assert exits >= 2 * PAGES
    assert inside == 0
