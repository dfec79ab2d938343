"""Guests that take turns: one wakes another, and the end of one is not that of the other."""

from __future__ import annotations

import pytest

from emulator.machine import EndKind, Limits, Machine, Outcome
from paravirt.xen.board import XEN_PV
from paravirt.xen.builder import Piece, XenKernel
from paravirt.xen.host import Host
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.public import Shared
from paravirt.xen.together import Together

BASE = 0xFFFF_FFFF_8000_0000
PORT_AT, REASON_AT, OUT_AT = BASE + 0x101000, BASE + 0x101008, BASE + 0x101010


def call(number: int, what: int, argument: int) -> bytes:
    """mov eax, number; mov edi, what; mov rsi, argument; syscall"""
    return (
        b"\xb8" + number.to_bytes(4, "little") + b"\xbf" + what.to_bytes(4, "little") + b"\x48\xbe"
        + argument.to_bytes(8, "little") + b"\x0f\x05"
    )  # fmt: skip


SEND, BLOCK, END = call(32, 4, PORT_AT), call(29, 1, 0), call(29, 2, REASON_AT)
FOREVER = b"\xeb\xfe"


class Pair:
    """Two guests with these kernels, and a port between them."""

    def __init__(self, *codes: bytes) -> None:
        size = Host.machine_size(8 << 20) + (64 << 12)
        limits = Limits(guest_seconds=1)
        first = Machine(size, lambda _data: None, platform=XEN_PV, limits=limits)
        second = Machine(size, lambda _data: None, platform=XEN_PV, memory=first.memory, limits=limits)
        self.machines = (first, second)
        host = Host(first.memory)
        self.guests = []
        for number, (machine, code) in enumerate(zip(self.machines, codes, strict=True), start=1):
            guest = XenHypervisor(machine, 1024, number=number, host=host)
            pieces = (
                Piece(0x100000, memoryview(code + FOREVER), 0x1000, True),
                Piece(0x101000, memoryview(bytes(64)), 0x4000, False),
            )
            guest.load(XenKernel("turns", pieces, BASE + 0x100000, virtual_base=BASE))
            self.guests.append(guest)
        one, two = (guest.domain.events for guest in self.guests)
        offered = one.allocate_unbound(2)
        bound = two.bind_interdomain(one, offered)
        for guest, port in zip(self.guests, (offered, bound), strict=True):
            events = guest.domain.events
            events.words[events.shared_at + Shared.MASK >> 3] = 0
            events.words[events.shared_at + Shared.PENDING >> 3] = 0
            events.view[events.shared_at] = 0
            guest.access.write_word(PORT_AT, port, 4)

    def run(self) -> list[EndKind]:
        outcomes = Together(self.guests).run()
        for machine in self.machines:
            machine.close()
        return [outcomes[number].kind for number in (1, 2)]


@pytest.mark.parametrize("swapped", [False, True])
def test_one_guest_wakes_another(swapped: bool) -> None:
    codes = [BLOCK + SEND + BLOCK + END, SEND + BLOCK + END]
    assert Pair(*(codes[::-1] if swapped else codes)).run() == [EndKind.POWER_OFF, EndKind.POWER_OFF]


def test_who_waits_for_what_cannot_come_has_halted_and_others_go_on() -> None:
    assert Pair(BLOCK + END, END).run() == [EndKind.HALTED, EndKind.POWER_OFF]


def test_a_guest_that_never_waits_leaves_others_their_turns() -> None:
    assert Pair(FOREVER, END).run() == [EndKind.GUEST_TIMEOUT, EndKind.POWER_OFF]


def test_who_is_asked_to_end_while_it_waits_ends_so() -> None:
    pair = Pair(BLOCK + END, FOREVER)
    waits = pair.guests[0]
    asked = iter(range(1 << 30))

    def stop() -> bool:
        """As a command's: by the driver's outcome, which somebody else may have set."""
        if next(asked) == 5:
            waits.end(Outcome(EndKind.INTERRUPTED))
        return waits.outcome is not None

    waits.machine.stop_when = stop
    assert pair.run() == [EndKind.INTERRUPTED, EndKind.GUEST_TIMEOUT]
