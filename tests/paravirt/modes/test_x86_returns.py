"""An IRETQ that is done in haste leaves what the instruction leaves, and any that it cannot do is left alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from emulator.isa.x86 import registers as r
from emulator.isa.x86.processor import Fault
from emulator.isa.x86.transfer import iret
from paravirt.modes.x86.returns import QuickReturns
from tests.emulator.guest_image import DATA, USER_CODE, USER_DATA
from tests.paravirt.tiny_guest import TinyGuest

USUAL = r.FLAG_IF | r.FLAG_FIXED
KERNEL = 0xFFFF_FFFF_8100_0000


@pytest.fixture
def guest() -> Iterator[TinyGuest]:
    guest = TinyGuest("f4")
    yield guest
    guest.close()


def kernel_state(guest: TinyGuest, frame: tuple[int, ...], offset: int = 0) -> None:
    vcpu = guest.vcpu
    vcpu.set_privilege(0)
    vcpu.set_segment(r.CS, 0x10, 0, 0xFFFF_FFFF, 0xA09B00)
    vcpu.set_segment(r.SS, 0, 0, 0xFFFF_FFFF, 0xC09300)
    vcpu.rflags = r.FLAG_FIXED
    vcpu.gpr[r.RSP] = DATA + offset
    for number, word in enumerate(frame):
        vcpu.write(DATA + offset + 8 * number, 8, word)


def learnt(guest: TinyGuest) -> QuickReturns:
    returns = QuickReturns(guest.vcpu)
    for index in (r.ES, r.DS, r.FS, r.GS):
        guest.vcpu.set_segment(index, 0, 0, 0, 0)
    kernel_state(guest, (0x1000, USER_CODE, USUAL, 0x2000, USER_DATA))
    assert not returns.done()
    iret(guest.vcpu, 8)
    returns.learn()
    return returns


def test_what_it_does_is_what_iretq_does(guest: TinyGuest) -> None:
    returns, chance, done = learnt(guest), random.Random(3), 0
    for _ in range(300):
        flags = USUAL | chance.choice((0, 1, r.FLAG_RF, r.FLAG_DF | r.FLAG_AC, r.FLAG_TF, chance.getrandbits(22)))
        frame = (
            chance.choice((0x1234, 0x4321, 0x7FFF_FFFF_FFFF, 0x8000_0000_0000, 0xFFFF_8000_0000_0000)),
            chance.choice((*(USER_CODE,) * 9, 0x10, USER_DATA, 0)),
            flags,
            chance.getrandbits(64),
            chance.choice((*(USER_DATA,) * 9, 0, 3, USER_CODE)),
        )
        offset = chance.choice((0, 8, 16, 4, 4096 - 40, 4096 - 32))
        kernel_state(guest, frame, offset)
        before = guest.vcpu.state
        quick = returns.done()
        after = guest.vcpu.state
        if not quick:
            assert after == before
            continue
        done += 1
        kernel_state(guest, frame, offset)
        iret(guest.vcpu, 8)
        assert guest.vcpu.state == after
    assert 30 < done < 200


@pytest.mark.parametrize("what", ["descriptor", "limit", "data segment", "nested", "level"])
def test_what_is_not_as_it_was_is_left_to_iretq(guest: TinyGuest, what: str) -> None:
    returns, vcpu = learnt(guest), guest.vcpu
    kernel_state(guest, (0x1000, USER_CODE, USUAL, 0x2000, USER_DATA))
    if what == "descriptor":
        at = vcpu.gdt_base + (USER_CODE & ~7)
        vcpu.write(at, 8, vcpu.read(at, 8) & ~(1 << 47))
    elif what == "limit":
        vcpu.gdt_limit = (USER_CODE & ~7) - 1
    elif what == "data segment":
        vcpu.set_segment(r.FS, USER_DATA, 0, 0xFFFF_FFFF, 0xC0F300)
    elif what == "nested":
        vcpu.rflags |= r.FLAG_NT
    else:
        vcpu.set_privilege(3)
    assert not returns.done()
    if what in ("descriptor", "limit", "nested"):
        with pytest.raises(Fault):
            iret(vcpu, 8)


def user_state(guest: TinyGuest, segments: list[tuple[int, int, int, int]], offset: int) -> None:
    """As the virtual CPU is while user code's kernel runs that was entered without an exit."""
    vcpu = guest.vcpu
    for index, segment in zip((r.CS, r.SS), segments, strict=True):
        vcpu.set_segment(index, *segment)
    vcpu.set_privilege(3)
    vcpu.rflags, vcpu.rip = USUAL | r.FLAG_DF, 0x9000
    vcpu.gpr[r.RSP] = DATA + offset


def test_what_it_does_at_user_code_is_what_iretq_does_where_interrupts_stay_enabled(guest: TinyGuest) -> None:
    returns, chance, done = learnt(guest), random.Random(5), 0
    vcpu = guest.vcpu
    segments = [vcpu.segment(index) for index in (r.CS, r.SS)]
    for _ in range(400):
        flags = chance.choice((USUAL, USUAL | r.FLAG_AC, r.FLAG_FIXED, USUAL | r.FLAG_NT, chance.getrandbits(22)))
        frame = (
            chance.choice((0x1234, 0x7FFF_FFFF_FFFF, 0x8000_0000_0000)),
            chance.choice((*(USER_CODE,) * 9, 0x10)),
            flags,
            chance.getrandbits(64),
            chance.choice((*(USER_DATA,) * 9, 0, 3)),
        )
        offset = chance.choice((0, 8, 4, 4096 - 40, 4096 - 32))
        kernel_state(guest, frame, offset)
        expected = returns.done() and bool(flags & r.FLAG_IF)
        after = vcpu.state
        user_state(guest, segments, offset)
        before = vcpu.state
        assert returns.again() is expected
        assert vcpu.state == (after if expected else before)
        done += expected
    assert 20 < done < 200


@pytest.mark.parametrize("index", [r.CS, r.SS])
def test_user_code_in_other_segments_is_left_to_iretq(guest: TinyGuest, index: int) -> None:
    returns, vcpu = learnt(guest), guest.vcpu
    segments = [vcpu.segment(index) for index in (r.CS, r.SS)]
    kernel_state(guest, (0x1000, USER_CODE, USUAL, 0x2000, USER_DATA))
    user_state(guest, segments, 0)
    selector, base, limit, attributes = vcpu.segment(index)
    vcpu.set_segment(index, selector, base, limit ^ 0xF000_0000, attributes)
    assert not returns.again()
    user_state(guest, segments, 0)
    assert returns.again()


@pytest.mark.parametrize("stack", [0, 0x18])
def test_what_it_does_within_the_kernel_is_what_iretq_does(guest: TinyGuest, stack: int) -> None:
    returns, chance, done, vcpu = learnt(guest), random.Random(stack), 0, guest.vcpu
    kernel_state(guest, (KERNEL, 0x10, USUAL, 0x2000, stack))
    assert not returns.done()
    try:
        iret(vcpu, 8)
    except Fault:
        pytest.skip("this table has no such descriptor")
    returns.learn()
    for _ in range(300):
        frame = (
            chance.choice((KERNEL, 0x1234, 0x8000_0000_0000, (1 << 64) - 2)),
            chance.choice((*(0x10,) * 9, 0x13, USER_CODE, 0)),
            chance.choice(
                (USUAL, r.FLAG_FIXED | r.FLAG_RF, USUAL | r.FLAG_DF, USUAL | r.FLAG_TF, chance.getrandbits(22))
            ),
            chance.getrandbits(64),
            chance.choice((*(stack,) * 9, 3, USER_DATA)),
        )
        offset, selector = chance.choice((0, 8, 16, 4, 4096 - 40, 4096 - 32)), chance.choice((0, USER_DATA))
        kernel_state(guest, frame, offset)
        vcpu.set_segment(r.FS, selector, 0, 0xFFFF_FFFF, 0xC0F300)
        before = vcpu.state
        quick = returns.done()
        after = vcpu.state
        if not quick:
            assert after == before
            continue
        done += vcpu.level == 0
        kernel_state(guest, frame, offset)
        iret(vcpu, 8)
        assert vcpu.state == after
    assert 30 < done < 250


def test_user_code_that_came_without_an_exit_is_not_taken_for_its_kernel(guest: TinyGuest) -> None:
    returns, vcpu = learnt(guest), guest.vcpu
    kernel_state(guest, (KERNEL, 0x10, USUAL, 0x2000, 0))
    iret(vcpu, 8)
    returns.learn()
    segments = [vcpu.segment(index) for index in (r.CS, r.SS)]
    kernel_state(guest, (KERNEL, 0x10, USUAL, 0x2000, 0))
    user_state(guest, segments, 0)
    before = vcpu.state
    assert not returns.again()
    assert vcpu.state == before
