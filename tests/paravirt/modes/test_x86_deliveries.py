"""A delivery that is done in haste leaves what the processor's leaves, and any that it cannot do is left alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from emulator.isa.x86 import registers as r
from emulator.isa.x86.delivery import FAULT_CLASS, deliver, raise_exception
from emulator.isa.x86.processor import Fault
from paravirt.modes.x86.deliveries import QuickDeliveries
from tests.emulator.guest_image import (
    DATA,
    GDT,
    IDT,
    KERNEL_CODE,
    KERNEL_DATA,
    KERNEL_STACK,
    STUBS,
    TABLES,
    TSS,
    USER_CODE,
    USER_DATA,
)
from tests.paravirt.tiny_guest import TinyGuest

PATTERN = 0x5A5A_5A5A_5A5A_5A5A
OTHER_KERNEL = 0x40
VECTORS = (13, 14, 32, 33)


@pytest.fixture
def guest() -> Iterator[TinyGuest]:
    guest = TinyGuest("f4")
    guest.gate(33, STUBS + 4 * 33, trap=True)
    guest.words[GDT + OTHER_KERNEL >> 3] = guest.words[GDT + KERNEL_CODE >> 3]
    yield guest
    guest.close()


def state(guest: TinyGuest, level: int, rsp: int, flags: int, other: bool = False) -> None:
    """Before a delivery; the stacks have a pattern."""
    vcpu = guest.vcpu
    for at in (KERNEL_STACK - 128, DATA, DATA + 4096 - 64):
        for word in range(at >> 3, (at >> 3) + 24):
            guest.words[word] = PATTERN
    vcpu.set_privilege(level)
    code = OTHER_KERNEL if other else KERNEL_CODE
    vcpu.set_segment(r.CS, USER_CODE if level else code, 0, 0xFFFF_FFFF, 0xA0FB00 if level else 0xA09B00)
    vcpu.set_segment(r.SS, USER_DATA if level else KERNEL_DATA, 0, 0xFFFF_FFFF, 0xC0F300 if level else 0xC09300)
    vcpu.rflags = flags & (r.FLAGS_VALID & ~r.FLAG_VM) | r.FLAG_FIXED
    vcpu.rip, vcpu.gpr[r.RSP], vcpu.cr2 = 0x1234, rsp, 0x77


def stacks(guest: TinyGuest) -> list[int]:
    words = guest.words
    places = (DATA - 4096, DATA + 0x2000), (KERNEL_STACK - 4096, KERNEL_STACK)
    return [word for first, end in places for word in words[first >> 3 : end >> 3]]


def test_what_it_does_is_what_a_delivery_does(guest: TinyGuest) -> None:
    quick, chance, done = QuickDeliveries(guest.vcpu), random.Random(7), 0
    for _ in range(300):
        vector, level = chance.choice(VECTORS), chance.choice((0, 3))
        rsp = DATA + chance.choice((256, 64, 4096 + 64, 40, 32, 4096 + 7, 0))
        flags, other = chance.getrandbits(22), not level and chance.random() < 0.2
        error = chance.choice((None, 0, 0x15))
        resume = vector in FAULT_CLASS
        state(guest, level, rsp, flags, other)
        before, memory = guest.vcpu.state, stacks(guest)
        found = quick.done(vector, error, resume)
        after, stored = guest.vcpu.state, stacks(guest)
        if not found:
            assert (after, stored) == (before, memory)
            continue
        done += 1
        state(guest, level, rsp, flags, other)
        deliver(guest.vcpu, vector, error, resume=resume)
        assert (guest.vcpu.state, stacks(guest)) == (after, stored)
    assert 150 < done < 300


def test_an_exception_has_its_error_code_and_address(guest: TinyGuest) -> None:
    quick = QuickDeliveries(guest.vcpu)
    for fault in (Fault(14, 6, 0x9000), Fault(13), Fault(13, 0x18), Fault(6), Fault(1)):
        state(guest, 3, DATA, r.FLAG_IF)
        assert quick.raised(fault)
        found = guest.vcpu.state, stacks(guest)
        state(guest, 3, DATA, r.FLAG_IF)
        raise_exception(guest.vcpu, fault)
        assert (guest.vcpu.state, stacks(guest)) == found


@pytest.mark.parametrize(
    "what", ["absent", "stack table", "type", "gate limit", "user", "segment", "table", "stack", "task", "page"]
)
def test_what_is_not_as_it_was_or_unusual_is_left_alone(guest: TinyGuest, what: str) -> None:
    vcpu, quick = guest.vcpu, QuickDeliveries(guest.vcpu)
    state(guest, 3, DATA, r.FLAG_IF)
    assert quick.done(32, None, False)
    gate = (IDT >> 3) + 2 * 32
    if what == "absent":
        guest.words[gate] &= ~(1 << 47)
    elif what == "stack table":
        guest.words[gate] |= 1 << 32
    elif what == "type":
        guest.words[gate] ^= 1 << 41
    elif what == "gate limit":
        vcpu.idt_limit = 16 * 33 - 2
    elif what == "user":
        guest.words[gate] ^= (KERNEL_CODE ^ USER_CODE & ~3) << 16
    elif what == "segment":
        guest.words[GDT + KERNEL_CODE >> 3] ^= 1 << 43
    elif what == "table":
        vcpu.gdt_limit = KERNEL_CODE + 6
    elif what == "stack":
        guest.memory[TSS + 4 : TSS + 12] = (1 << 47).to_bytes(8, "little")
    elif what == "task":
        _, base, _, attributes = vcpu.segment(r.TR)
        vcpu.set_segment(r.TR, 0x38, base, 10, attributes)
    else:
        guest.tables.map(KERNEL_STACK - 4096, 0)
        vcpu.forget_translations()
    state(guest, 3, DATA, r.FLAG_IF)
    before, memory = vcpu.state, bytes(guest.memory[:TABLES])
    assert not quick.done(32, None, False)
    assert (vcpu.state, bytes(guest.memory[:TABLES])) == (before, memory)


def test_a_handler_that_changed_is_learnt_anew(guest: TinyGuest) -> None:
    quick = QuickDeliveries(guest.vcpu)
    for handler, trap in ((STUBS + 8, False), (STUBS + 16, True), (STUBS + 8, False)):
        guest.gate(32, handler, trap=trap)
        state(guest, 3, DATA, r.FLAG_IF)
        assert quick.done(32, None, False)
        assert guest.vcpu.rip == handler
        assert guest.vcpu.interrupts_enabled is trap
