"""Grants between two domains: what is granted can be mapped and copied, and nothing else; counts hold."""

from __future__ import annotations

import struct

import pytest

from emulator.machine import Machine
from paravirt.mmu.frame_types import Refused
from paravirt.xen.audit import violations
from paravirt.xen.board import XEN_PV
from paravirt.xen.builder import Piece, XenKernel
from paravirt.xen.grants import GrantError, GrantStatus
from paravirt.xen.host import Host
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.public import Errno

BASE = 0xFFFF_FFFF_8000_0000
PAGES = 1024
KERNEL = XenKernel(
    "grants",
    (Piece(0x100000, memoryview(b"\xeb\xfe"), 0x1000, True), Piece(0x101000, memoryview(b""), 0x40000, False)),
    BASE + 0x100000,
    virtual_base=BASE,
)
ARGUMENT, DATA, HOLE = BASE + 0x101000, BASE + 0x110000, BASE + 0x120000
MAP, UNMAP, SETUP, TRANSFER, COPY, SIZE, REPLACE, SET, STATUS, GET, SWAP = 0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11
GRANT, UPDATE_VA, MMUEXT = 20, 14, 26
SELF = 0x7FF0
HOST_MAP, READ_ONLY = 2, 4


class Pair:
    """Two domains on one host; neither runs, both ask."""

    def __init__(self) -> None:
        size = Host.machine_size(PAGES * 2 << 12) + (64 << 12)
        first = Machine(size, lambda _data: None, platform=XEN_PV)
        second = Machine(size, lambda _data: None, platform=XEN_PV, memory=first.memory)
        self.machines = (first, second)
        self.host = Host(first.memory)
        self.one = XenHypervisor(first, PAGES, number=1, host=self.host)
        self.two = XenHypervisor(second, PAGES, number=2, host=self.host)
        for guest in (self.one, self.two):
            guest.load(KERNEL)

    def close(self) -> None:
        assert violations(self.one.domain) == []
        assert violations(self.two.domain) == []
        for machine in self.machines:
            machine.close()

    def ask(self, guest: XenHypervisor, command: int, request: bytes, count: int = 1) -> bytes:
        guest.access.write(ARGUMENT, request)
        assert guest.call(GRANT, command, ARGUMENT, count, 0, 0) == 0
        return guest.access.read(ARGUMENT, len(request))

    def map(self, reference: int, flags: int = HOST_MAP, who: int = 1, address: int = HOLE) -> tuple[int, int]:
        """Status and handle of domain 2's mapping of a grant."""
        reply = self.ask(self.two, MAP, struct.pack("<QIIHhIQ", address, flags, reference, who, 0, 0, 0))
        status, handle = struct.unpack_from("<hI", reply, 18)
        return status, handle

    def unmap(self, handle: int, address: int = HOLE, command: int = UNMAP, new: int = 0) -> int:
        reply = self.ask(self.two, command, struct.pack("<QQIhxx", address, new, handle, 0))
        return int(struct.unpack_from("<h", reply, 20)[0])

    def frame(self, guest: XenHypervisor, address: int = DATA) -> int:
        return guest.access.translate(address) >> 12

    def copy(self, source: tuple[int, int, int], target: tuple[int, int, int], size: int, flags: int) -> int:
        """Domain 2 copies."""
        request = struct.pack("<QHHxxxxQHHxxxxHHhxx", *source, *target, size, flags, 0)
        return int(struct.unpack_from("<h", self.ask(self.two, COPY, request), 36)[0])


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_granted_frame_is_mapped_written_and_unmapped(pair: Pair) -> None:
    table, frame = pair.one.domain.grants, pair.frame(pair.one)
    table.permit(9, 2, frame)
    status, handle = pair.map(9)
    assert status == GrantStatus.OKAY
    pair.two.access.write(HOLE, b"from two")
    assert pair.one.access.read(DATA, 8) == b"from two"
    assert table._word(table._entry(9), 2) & 0x18 == 0x18  # held to read and to write
    with pytest.raises(Refused):
        pair.one.domain.tables.pin(frame, 1)
    assert violations(pair.one.domain) == []
    assert violations(pair.two.domain) == []
    assert pair.unmap(handle, BASE + 0x121000) == GrantStatus.BAD_ADDRESS
    assert pair.unmap(handle) == GrantStatus.OKAY
    assert pair.unmap(handle) == GrantStatus.BAD_HANDLE
    assert table._word(table._entry(9), 2) == 1
    assert pair.two.call(UPDATE_VA, HOLE, frame << 12 | 0x67, 0, 0, 0) == -Errno.EBUSY
    pair.close()


def test_what_was_not_granted_cannot_be_mapped(pair: Pair) -> None:
    table, frame = pair.one.domain.grants, pair.frame(pair.one)
    table.permit(9, 3, frame)
    table.permit(10, 2, frame, read_only=True)
    table.permit(11, 2, pair.frame(pair.two))
    table.permit(12, 2, pair.one.vcpu.kernel_root)
    assert pair.map(9)[0] == GrantStatus.GENERAL_ERROR  # another domain's
    assert pair.map(10)[0] == GrantStatus.GENERAL_ERROR  # read-only
    assert pair.map(11)[0] == GrantStatus.BAD_PAGE  # not the granter's
    assert pair.map(12)[0] == GrantStatus.GENERAL_ERROR  # a page table
    assert pair.map(13)[0] == GrantStatus.GENERAL_ERROR  # nothing
    assert pair.map(512)[0] == GrantStatus.BAD_REFERENCE
    assert pair.map(9, who=77)[0] == GrantStatus.BAD_DOMAIN
    assert pair.map(10, HOST_MAP | READ_ONLY, address=1 << 40)[0] == GrantStatus.GENERAL_ERROR
    status, handle = pair.map(10, HOST_MAP | READ_ONLY)
    assert status == GrantStatus.OKAY
    assert pair.two.access.entry_address(HOLE)
    assert not pair.two.access.words[pair.two.access.entry_address(HOLE) >> 3] & 2
    assert pair.unmap(handle, command=REPLACE, new=HOLE) == GrantStatus.GENERAL_ERROR
    other = pair.frame(pair.two, BASE + 0x121000)
    assert pair.unmap(handle, command=REPLACE, new=BASE + 0x121000) == GrantStatus.OKAY
    assert pair.frame(pair.two, HOLE) == other
    pair.close()


@pytest.mark.parametrize("entry", [0, 4096, 8192])
def test_a_mapping_that_the_guest_overwrote_cannot_be_unmapped(pair: Pair, entry: int) -> None:
    pair.one.domain.grants.permit(9, 2, pair.frame(pair.one))
    _, handle = pair.map(9)
    value = entry and pair.frame(pair.two, DATA + entry) << 12 | 0x67
    assert pair.two.call(UPDATE_VA, HOLE, value, 0, 0, 0) == 0
    assert pair.unmap(handle) == GrantStatus.GENERAL_ERROR
    pair.close()


def test_bytes_are_copied_from_and_to_grants(pair: Pair) -> None:
    table = pair.one.domain.grants
    table.permit(9, 2, pair.frame(pair.one))
    table.permit(10, 2, pair.frame(pair.one), read_only=True)
    own = pair.frame(pair.two)
    pair.one.access.write(DATA + 100, b"granted")
    assert pair.copy((10, 1, 100), (own, SELF, 7), 7, 1) == 0
    assert pair.two.access.read(DATA + 7, 7) == b"granted"
    pair.two.access.write(DATA, b"back")
    assert pair.copy((own, SELF, 0), (9, 1, 4092), 4, 2) == 0
    assert pair.one.access.read(DATA + 4092, 4) == b"back"
    assert pair.copy((own, SELF, 0), (10, 1, 0), 4, 2) == GrantStatus.GENERAL_ERROR
    assert pair.copy((own, SELF, 4095), (9, 1, 0), 2, 2) == GrantStatus.BAD_COPY
    assert pair.copy((own, 1, 0), (9, 1, 0), 2, 2) == GrantStatus.PERMISSION_DENIED
    assert pair.copy((pair.frame(pair.one), SELF, 0), (9, 1, 0), 2, 2) == GrantStatus.BAD_PAGE
    assert pair.copy((10, 1, 0), (pair.two.vcpu.kernel_root, SELF, 0), 8, 1) == GrantStatus.BAD_PAGE
    assert not table.readers
    assert not table.writers
    pair.close()


def test_a_table_grows_and_says_where_it_is(pair: Pair) -> None:
    reply = pair.ask(pair.one, SIZE, struct.pack("<HxxIIhxx", SELF, 0, 0, 0))
    assert struct.unpack_from("<II", reply, 4) == (1, 32)
    request = struct.pack("<HxxIhxxxxxxQ", SELF, 3, 0, DATA)
    assert struct.unpack_from("<h", pair.ask(pair.one, SETUP, request), 8) == (0,)
    frames = struct.unpack("<3Q", pair.one.access.read(DATA, 24))
    assert list(frames) == pair.one.domain.grants.frames
    for number, who, status in ((33, SELF, -1), (1, 2, -8), (1, 77, -2)):
        request = struct.pack("<HxxIhxxxxxxQ", who, number, 0, DATA)
        assert struct.unpack_from("<h", pair.ask(pair.one, SETUP, request), 8) == (status,)
    with pytest.raises(Refused):
        pair.one.domain.tables.pin(frames[2], 1)  # the hypervisor writes it
    pair.close()


def test_version_2_has_sub_pages_and_says_apart_who_holds_what(pair: Pair) -> None:
    one, table = pair.one, pair.one.domain.grants
    assert pair.ask(one, SET, struct.pack("<I", 2)) == struct.pack("<I", 2)
    assert struct.unpack_from("<I", pair.ask(one, GET, struct.pack("<HxxI", SELF, 0)), 4) == (2,)
    assert table._word(table._entry(1) + 8, 8)  # the store's entry was kept
    frame = pair.frame(one)
    table.permit(9, 2, frame)
    _, handle = pair.map(9)
    assert table._word(table._status(9), 2) == 0x18
    assert table._word(table._entry(9), 2) == 1
    assert one.call(GRANT, SET, ARGUMENT, 1, 0, 0) == -Errno.EINVAL
    one.access.write_word(ARGUMENT, 1, 4)
    assert one.call(GRANT, SET, ARGUMENT, 1, 0, 0) == -Errno.EBUSY
    assert pair.unmap(handle) == 0
    at = table._entry(10)
    table._put(at, 1 | 1 << 8 | 2 << 16 | 16 << 32 | 8 << 48, 8)
    table._put(at + 8, frame, 8)
    one.access.write(DATA + 16, b"eight...")
    own = pair.frame(pair.two)
    assert pair.copy((10, 1, 16), (own, SELF, 0), 8, 1) == 0
    assert pair.copy((10, 1, 15), (own, SELF, 0), 8, 1) == GrantStatus.GENERAL_ERROR
    assert pair.map(10)[0] == GrantStatus.GENERAL_ERROR
    request = struct.pack("<IHhQ", 1, SELF, 0, DATA)
    assert struct.unpack_from("<h", pair.ask(one, STATUS, request), 6) == (0,)
    assert one.access.read_word(DATA) == table.status_frames[0]
    pair.close()


def test_references_are_exchanged_unless_held(pair: Pair) -> None:
    table, frame = pair.one.domain.grants, pair.frame(pair.one)
    table.permit(9, 2, frame)
    assert pair.ask(pair.one, SWAP, struct.pack("<IIhxx", 9, 10, 0))[8:10] == b"\0\0"
    with pytest.raises(GrantError, match="GENERAL_ERROR"):
        table.acquire(9, 2, False)
    held = table.acquire(10, 2, False)
    reply = pair.ask(pair.one, SWAP, struct.pack("<IIhxx", 9, 10, 0))
    assert struct.unpack_from("<h", reply, 8) == (GrantStatus.AGAIN,)
    table.release(held)
    assert pair.one.call(GRANT, TRANSFER, ARGUMENT, 1, 0, 0) == -Errno.EOPNOTSUPP
    assert pair.one.call(GRANT, 99, ARGUMENT, 1, 0, 0) == -Errno.ENOSYS
    assert pair.one.call(GRANT, COPY, 1 << 40, 1, 0, 0) == -Errno.EFAULT
    pair.close()


def test_mappings_run_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paravirt.xen.calls.grants.MOST_MAPPED", 1)
    pair.one.domain.grants.permit(9, 2, pair.frame(pair.one))
    status, handle = pair.map(9)
    assert status == GrantStatus.OKAY
    assert pair.map(9, address=HOLE + 4096)[0] == GrantStatus.NO_DEVICE_SPACE
    assert pair.unmap(handle) == GrantStatus.OKAY
    pair.close()
