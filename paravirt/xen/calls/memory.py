"""Page tables and memory: mmu_update, update_va_mapping, mmuext_op, memory_op.

Room: `paravirt/xen/calls`. Requests are read from guest memory, validated by the domain's tables, and answered by the
errors of Xen's public headers; what was done before a request that is refused stays done, and is counted for the
guest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from paravirt.mmu.frame_types import NOWHERE, WRITABLE, Refusal, Refused
from paravirt.xen import public
from paravirt.xen.access import NotMapped
from paravirt.xen.descriptors import set_local
from paravirt.xen.domain import Domain, error_of
from paravirt.xen.public import DOMID_IO, DOMID_SELF, EXTENDED, INVALID_FRAME, UPDATE, Errno, XenError

if TYPE_CHECKING:
    from paravirt.xen.hypervisor import XenHypervisor

_PREEMPTED: Final = 1 << 31
_MOST: Final = 1 << 16
"""Requests in one call."""
_FRAME: Final = 0x000F_FFFF_FFFF_F000
_INVALID_TARGET: Final = _FRAME >> 12
_RESERVATION = struct.Struct("<QQIIH")
_E820_RAM = 1
_PRESERVING: Final = public.PRESERVING_UPDATE
_NEW_BASE: Final = 5


def own_domain(hypervisor: XenHypervisor, number: int) -> Domain:
    """The domain that a call names, which must be the caller. Raises `XenError`."""
    domain = hypervisor.domain
    if number in (DOMID_SELF, domain.number):
        return domain
    if number == DOMID_IO or number == 0 or hypervisor.host.knows(number):
        raise XenError(Errno.EPERM)
    raise XenError(Errno.ESRCH)


def _update_error(domain: Domain, frame: int, refused: Refused) -> XenError:
    """What an update of an entry in machine frame `frame` returns."""
    domain.owned.refused[refused.reason] += 1
    at = frame - domain.frames.first
    if refused.reason in (Refusal.FOREIGN, Refusal.NO_FRAME) and refused.frame == frame:
        return XenError(Errno.EINVAL)
    if refused.reason is Refusal.NO_FRAME and refused.frame == _INVALID_TARGET:
        return XenError(Errno.EINVAL)
    return error_of(refused, domain.frames.kind[at] if domain.owns(frame) else 4)


def mmu_update(hypervisor: XenHypervisor, requests: int, count: int, done_at: int, who: int, _a5: int) -> int:
    """Change entries of tables, or of the table from machine to pseudo-physical frames."""
    domain = hypervisor.domain
    if who != DOMID_SELF:
        own_domain(hypervisor, who & 0xFFFF)
        if who >> 16 and who >> 16 != domain.number + 1:
            raise XenError(Errno.EPERM)
    count &= _PREEMPTED - 1
    if count > _MOST:
        raise XenError(Errno.E2BIG)
    done = 0
    error: XenError | None = None
    store = domain.tables.store
    try:
        for pointer, value in UPDATE.iter_unpack(domain.access.read(requests, count * 16)):
            kind = pointer & 3
            if kind == public.MACHPHYS_UPDATE:
                _update_machine(domain, pointer >> 12, value)
            elif kind == 3:
                raise XenError(Errno.ENOSYS)
            elif pointer & 4:
                raise XenError(Errno.EINVAL)
            else:
                try:
                    store(pointer >> 12, pointer >> 3 & 511, value, kind == public.PRESERVING_UPDATE)
                except Refused as refused:
                    raise _update_error(domain, pointer >> 12, refused) from None
            done += 1
    except XenError as refusal:
        error = refusal
    batches = hypervisor.batches
    batches[done] = batches.get(done, 0) + 1
    return _ended(domain, done_at, done, error)


def prepare_mmu_update(hypervisor: XenHypervisor) -> Callable[..., int]:
    """`mmu_update`, with the commonest call, of one request, as a closure over everything it touches."""
    domain, batches = hypervisor.domain, hypervisor.batches
    access, tables, frames = domain.access, domain.tables, domain.frames
    words, words32, store, suspects = access.words, access.words32, tables.quick_store, tables.suspects

    def call(requests: int, count: int, done_at: int, who: int, a5: int) -> int:
        if count != 1 or who != DOMID_SELF or requests & 7 or requests & 0xFFF == 0xFF8:
            return mmu_update(hypervisor, requests, count, done_at, who, a5)
        page = access.readable.get(requests >> 12)
        at = (access.translate(requests) if page is None else page | requests & 0xFFF) >> 3
        pointer = words[at]
        kind = pointer & 7
        if kind and kind != _PRESERVING:
            return mmu_update(hypervisor, requests, count, done_at, who, a5)
        try:
            store(pointer >> 12, pointer >> 3 & 511, words[at + 1], kind == _PRESERVING)
        except Refused as refused:
            if done_at:
                access.write_word(done_at, 0, 4)
            raise _update_error(domain, pointer >> 12, refused) from None
        batches[1] += 1
        if suspects or frames.flush_due:
            domain.settle_tables()
        if done_at:
            page = access.writable.get(done_at >> 12)
            if done_at & 3:
                access.write_word(done_at, 1, 4)
            else:
                words32[(access.translate(done_at, True) if page is None else page | done_at & 0xFFF) >> 2] = 1
        return 0

    return call


def _ended(domain: Domain, done_at: int, done: int, error: XenError | None) -> int:
    """The end of a list of requests: how many were done is told, also where one was refused."""
    domain.settle_tables()
    if done_at:
        domain.access.write_word(done_at, done, 4)
    if error is not None:
        raise error
    return 0


def _update_machine(domain: Domain, frame: int, number: int) -> None:
    if not domain.owns(frame):
        raise XenError(Errno.EINVAL)
    domain.host.machine_to_physical[frame] = number


def update_va_mapping(hypervisor: XenHypervisor, address: int, value: int, flags: int, _a4: int, _a5: int) -> int:
    """Change the last-level entry of an address, and flush as asked."""
    domain = hypervisor.domain
    try:
        place = domain.access.entry_address(address)
    except NotMapped:
        raise XenError(Errno.EINVAL) from None
    try:
        domain.tables.store(place >> 12, place >> 3 & 511, value)
    except Refused as refused:
        raise _update_error(domain, place >> 12, refused) from None
    finally:
        domain.settle_tables()
    if flags & 3:
        domain.flush()
    return 0


# -- mmuext_op ----------------------------------------------------------------------------------


def mmuext_op(hypervisor: XenHypervisor, requests: int, count: int, done_at: int, who: int, _a5: int) -> int:
    """Pins, roots, flushes and the rest: one after the other, until one is refused."""
    domain = own_domain(hypervisor, who & 0xFFFF)
    count &= _PREEMPTED - 1
    if count > _MOST:
        raise XenError(Errno.E2BIG)
    done = 0
    error: XenError | None = None
    try:
        for command, first, second in EXTENDED.iter_unpack(domain.access.read(requests, count * 24)):
            operation = hypervisor.extended.get(command)
            if operation is None:
                raise XenError(Errno.ENOSYS)
            try:
                operation(hypervisor, first, second)
            except Refused as refused:
                domain.owned.refused[refused.reason] += 1
                raise XenError(Errno.EINVAL) from None
            done += 1
    except XenError as refusal:
        error = refusal
    return _ended(domain, done_at, done, error)


def prepare_mmuext_op(hypervisor: XenHypervisor) -> Callable[..., int]:
    """`mmuext_op`, with the commonest call, a new root for the kernel and one for user code, as a closure over
    everything it touches."""
    domain, vcpu, operations = hypervisor.domain, hypervisor.vcpu, hypervisor.extended
    access, tables, frames = domain.access, domain.tables, domain.frames
    words, suspects, switch_root, use_kernel_root = (
        access.words,
        tables.suspects,
        tables.switch_root,
        vcpu.use_kernel_root,
    )

    def call(requests: int, count: int, done_at: int, who: int, a5: int) -> int:
        if not 1 <= count <= 2 or who != DOMID_SELF or done_at or requests & 7 or requests & 0xFFF > 4096 - 24 * count:
            return mmuext_op(hypervisor, requests, count, done_at, who, a5)
        page = access.readable.get(requests >> 12)
        at = (access.translate(requests) if page is None else page | requests & 0xFFF) >> 3
        try:
            for place in (at,) if count == 1 else (at, at + 3):
                command, first = words[place] & 0xFFFF_FFFF, words[place + 1]
                if command == _NEW_BASE:
                    old = vcpu.kernel_root
                    if first != old:
                        switch_root(first, old)
                    use_kernel_root(first)
                    continue
                operation = operations.get(command)
                if operation is None:
                    raise XenError(Errno.ENOSYS)
                operation(hypervisor, first, words[place + 2])
        finally:
            if suspects or frames.flush_due:
                domain.settle_tables()
        return 0

    return call


def pin(level: int, hypervisor: XenHypervisor, frame: int, _second: int) -> None:
    """Make a frame a table of a level, and keep it one."""
    hypervisor.domain.tables.pin(frame, level)


def unpin(hypervisor: XenHypervisor, frame: int, _second: int) -> None:
    """Keep it no more."""
    hypervisor.domain.tables.unpin(frame)


def new_base(hypervisor: XenHypervisor, frame: int, _second: int) -> None:
    """The kernel's root is another."""
    domain, vcpu = hypervisor.domain, hypervisor.vcpu
    if frame != vcpu.kernel_root:
        domain.tables.switch_root(frame, vcpu.kernel_root)
    domain.tables.settle()
    vcpu.use_kernel_root(frame)


def new_user_base(hypervisor: XenHypervisor, frame: int, _second: int) -> None:
    """User code's root is another, or none (0)."""
    domain, vcpu = hypervisor.domain, hypervisor.vcpu
    old = vcpu.user_root
    if frame == old:
        return
    if frame:
        domain.tables.use_root(frame)
    vcpu.user_root = frame
    if old:
        domain.tables.leave_root(old)


def flush(hypervisor: XenHypervisor, _first: int, _second: int) -> None:
    """Translations are forgotten: of one address, or all."""
    hypervisor.domain.flush()


def flush_cache(_hypervisor: XenHypervisor, _first: int, _second: int) -> None:
    """There are no caches; a guest without a device may not ask."""
    raise XenError(Errno.EACCES)


def set_ldt(hypervisor: XenHypervisor, address: int, entries: int) -> None:
    """The local descriptor table."""
    set_local(hypervisor.domain, address, entries & 0xFFFF_FFFF)


def _writable(domain: Domain, frame: int) -> memoryview:
    """The bytes of a frame that may be written: the caller's, and neither a table nor descriptors."""
    if not domain.owns(frame):
        raise XenError(Errno.EINVAL)
    at = frame - domain.frames.first
    if domain.frames.uses[at] and domain.frames.kind[at] != WRITABLE:
        raise XenError(Errno.EINVAL)
    return domain.page(frame)


def clear_page(hypervisor: XenHypervisor, frame: int, _second: int) -> None:
    """Store zeros into a frame."""
    _writable(hypervisor.domain, frame)[:] = bytes(4096)
    _written(hypervisor.domain, frame)


def copy_page(hypervisor: XenHypervisor, frame: int, source: int) -> None:
    """Copy a frame into another."""
    domain = hypervisor.domain
    if not domain.owns(source):
        raise XenError(Errno.EINVAL)
    _writable(domain, frame)[:] = domain.page(source)
    _written(domain, frame)


def _written(domain: Domain, frame: int) -> None:
    if frame in domain.watch.contents:
        domain.tables.suspects.add(frame)


# -- memory_op ----------------------------------------------------------------------------------


def decrease_reservation(hypervisor: XenHypervisor, argument: int) -> int:
    """Give frames back to the host; how many were."""
    domain, start, count = _reservation(hypervisor, argument)
    frames = domain.frames
    for done in range(count):
        frame = domain.access.read_word(start + done * 8)
        number = domain.owned.guest[frame - domain.owned.first] if domain.owns(frame) else NOWHERE
        if number == NOWHERE or number >= domain.pages_built:
            return done
        try:
            frames.release(domain.owned, number)
        except Refused:
            return done
        domain.page(frame)[:] = bytes(4096)
        domain.host.machine_to_physical[frame] = INVALID_FRAME
        domain.released.append(frame)
        domain.pages -= 1
    return count


def populate_physmap(hypervisor: XenHypervisor, argument: int) -> int:
    """Take frames of the host behind the pseudo-physical frames that are named; their numbers replace these."""
    return _increase(hypervisor, argument, True)


def increase_reservation(hypervisor: XenHypervisor, argument: int) -> int:
    """Take frames of the host."""
    return _increase(hypervisor, argument, False)


def _increase(hypervisor: XenHypervisor, argument: int, placed: bool) -> int:
    domain, start, count = _reservation(hypervisor, argument)
    for done in range(count):
        if not domain.released or domain.pages >= domain.most_pages:
            return done
        if placed or start:
            wanted = domain.access.read_word(start + done * 8) if placed else INVALID_FRAME
            domain.access.translate(start + done * 8, True)
        frame = domain.released.pop()
        number = domain.free_number()
        domain.frames.give(domain.owned, number, frame)
        domain.pages += 1
        if placed:
            domain.host.machine_to_physical[frame] = wanted
        if start:
            domain.access.write_word(start + done * 8, frame)
    return count


def _reservation(hypervisor: XenHypervisor, argument: int) -> tuple[Domain, int, int]:
    start, count, order, _flags, who = _RESERVATION.unpack(hypervisor.access.read(argument, _RESERVATION.size))
    domain = own_domain(hypervisor, who)
    if order:
        raise XenError(Errno.EPERM)
    return domain, start, min(count, _MOST)


def current_reservation(hypervisor: XenHypervisor, argument: int) -> int:
    """Frames that a domain has."""
    return own_domain(hypervisor, hypervisor.access.read_word(argument, 2)).pages


def maximum_reservation(hypervisor: XenHypervisor, argument: int) -> int:
    """Frames that a domain may have."""
    return own_domain(hypervisor, hypervisor.access.read_word(argument, 2)).most_pages


def maximum_ram_page(hypervisor: XenHypervisor, _argument: int) -> int:
    """The highest machine frame."""
    return hypervisor.host.frame_count - 1


def memory_map(hypervisor: XenHypervisor, argument: int) -> int:
    """What lies where in pseudo-physical memory."""
    access = hypervisor.access
    room, buffer = access.read_word(argument, 4), access.read_word(argument + 8)
    if room < 1:
        raise XenError(Errno.EINVAL)
    access.write(buffer, struct.pack("<QQI", 0, hypervisor.domain.most_pages << 12, _E820_RAM))
    access.write_word(argument, 1, 4)
    return 0


def machphys_mapping(hypervisor: XenHypervisor, argument: int) -> int:
    """Where the table from machine to pseudo-physical frames is."""
    host, start = hypervisor.host, public.MACHINE_TO_PHYSICAL
    size = len(host.machine_to_physical_bytes)
    hypervisor.access.write(argument, struct.pack("<QQQ", start, start + size, host.frame_count - 1))
    return 0
