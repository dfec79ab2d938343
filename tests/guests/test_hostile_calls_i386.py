"""A para-virtual i386 guest whose own tables are walked asks, between two of its checks, for all that is not its own:
its neighbour's frames, the hypervisor's, its own tables. All is refused and counted, and nothing is harmed."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bt.image import load
from bt.session import Options, Session
from emulator.machine import EndKind, Limits
from paravirt.abi.calls import Call, Status
from paravirt.mmu.direct_host import DirectHost
from paravirt.mmu.frame_types import Refusal
from paravirt.mmu.techniques import PARA_TECHNIQUES

PORT = Path(__file__).parents[2] / "samples/i386/pv.elf"
MEBIBYTE = 1 << 20
DIRECT_MAP, WINDOW = 0xD000_0000, 0xFF20_0000
POOL = 0x140_0000
L1, L2, ROOT, DATA, CALLS = (POOL + 4096 * number for number in range(900, 905))
"""Guest-physical pages that the guest does not use: of its allocator's, which gives the lowest first."""
P, W, U, LARGE = 1, 2, 4, 0x80
RW = P | W
GUESTS_KERNEL = 8 * 3
"""Of a root's entry for the last GiB."""


class Attack:
    """The calls of one guest, in the midst of its work."""

    def __init__(self, driver: Any, neighbour: int, pdpt: int, directory: int, last: int) -> None:
        """`neighbour` is the other's first machine frame; the others are the guest-physical addresses of its root, its
        kernel's directory and its tables of the direct map."""
        self.driver, self.neighbour = driver, neighbour
        self.pdpt, self.directory, self.direct = pdpt, directory, last
        self.memory = driver.machine.memory.view
        self.refused = 0

    def call(self, call: Call, *arguments: int) -> int:
        result = self.driver.call(call, arguments)
        assert isinstance(result, int)
        return result

    def store(self, pointer: int, value: int) -> int:
        struct.pack_into("<QQ", self.memory, CALLS, pointer, value)
        return self.call(Call.PTE_UPDATE, DIRECT_MAP + CALLS, 1)

    def must_not(self, result: int) -> None:
        assert result in (-Status.REFUSED, -Status.INVALID, -Status.BAD_ADDRESS, -Status.UNSUPPORTED)
        self.refused += 1

    def entry_of(self, page: int) -> int:
        return self.direct + page // 4096 * 8

    def build(self) -> None:
        """Tables of its own, hooked into nothing that runs; the kernel's part of the root is the guest's."""
        for page in (L1, L2, ROOT):
            assert self.store(self.entry_of(page), page | P | 0x60) == 1
        pointer = self.driver.shadow.tables.read(self.driver.shadow.tables.machine_frame(self.pdpt >> 12), 3)
        for table, index, entry in (
            (ROOT, 0, L2 | P),
            (ROOT, 3, pointer),
            (L2, 0, L1 | RW | U),
            (L1, 0, DATA | RW | U),
        ):
            struct.pack_into("<Q", self.memory, table + 8 * index, entry)
        assert self.call(Call.PIN, ROOT, 3) == 0

    def foreign_frames(self) -> None:
        domain = self.driver.shadow.tables.domain
        host = self.driver.shadow.technique.host
        frames = [self.neighbour, domain.first - 1, host.first, host.first + 7, domain.first + domain.count]
        frames += [domain.count, 1 << 24, (1 << 24) + (2 << 20), (1 << 40) - 1]
        for frame in frames:
            at = frame << 12
            for pointer, entry in (
                (L1 + 8, at | P), (L1 + 8, at | RW), (L2 + 8, at | RW), (ROOT + 8, at | P),
                (L2 + 8, at & -0x20_0000 | RW | LARGE), (at, 0),
            ):  # fmt: skip
                self.must_not(self.store(pointer, entry))
            if at < 1 << 32:
                for result in (self.call(Call.PIN, at, 1), self.call(Call.NEW_BASE, at, 0), self.call(Call.UNPIN, at)):
                    self.must_not(result)

    def own_tables(self) -> None:
        for table in (L1, L2, ROOT, self.pdpt, self.directory):
            self.must_not(self.store(L1 + 8, table | RW))
            self.must_not(self.store(self.entry_of(table), table | RW | 0x60))
            self.must_not(self.store(L2 + 8, table & -0x20_0000 | RW | LARGE))
        self.must_not(self.store(L2 + 8, L2 | RW))
        self.must_not(self.store(ROOT + 8, ROOT | P))
        self.must_not(self.store(ROOT + 8, self.pdpt | P))
        self.must_not(self.store(ROOT + 8, L1 | P))
        self.must_not(self.store(L2 + 8, DATA | RW))
        self.must_not(self.call(Call.PIN, DATA, 1))
        assert self.store(L1 + 8, L1 | P) == 1, "a table may be read"
        assert self.store(L1 + 8, 0) == 1

    def bits(self) -> None:
        for bit in (52, 58, 53, 62):
            self.must_not(self.store(L1 + 8, DATA | P | 1 << bit))
        for bit in (1, 2, 5, 7, 63):
            self.must_not(self.store(ROOT + 8, L2 | P | 1 << bit))
        for entry in (DATA | 0x2000, self.driver.shadow.tables.domain.count << 12):
            self.must_not(self.store(L2 + 8, entry | RW | LARGE))

    def the_hypervisors_own(self) -> None:
        for place in (WINDOW, WINDOW - 0x20_0000):
            self.must_not(self.store(self.directory + (place >> 21 & 511) * 8, DATA | RW))
        for place in (WINDOW, DIRECT_MAP + L1, 0xFFFF_FFF8, 0):
            self.must_not(self.call(Call.TIME, place))
        self.must_not(self.call(Call.NEW_BASE, ROOT + 32, 0))

    def undo(self) -> None:
        """The pages are data again, as the allocator left them."""
        assert self.call(Call.UNPIN, ROOT) == 0
        for page in (L1, L2, ROOT):
            assert self.store(self.entry_of(page), page | RW | 0x60 | 1 << 63) == 1
        for page in (L1, L2, ROOT, DATA, CALLS):
            self.memory[page : page + 4096] = bytes(4096)


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    made: list[Session] = []
    yield made
    for session in made:
        session.close()


@pytest.mark.parametrize("technique", PARA_TECHNIQUES)
def test_an_i386_guest_is_refused_all_that_is_not_its_own_and_goes_on(sessions: list[Session], technique: str) -> None:
    image, host = load(PORT), DirectHost(128 * MEBIBYTE)
    address_of = image.symbols.address_of
    places = [address_of(name) or 0 for name in ("kernel_pdpt", "kernel_pd", "direct_pt")]
    attacks: list[Attack] = []

    def printed(data: bytes) -> None:
        console.extend(data)
        if data.startswith(b"ok paging.remap"):
            driver: Any = sessions[1].driver
            victim: Any = sessions[0].driver
            first = victim.shadow.tables.domain.first
            attack = Attack(driver, first, *(place - 0xC000_0000 for place in places))
            attacks.append(attack)
            attack.build()
            for part in (attack.foreign_frames, attack.own_tables, attack.bits, attack.the_hypervisors_own):
                part()
            attack.undo()

    console, nothing = bytearray(), bytearray()
    limits = Limits(guest_seconds=60, host_seconds=60)
    for write, group in ((nothing.extend, "exceptions."), (printed, "paging.")):
        options = Options(
            mode="para", memory=64 * MEBIBYTE, technique=technique, command_line=f"only={group}", limits=limits
        )
        sessions.append(Session(image, options, write))
        one: Any = sessions[-1].driver
        one.shadow.technique.host = host
        if len(sessions) == 1:
            assert sessions[0].run().kind is EndKind.POWER_OFF
            before = sessions[0].machine.memory.digest()
    assert sessions[1].run().status == 0
    assert console.endswith(b"8 checks, 0 failed\n")
    assert sessions[0].machine.memory.digest() == before
    driver: Any = sessions[1].driver
    refused = driver.shadow.tables.domain.refused
    assert attacks[0].refused > 90
    assert 80 < refused.total() == driver.shared[0xC10 // 4] <= attacks[0].refused
    assert {Refusal.NO_FRAME, Refusal.FOREIGN, Refusal.WRITABLE_TABLE, Refusal.RESERVED, Refusal.LINEAR} < set(refused)
    assert driver.engine.registers.privilege == 3
