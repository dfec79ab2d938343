"""Descriptor tables of a Xen guest: pages that the processor reads, of which every descriptor was looked at.

Room: `paravirt/xen`. A guest's segments of code and data run at level 3, whatever it asked for; anything that is no
segment is refused, gates to wherever among them. A page that is in use so cannot be mapped writable
(`paravirt.mmu.frame_types`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from paravirt.mmu.frame_types import Refused
from paravirt.xen.access import NotMapped
from paravirt.xen.public import LOCAL_DESCRIPTORS, PAGE, Errno, XenError
from paravirt.xen.space import GUEST_PAGES, LOCAL_PAGES

if TYPE_CHECKING:
    from paravirt.xen.domain import Domain

_PRESENT, _SEGMENT, _LEVEL = 1 << 47, 1 << 44, 3 << 45
_LDT = 6
_LDT_ATTRIBUTES: Final = 0x8200


def at_level_3(word: int) -> int:
    """A descriptor as it is stored: a present segment has level 3."""
    return word | _LEVEL if word & _PRESENT and word & _SEGMENT else word


def use_page(domain: Domain, frame: int) -> None:
    """A machine frame is about to be read by the processor as descriptors. Raises `XenError`."""
    if not domain.owns(frame):
        raise XenError(Errno.EINVAL)
    at = frame - domain.frames.first
    if not domain.frames.uses[at]:
        words = np.frombuffer(domain.page(frame), dtype=np.uint64)
        segments = words & np.uint64(_PRESENT | _SEGMENT) == np.uint64(_PRESENT | _SEGMENT)
        words[segments] |= np.uint64(_LEVEL)
    try:
        domain.descriptor_pages.use(frame)
    except Refused as refused:
        domain.owned.refused[refused.reason] += 1
        raise XenError(Errno.EINVAL) from None


def set_table(domain: Domain, frames: tuple[int, ...]) -> None:
    """These machine frames are the guest's part of the descriptor table. Raises `XenError`, with nothing changed."""
    if len(frames) > GUEST_PAGES:
        raise XenError(Errno.EINVAL)
    taken: list[int] = []
    try:
        for frame in frames:
            use_page(domain, frame)
            taken.append(frame)
    except XenError:
        for frame in taken:
            domain.descriptor_pages.leave(frame)
        raise
    vcpu = domain.vcpu
    for frame in vcpu.descriptor_frames:
        domain.descriptor_pages.leave(frame)
    for page in range(GUEST_PAGES):
        domain.space.map_descriptors(page, frames[page] if page < len(frames) else None)
    vcpu.descriptor_frames = frames
    vcpu.forget_segments()
    domain.flush()


def update(domain: Domain, machine_address: int, word: int) -> None:
    """Store one descriptor at a machine address. Raises `XenError`."""
    frame, index = machine_address >> 12, machine_address >> 3 & 511
    if machine_address & 7 or not domain.owns(frame):
        raise XenError(Errno.EINVAL)
    frames, at = domain.frames, frame - domain.frames.first
    word = at_level_3(word)
    allowed = domain.tables.form.descriptors
    if allowed is None or not allowed(np.array([word], dtype=np.uint64)).all():
        raise XenError(Errno.EINVAL)
    try:
        if frames.uses[at] and frames.kind[at] <= 4:
            raise XenError(Errno.EINVAL)
        if frames.uses[at] and frames.valid[at]:
            domain.descriptor_pages.store(frame, index, word)
        else:
            domain.tables.store(frame, index, word)
    except Refused as refused:
        domain.owned.refused[refused.reason] += 1
        raise XenError(Errno.EINVAL) from None
    domain.vcpu.forget_segments()


def set_local(domain: Domain, base: int, entries: int) -> None:
    """The local descriptor table is at guest-virtual `base`; its pages are taken when the processor wants them."""
    if entries > LOCAL_PAGES * 512 or (entries and base & PAGE - 1):
        raise XenError(Errno.EINVAL)
    vcpu = domain.vcpu
    for page, frame in vcpu.local_frames.items():
        domain.descriptor_pages.leave(frame)
        domain.space.map_local(page, None)
    vcpu.local_frames.clear()
    vcpu.local_base, vcpu.local_entries = (base, entries) if entries else (0, 0)
    if entries:
        vcpu.registers.set_segment(_LDT, 0xE040, LOCAL_DESCRIPTORS, entries * 8 - 1, _LDT_ATTRIBUTES)
    else:
        vcpu.registers.set_segment(_LDT, 0, 0, 0, 0)
    vcpu.forget_segments()
    domain.flush()


def fault_local(domain: Domain, address: int) -> bool:
    """The processor wants a page of the local descriptor table; False where there is none that it may have."""
    vcpu = domain.vcpu
    page = address - LOCAL_DESCRIPTORS >> 12
    if not 0 <= page < LOCAL_PAGES or page * 512 >= vcpu.local_entries or page in vcpu.local_frames:
        return False
    try:
        frame = domain.access.translate(vcpu.local_base + page * PAGE) >> 12
        use_page(domain, frame)
    except (NotMapped, XenError):
        return False
    vcpu.local_frames[page] = frame
    domain.space.map_local(page, frame)
    vcpu.forget_segments()
    domain.settle_tables()
    return True
