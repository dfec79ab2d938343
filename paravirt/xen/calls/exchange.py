"""XENMEM_exchange: frames of the caller's own are given for others.

Room: `paravirt/xen/calls`. As memory.h has it: lists of extents in and out, of sizes of their own, which amount to the
same; how many of the first list were exchanged is told, also where one is refused. A frame that anything refers to is
not taken. Frames that lie together are only given where the host has some: it keeps none back for that.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from paravirt.mmu.frame_types import NOWHERE, Refused
from paravirt.xen.calls.memory import own_domain
from paravirt.xen.public import HYPERVISOR_END, Errno, XenError

if TYPE_CHECKING:
    from paravirt.xen.domain import Domain
    from paravirt.xen.hypervisor import XenHypervisor

_EXTENTS = struct.Struct("<QQIIHxxxxxx")
"""One list: where it is, how many, of which order, flags, whose."""
_DONE: Final = 2 * _EXTENTS.size
_LOWER_HALF: Final = 1 << 47
_MOST_ORDER: Final = 9
"""Xen's default for guests without a device."""


def exchange(hypervisor: XenHypervisor, argument: int) -> int:
    """Exchange frames. Raises `XenError`."""
    access = hypervisor.access
    contents = access.read(argument, _DONE + 8)
    given, count, order, _flags, who = _EXTENTS.unpack_from(contents)
    taken, wanted, wanted_order, _flags, whose = _EXTENTS.unpack_from(contents, _EXTENTS.size)
    done = int.from_bytes(contents[_DONE:], "little")
    if max(order, wanted_order) > _MOST_ORDER:
        raise XenError(Errno.EPERM)
    if done > count or who != whose or count << order != wanted << wanted_order or count >> 64 - _MOST_ORDER:
        raise XenError(Errno.EINVAL)
    for start, size in ((given, count), (taken, wanted)):
        if not (start + size * 8 <= _LOWER_HALF or HYPERVISOR_END <= start <= (1 << 64) - size * 8):
            raise XenError(Errno.EFAULT)
    domain = own_domain(hypervisor, who)
    chunk = max(order, wanted_order)
    try:
        for _ in range(domain.most_pages):  # nobody has more to exchange in one call
            if done >= count:
                break
            _exchange_one(hypervisor, domain, (given, done, order), (taken, done << order, wanted_order), chunk)
            done += 1 << chunk - order
    finally:
        domain.settle_tables()
        access.write_word(argument + _DONE, done)
    return 0


def _exchange_one(
    hypervisor: XenHypervisor, domain: Domain, given: tuple[int, int, int], taken: tuple[int, int, int], chunk: int
) -> None:
    """Exchange 2**`chunk` frames: all, or none."""
    access, frames = hypervisor.access, domain.frames
    start, at, order = given
    numbers = []
    for place in range(at, at + (1 << chunk - order)):
        first = access.read_word(start + place * 8)
        for frame in range(first, first + (1 << order)):
            number = domain.owned.guest[frame - domain.owned.first] if domain.owns(frame) else NOWHERE
            if (
                number == NOWHERE
                or number >= domain.pages_built
                or number in numbers
                or frames.refs[frame - frames.first]
            ):
                raise XenError(Errno.EINVAL)
            numbers.append(number)
    start, at, order = taken
    places = range(start + (at >> order) * 8, start + ((at >> order) + (1 << chunk - order)) * 8, 8)
    wanted = [access.read_word(place) for place in places]
    for place in places:
        access.translate(place, True)
    if order and chunk:
        raise XenError(Errno.ENOMEM)  # what lies together belongs to somebody
    for number, place, physical in zip(numbers, places, wanted, strict=True):
        try:
            domain.released.append(frames.release(domain.owned, number))
        except Refused:  # not after what was looked at above
            raise XenError(Errno.EINVAL) from None
        frame = domain.released.pop(0)  # another, where the domain has given some back before
        frames.give(domain.owned, number, frame)
        domain.page(frame)[:] = bytes(4096)
        domain.host.machine_to_physical[frame] = physical
        access.write_word(place, frame)


__all__ = ["exchange"]
