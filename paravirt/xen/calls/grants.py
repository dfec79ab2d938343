"""grant_table_op: tables are set up, and others' grants mapped, unmapped and copied from and to.

Room: `paravirt/xen/calls`. Requests as grant_table.h has them, each with a status of its own; a call fails as a whole
only where its pointer does. What a grant is, is `paravirt.xen.grants`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from paravirt.mmu.frame_types import TABLE_1, WRITABLE
from paravirt.xen.domain import Domain
from paravirt.xen.grants import MOST_FRAMES, MOST_MAPPED, PAGE, Grant, GrantError, GrantStatus, GrantTable, Mapping
from paravirt.xen.public import DOMID_SELF, Errno, XenError

if TYPE_CHECKING:
    from paravirt.xen.hypervisor import XenHypervisor

_MOST: Final = 1 << 14
"""Requests in one call."""
_DEVICE, _HOST, _READ_ONLY, _BY_ENTRY = 1, 2, 4, 16
_PRESENT, _WRITE, _USER, _USED, _NO_EXECUTE = 1, 2, 4, 0x60, 1 << 63
_COPY = struct.Struct("<QHHxxxxQHHxxxxHHhxx")
_FROM_GRANT, _TO_GRANT = 1, 2


def _each(hypervisor: XenHypervisor, argument: int, count: int, size: int, one: Callable[[int], None], at: int) -> int:
    """Do each request, and store its status at offset `at`. Raises `XenError`."""
    access = hypervisor.access
    if count >= 1 << 31:
        raise XenError(Errno.EINVAL)
    if count > _MOST:
        raise XenError(Errno.E2BIG)
    for number in range(count):
        request = argument + number * size
        access.read(request, size)
        access.translate(request + at, True)
        status = GrantStatus.OKAY
        try:
            one(request)
        except GrantError as error:
            status = error.status
        access.write_word(request + at, status, 2)
    return 0


def _domain(hypervisor: XenHypervisor, number: int) -> Domain:
    """A domain by number. Raises `GrantError`."""
    if number == DOMID_SELF:
        return hypervisor.domain
    found = hypervisor.host.domains.get(number)
    if found is None:
        raise GrantError(GrantStatus.BAD_DOMAIN)
    return found


def _table(hypervisor: XenHypervisor, number: int) -> GrantTable:
    """The table of a domain that may have granted something. Domain 0, which is the hypervisor's own back ends here,
    has granted nothing to anybody. Raises `GrantError`."""
    if not number and number not in hypervisor.host.domains:
        raise GrantError(GrantStatus.GENERAL_ERROR)
    return _domain(hypervisor, number).grants


def _own(hypervisor: XenHypervisor, number: int) -> GrantTable:
    """The caller's own table. Raises `GrantError`."""
    if not number and number not in hypervisor.host.domains:
        raise GrantError(GrantStatus.PERMISSION_DENIED)
    domain = _domain(hypervisor, number)
    if domain is not hypervisor.domain:
        raise GrantError(GrantStatus.PERMISSION_DENIED)
    return domain.grants


# -- the table ----------------------------------------------------------------------------------


def _write_frames(hypervisor: XenHypervisor, pointer: int, frames: list[int]) -> None:
    try:
        hypervisor.access.write(pointer, struct.pack(f"<{len(frames)}Q", *frames))
    except XenError:
        raise GrantError(GrantStatus.BAD_ADDRESS) from None


def setup_table(hypervisor: XenHypervisor, argument: int, count: int) -> int:
    """The table has so many frames: which ones."""
    if count != 1:
        raise XenError(Errno.EINVAL)

    def one(request: int) -> None:
        who, number, _status, frames = struct.unpack("<HxxIhxxxxxxQ", hypervisor.access.read(request, 24))
        table = _own(hypervisor, who)
        table.grow(number)
        _write_frames(hypervisor, frames, table.frames[:number])

    return _each(hypervisor, argument, count, 24, one, 8)


def query_size(hypervisor: XenHypervisor, argument: int, count: int) -> int:
    """How many frames the table has, and may have."""
    if count != 1:
        raise XenError(Errno.EINVAL)

    def one(request: int) -> None:
        table = _own(hypervisor, hypervisor.access.read_word(request, 2))
        hypervisor.access.write(request + 4, struct.pack("<II", len(table.frames), MOST_FRAMES))

    return _each(hypervisor, argument, count, 16, one, 12)


def status_frames(hypervisor: XenHypervisor, argument: int, count: int) -> int:
    """The frames in which version 2 says how grants are used."""
    if count != 1:
        raise XenError(Errno.EINVAL)

    def one(request: int) -> None:
        number, who, _status, frames = struct.unpack("<IHhQ", hypervisor.access.read(request, 16))
        table = _own(hypervisor, who)
        if number > len(table.status_frames) or table.version != 2:
            raise GrantError(GrantStatus.GENERAL_ERROR)
        _write_frames(hypervisor, frames, table.status_frames[:number])

    return _each(hypervisor, argument, count, 16, one, 6)


def set_version(hypervisor: XenHypervisor, argument: int, count: int) -> int:
    """Choose version 1 or 2."""
    if count != 1:
        raise XenError(Errno.EINVAL)
    access, table = hypervisor.access, hypervisor.domain.grants
    version = access.read_word(argument, 4)
    access.translate(argument, True)
    table.set_version(version)
    access.write_word(argument, table.version, 4)
    return 0


def get_version(hypervisor: XenHypervisor, argument: int, count: int) -> int:
    """Which version is in use."""
    if count != 1:
        raise XenError(Errno.EINVAL)
    access = hypervisor.access
    who = access.read_word(argument, 2)
    try:
        table = _own(hypervisor, who)
    except GrantError as error:
        raise XenError(Errno.ESRCH if error.status is GrantStatus.BAD_DOMAIN else Errno.EPERM) from None
    access.write_word(argument + 4, table.version, 4)
    return 0


def swap(hypervisor: XenHypervisor, argument: int, count: int) -> int:
    """Exchange two entries."""

    def one(request: int) -> None:
        hypervisor.domain.grants.swap(*struct.unpack("<II", hypervisor.access.read(request, 8)))

    return _each(hypervisor, argument, count, 12, one, 8)


# -- mappings -----------------------------------------------------------------------------------


def _entry_place(domain: Domain, address: int, by_entry: bool) -> int:
    """Machine address of the last-level entry that is meant. Raises `GrantError`."""
    place = address
    if not by_entry:
        try:
            place = domain.access.entry_address(address)
        except XenError:
            raise GrantError(GrantStatus.GENERAL_ERROR) from None
    frame, frames = place >> 12, domain.frames
    if place & 7 or not domain.owns(frame):
        raise GrantError(GrantStatus.GENERAL_ERROR)
    at = frame - frames.first
    if frames.kind[at] != TABLE_1 or not frames.uses[at]:
        raise GrantError(GrantStatus.GENERAL_ERROR)
    return place


def map_(hypervisor: XenHypervisor, argument: int, count: int) -> int:
    """Map frames that others granted."""
    access, domain = hypervisor.access, hypervisor.domain

    def one(request: int) -> None:
        address, flags, reference, who = struct.unpack("<QIIH", access.read(request, 18))
        access.translate(request + 24, True)
        access.translate(request + 31, True)
        if not flags & (_DEVICE | _HOST):
            raise GrantError(GrantStatus.BAD_REFERENCE)
        if len(domain.grants.mapped) >= MOST_MAPPED:
            raise GrantError(GrantStatus.NO_DEVICE_SPACE)
        table = _table(hypervisor, who)
        place = _entry_place(domain, address, flags & _BY_ENTRY != 0) if flags & _HOST else 0
        grant = table.acquire(reference, domain.number, not flags & _READ_ONLY)
        if place:
            entry = grant.frame << 12 | _PRESENT | _USER | _USED | _NO_EXECUTE | (_WRITE if grant.write else 0)
            domain.tables.store_granted(place >> 12, place >> 3 & 511, entry)
        handle = domain.grants.remember(Mapping(table, grant, place, flags & _DEVICE != 0))
        access.write_word(request + 20, handle, 4)
        access.write_word(request + 24, grant.frame << 12)

    result = _each(hypervisor, argument, count, 32, one, 18)
    domain.settle_tables()
    domain.access.forget()
    return result


def _unmap(domain: Domain, handle: int, address: int, machine: int, new: int) -> None:
    """Take back a mapping: by `address` the guest's entry, by `machine` the device's; with the last of them it ends."""
    mapping = domain.grants.mapped.get(handle)
    if mapping is None:
        raise GrantError(GrantStatus.BAD_HANDLE)
    by_machine = machine != 0 and mapping.device
    if by_machine and machine != mapping.grant.frame << 12:
        raise GrantError(GrantStatus.BAD_DEVICE_ADDRESS)
    if address and mapping.place:
        place = mapping.place
        # The guest names the entry as it named it when it mapped: by the address, or by the entry's own.
        if address != place and _entry_place(domain, address, False) != place:
            raise GrantError(GrantStatus.BAD_ADDRESS)
        _entry_place(domain, place, True)
        entry = domain.host.words[place >> 3]
        if not entry & _PRESENT or (entry & 0x000F_FFFF_FFFF_F000) >> 12 != mapping.grant.frame:
            raise GrantError(GrantStatus.GENERAL_ERROR)
        if (entry & _WRITE != 0) != mapping.grant.write:  # the guest has put another entry there
            raise GrantError(GrantStatus.GENERAL_ERROR)
        replacement = 0
        if new:
            source = _entry_place(domain, new, False)
            if source == place:
                raise GrantError(GrantStatus.GENERAL_ERROR)
            replacement = domain.host.words[source >> 3]
            domain.host.words[source >> 3] = 0  # its reference goes with it
        domain.tables.store_granted(place >> 12, place >> 3 & 511, replacement, taken=True)
        mapping.place = 0
    if by_machine:
        mapping.device = False
    if not mapping.place and not mapping.device:
        del domain.grants.mapped[handle]
        mapping.table.release(mapping.grant)


def _unmap_each(hypervisor: XenHypervisor, argument: int, count: int, replace: bool) -> int:
    domain = hypervisor.domain

    def one(request: int) -> None:
        address, second, handle = struct.unpack("<QQI", hypervisor.access.read(request, 20))
        _unmap(domain, handle, address, 0 if replace else second, second if replace else 0)

    try:
        return _each(hypervisor, argument, count, 24, one, 20)
    finally:
        domain.access.forget()
        domain.flush()


def unmap(hypervisor: XenHypervisor, argument: int, count: int) -> int:
    """Unmap them."""
    return _unmap_each(hypervisor, argument, count, False)


def unmap_and_replace(hypervisor: XenHypervisor, argument: int, count: int) -> int:
    """Unmap, and have what another address maps there instead."""
    return _unmap_each(hypervisor, argument, count, True)


# -- copies -------------------------------------------------------------------------------------


def _side(hypervisor: XenHypervisor, granted: bool, what: int, who: int, write: bool) -> tuple[GrantTable, Grant]:
    """One end of a copy, held. Raises `GrantError`."""
    domain = hypervisor.domain
    if granted:
        table = _table(hypervisor, who)
        return table, table.acquire(what, domain.number, write, whole=False)
    if who not in (DOMID_SELF, domain.number):
        raise GrantError(GrantStatus.PERMISSION_DENIED)
    # A frame of the caller's own is named by its machine frame.
    frames = domain.frames
    if not domain.owns(what):
        raise GrantError(GrantStatus.BAD_PAGE)
    at = what - frames.first
    if write and frames.uses[at] and frames.kind[at] != WRITABLE:
        raise GrantError(GrantStatus.BAD_PAGE)
    return domain.grants, Grant(-1, what, write)


def copy(hypervisor: XenHypervisor, argument: int, count: int) -> int:
    """Copy bytes between frames, each the caller's own or granted to it."""

    def one(request: int) -> None:
        source, source_domain, source_at, target, target_domain, target_at, size, flags, _status = _COPY.unpack(
            hypervisor.access.read(request, _COPY.size)
        )
        if source_at + size > PAGE or target_at + size > PAGE:
            raise GrantError(GrantStatus.BAD_COPY)
        sides: list[tuple[GrantTable, Grant]] = []
        try:
            sides.append(_side(hypervisor, flags & _FROM_GRANT != 0, source, source_domain, False))
            sides.append(_side(hypervisor, flags & _TO_GRANT != 0, target, target_domain, True))
            for (_table, grant), start in zip(sides, (source_at, target_at), strict=True):
                if start < grant.start or start + size > grant.end:
                    raise GrantError(GrantStatus.GENERAL_ERROR)
            view = hypervisor.host.view
            start, end = sides[0][1].frame * PAGE + source_at, sides[1][1].frame * PAGE + target_at
            view[end : end + size] = bytes(view[start : start + size])
            owner, written = sides[1][0].domain, sides[1][1].frame
            if written in owner.watch.contents:
                owner.tables.suspects.add(written)
        finally:
            for table, grant in sides:
                if grant.reference >= 0:
                    table.release(grant)

    result = _each(hypervisor, argument, count, 40, one, 36)
    for domain in hypervisor.host.domains.values():
        domain.settle_tables()
    return result
