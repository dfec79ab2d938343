"""Random hypercalls of a Xen guest, its own tables, others' frames and nonsense: every count holds afterwards."""

from __future__ import annotations

import random
import struct
from contextlib import suppress

import pytest

from emulator.machine import Machine
from paravirt.mmu.frame_types import Refused
from paravirt.xen.access import GuestAccess, NotMapped
from paravirt.xen.audit import violations
from paravirt.xen.board import XEN_PV
from paravirt.xen.builder import Piece, XenKernel
from paravirt.xen.host import Host
from paravirt.xen.hypervisor import XenHypervisor

BASE = 0xFFFF_FFFF_8000_0000
MEMORY = 8 << 20
ROUNDS = 1500
KERNEL = XenKernel(
    "fuzz",
    (Piece(0x100000, memoryview(b"\xeb\xfe"), 0x1000, True), Piece(0x101000, memoryview(b""), 0x40000, False)),
    BASE + 0x100000,
    virtual_base=BASE,
)
BUFFER = BASE + 0x101000
OTHER_ROOT = BASE + 0x102000 + 24 * 4096
PAGES = [BASE + 0x102000 + page * 4096 for page in range(24)]
MMU_UPDATE, SET_GDT, UPDATE_DESCRIPTOR, MEMORY_OP, UPDATE_VA, GRANTS, VCPU_OP, MMUEXT = 1, 2, 10, 12, 14, 20, 24, 26
SET_DEBUG = 8
MAP, UNMAP, SETUP, REPLACE, SET_VERSION = 0, 1, 2, 7, 8
SELF = 0x7FF0


class Fuzz:
    """One guest, and a source of calls."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        machine = Machine(Host.machine_size(MEMORY), lambda _data: None, platform=XEN_PV)
        self.machine = machine
        self.guest = XenHypervisor(machine, MEMORY >> 12)
        self.guest.load(KERNEL)
        access = self.guest.access
        root = self.guest.vcpu.kernel_root
        words = access.words
        third = words[root * 512 + 511] >> 12 & 0xFFFF_FFFF
        second = words[third * 512 + 510] >> 12 & 0xFFFF_FFFF
        first = words[second * 512] >> 12 & 0xFFFF_FFFF
        other = access.translate(OTHER_ROOT) >> 12
        words[other * 512 : other * 512 + 512] = words[root * 512 : root * 512 + 512]
        assert self.guest.call(UPDATE_VA, OTHER_ROOT, other << 12 | 1, 2, 0, 0) == 0
        self.guest.domain.tables.pin(other, 4)
        self.roots = [root, other]
        self.tables = [root, third, second, first, other]
        self.data = [access.translate(page) >> 12 for page in PAGES]
        self.others = [0, 1, self.guest.host.frame_count - 1, 1 << 40, self.guest.domain.shared_frame]

    def frame(self) -> int:
        return self.random.choice(self.random.choice([self.tables, self.data, self.data, self.others]))

    def entry(self) -> int:
        flags = self.random.choice([0, 1, 3, 5, 7, 0x67, 0x65, 0x27 | 1 << 63, 0x87, 1 << 59 | 7])
        return self.frame() << 12 | flags if flags else 0

    def buffer(self, data: bytes) -> int:
        """The calls' arguments, put past all rights: the page may have become anything."""
        if self.guest.vcpu.kernel_root not in self.roots:
            self.guest.extended[5](self.guest, self.tables[0], 0)
        frame = self.guest.access.words[self.guest.access.entry_address(BUFFER) >> 3] >> 12 & 0xFFFF_FFFF
        self.guest.host.view[frame << 12 : (frame << 12) + len(data)] = data
        return BUFFER

    def step(self) -> None:
        pick, guest = self.random, self.guest
        kind = pick.randrange(11)
        if kind < 3:
            count = pick.randrange(1, 5)
            requests = b""
            for _ in range(count):
                pointer = self.frame() << 12 | pick.randrange(1, 250) << 3 | pick.choice([0, 0, 0, 1, 2, 3, 4])
                requests += struct.pack("<QQ", pointer, self.entry())
            guest.call(MMU_UPDATE, self.buffer(requests), count, 0, SELF, 0)
        elif kind == 3:
            command = pick.choice([0, 0, 1, 2, 3, 4, 4, 4, 5, 6, 13, 15, 16, 17, 99])
            first = self.frame() if command != 13 else pick.choice(PAGES)
            if command == 4 and first in self.roots:
                command = 6  # they stay roots: one that is cleared maps nothing that calls could read
            request = struct.pack("<IIQQ", command, 0, first, self.frame() if command == 17 else 8)
            count = pick.choice([1, 1, 2])
            if count == 2:
                request += struct.pack("<IIQQ", pick.choice([5, 15, 15]), 0, pick.choice([0, *self.tables]), 0)
            guest.call(MMUEXT, self.buffer(request), count, 0, SELF, 0)
        elif kind == 4:
            guest.call(UPDATE_VA, pick.choice(PAGES), self.entry(), pick.randrange(3), 0, 0)
        elif kind == 5:
            count = pick.randrange(3)
            frames = struct.pack(f"<{count}Q", *(self.frame() for _ in range(count)))
            guest.call(SET_GDT, self.buffer(frames), count * 512, 0, 0, 0)
        elif kind == 6:
            guest.call(UPDATE_DESCRIPTOR, self.frame() << 12 | pick.randrange(4096), pick.getrandbits(64), 0, 0, 0)
        elif kind == 7:
            self._grants()
        elif kind == 8:
            lists = struct.pack("<QQIIH6x", BUFFER + 128, 2, 0, 0, SELF) + struct.pack(
                "<QQIIH6xQ", BUFFER + 160, 2, 0, 0, SELF, pick.randrange(3)
            )
            numbers = struct.pack("<QQ16xQQ", self.frame(), self.frame(), pick.randrange(64), pick.randrange(64))
            guest.call(MEMORY_OP, 11, self.buffer(lists.ljust(128, b"\0") + numbers), 0, 0, 0)
        elif kind == 9:
            value = pick.choice([*PAGES, 0, 0xF0303, 0xD0001, 1 << 47])
            guest.call(SET_DEBUG, pick.randrange(9), value, 0, 0, 0)
        else:
            listed = BUFFER + 64
            request = struct.pack("<QQIIH", listed, 1, 0, 0, SELF).ljust(64, b"\0") + struct.pack("<Q", self.frame())
            guest.call(MEMORY_OP, pick.choice([0, 1, 6]), self.buffer(request), 0, 0, 0)

    def _grants(self) -> None:
        pick, guest = self.random, self.guest
        table = guest.domain.grants
        for reference in range(8, 11):
            if reference not in table.readers and reference not in table.writers:
                table.permit(reference, guest.domain.number, self.frame() & 0xFFFF_FFFF, pick.randrange(2) == 1)
        what = pick.choice([MAP, MAP, MAP, UNMAP, UNMAP, UNMAP, SETUP, REPLACE, SET_VERSION])
        address = pick.choice([0, *PAGES])
        if what == MAP:
            who = pick.choice([SELF, SELF, guest.domain.number, 0, 9])
            request = struct.pack("<QIIH22x", address, pick.randrange(8), pick.randrange(7, 12), who)
        elif what in (UNMAP, REPLACE):
            handle = pick.choice([*table.mapped, 0])
            second = pick.choice([0, *PAGES]) if what == REPLACE else pick.choice([0, self.frame() << 12])
            request = struct.pack("<QQI12x", address, second, handle)
        elif what == SETUP:
            request = struct.pack("<HxxIhxxxxxxQ", SELF, pick.randrange(4), 0, BUFFER + 64)
        else:
            request = struct.pack("<I28x", pick.randrange(4))
        guest.call(GRANTS, what, self.buffer(request), 1, 0, 0)

    def stale(self) -> list[int]:
        """Pages of which another translation is kept than a walk gives, in any root."""
        kept, walk = self.guest.access, GuestAccess(self.guest.host.view)
        wrong = []
        for root, (readable, writable) in kept.known():
            walk.use_root(root)
            for known, write in ((readable, False), (writable, True)):
                for page, machine in known.items():
                    try:
                        found = walk.translate(page << 12, write)
                    except NotMapped:
                        found = -1
                    if found != machine:
                        wrong.append(page)
        return wrong


@pytest.mark.parametrize("seed", range(6))
def test_counts_hold_behind_random_calls(seed: int) -> None:
    fuzz = Fuzz(seed)
    most_roots = 0
    try:
        for number in range(ROUNDS):
            fuzz.step()
            if number % 3 == 0:
                with suppress(Refused):
                    fuzz.guest.extended[5](fuzz.guest, fuzz.random.choice(fuzz.roots), 0)
            for page in fuzz.random.sample(PAGES, 3):  # as calls' pointers do
                with suppress(NotMapped):
                    fuzz.guest.access.translate(page, fuzz.random.randrange(2) == 1)
            assert fuzz.stale() == []
            most_roots = max(most_roots, sum(bool(readable) for _root, (readable, _) in fuzz.guest.access.known()))
            if number % 250 == 0:
                assert violations(fuzz.guest.domain) == []
        assert violations(fuzz.guest.domain) == []
        assert sum(fuzz.guest.domain.owned.refused.values()) > ROUNDS // 10
        assert fuzz.guest.domain.tables.validated > 5
        assert most_roots == 2
    finally:
        fuzz.machine.close()
