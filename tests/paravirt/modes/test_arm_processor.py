"""The virtual ARMv7 processor: modes, banks, entry to and return from exceptions; walks as the engine does them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.engine.arm import DATA_ABORT, PREFETCH_ABORT
from emulator.engine.exit import ExitKind
from emulator.isa.arm import exceptions as x
from emulator.isa.arm.exceptions import ArmException
from emulator.isa.arm.paging import SCTLR_M, TranslationContext, Walker
from paravirt import abi
from paravirt.modes.arm.vcpu import KERNEL, USER, ArmVirtualCpu
from tests.emulator.engine.arm_room import BASE, CODE, ROOT, Room, room


@pytest.fixture(scope="module")
def bare() -> Iterator[Room]:
    with room() as made:
        yield made


@pytest.fixture
def vcpu(bare: Room) -> ArmVirtualCpu:
    shared = memoryview(bytearray(4096)).cast("I")
    bare.registers.cpsr = x.USR
    bare.registers.gpr[15] = 0x1000
    return ArmVirtualCpu(bare.engine, bare.memory, BASE, shared)


def test_each_mode_has_its_own_stack_and_link_and_system_mode_has_users(vcpu: ArmVirtualCpu) -> None:
    modes = (x.USR, x.FIQ, x.IRQ, x.SVC, x.ABT, x.UND)
    for mode in modes:
        vcpu.set_banked(mode, 0, mode << 8)
        vcpu.set_banked(mode, 1, mode << 8 | 1)
    for mode in modes:
        vcpu.enter_mode(mode)
        assert (vcpu.gpr[13], vcpu.gpr[14]) == (mode << 8, mode << 8 | 1)
        assert vcpu.level == (USER if mode == x.USR else KERNEL)
    vcpu.enter_mode(x.SYS)
    assert vcpu.gpr[13] == x.USR << 8
    assert vcpu.spsr == 0


def test_fast_interrupt_mode_has_r8_to_r12_of_its_own(vcpu: ArmVirtualCpu) -> None:
    for number in range(8, 13):
        vcpu.gpr[number] = number
    vcpu.enter_mode(x.FIQ)
    assert [vcpu.gpr[number] for number in range(8, 13)] == [0] * 5
    vcpu.gpr[8] = 99
    assert vcpu.high_register(8, fast=False) == 8
    vcpu.enter_mode(x.SVC)
    assert [vcpu.gpr[number] for number in range(8, 13)] == [8, 9, 10, 11, 12]
    assert vcpu.high_register(8, fast=True) == 99


def test_a_mode_field_that_names_no_mode_changes_nothing(vcpu: ArmVirtualCpu) -> None:
    for mode in (0x14, 0x16, 0x1A, 0x1E):
        vcpu.enter_mode(mode)
        assert vcpu.mode == x.SVC


@pytest.mark.parametrize(
    ("vector", "mode", "distance", "masks"),
    [
        (x.UNDEFINED, x.UND, 4, 0),
        (x.SUPERVISOR_CALL, x.SVC, 4, 0),
        (x.PREFETCH_ABORT, x.ABT, 4, x.MASK_A),
        (x.DATA_ABORT, x.ABT, 8, x.MASK_A),
        (x.INTERRUPT, x.IRQ, 4, x.MASK_A),
    ],
)
def test_an_exception_is_entered_as_the_manual_has_it(
    vector: int, mode: int, distance: int, masks: int, vcpu: ArmVirtualCpu
) -> None:
    vcpu.write_status(x.SYS, x.MODE | x.MASKS)
    vcpu.vbar = 0x8000
    before = vcpu.cpsr
    vcpu.take(vector)
    assert (vcpu.mode, vcpu.pc, vcpu.gpr[14], vcpu.spsr) == (mode, 0x8000 + 4 * vector, 0x1000 + distance, before)
    assert not vcpu.interrupts_enabled
    assert vcpu.masks & masks == masks
    vcpu.leave(vcpu.gpr[14] - distance, vcpu.spsr)
    assert (vcpu.pc, vcpu.cpsr, vcpu.mode) == (0x1000, before, x.SYS)


def test_high_vectors_and_thumb_code_and_an_it_block(vcpu: ArmVirtualCpu) -> None:
    vcpu.context.sctlr = 1 << 13
    vcpu.enter_mode(x.USR)
    vcpu.registers.cpsr = x.USR | x.BIT_T | 0x0600_0800
    before = vcpu.cpsr
    vcpu.take(x.UNDEFINED)
    assert vcpu.pc == 0xFFFF_0004
    assert vcpu.gpr[14] == 0x1002
    assert (vcpu.registers.thumb, vcpu.registers.it_state) == (False, 0)
    vcpu.leave(0x1000, vcpu.spsr)
    assert vcpu.cpsr == before
    assert vcpu.registers.thumb


def test_the_interrupt_mask_is_the_word_that_fixups_change(vcpu: ArmVirtualCpu) -> None:
    word = abi.ARMV7.interrupt_state // 4
    vcpu.shared[word] = 0
    assert not vcpu.cpsr & x.MASK_I
    vcpu.shared[word] = 0x80
    assert vcpu.cpsr & x.MASK_I
    vcpu.shared[word] = 0x1234_5678  # whatever a guest puts there
    assert not vcpu.interrupts_enabled
    vcpu.write_status(x.MASK_F, x.MASKS)
    assert vcpu.shared[word] == 0
    assert vcpu.shared[abi.ARM_STATUS // 4] == x.SVC - x.USR + x.MASK_F


@pytest.mark.parametrize("condition", range(15))
def test_a_condition_holds_as_the_manual_says(condition: int, vcpu: ArmVirtualCpu) -> None:
    for flags in range(16):
        vcpu.registers.cpsr = flags << 28 | x.USR
        n, z, c, v = (bool(flags >> bit & 1) for bit in (3, 2, 1, 0))
        wanted = [z, not z, c, not c, n, not n, v, not v, c and not z, not c or z, n == v, n != v]
        wanted += [not z and n == v, z or n != v, True]
        assert vcpu.condition_holds(condition) == wanted[condition]


@settings(max_examples=400, deadline=None)
@given(
    first=st.integers(0, (1 << 20) - 1),
    second=st.integers(0, (1 << 12) - 1),
    kind=st.sampled_from([0, 1, 2, 3]),
    rights=st.sampled_from([1, 3]),
    access=st.sampled_from(["read", "write", "fetch"]),
    simple=st.booleans(),
)
def test_a_walk_gives_what_the_engine_gives(
    bare: Room, first: int, second: int, kind: int, rights: int, access: str, simple: bool
) -> None:
    if access == "fetch":  # the engine looks at XN before the access flag, the manual the other way round
        first, second = first | 1 << 10, second | 1 << 4
    first = first & 0xF_FFFC & ~(1 << 18) | kind
    pointers = {0: 0, 1: TABLE | first & 0x1E4 | 1}
    assert_same(bare, pointers.get(kind, BASE | first), second, rights * 0x5555_5555, access, simple)


@pytest.mark.parametrize("access", ["read", "write", "fetch"])
@pytest.mark.parametrize("descriptor", [BASE | 0xC02, BASE + 0x10_0000 | 1])
@pytest.mark.parametrize("rights", [0, 2])
def test_a_domain_without_access_refuses_what_the_page_allows(
    rights: int, descriptor: int, access: str, bare: Room
) -> None:
    assert_same(bare, descriptor, 0x3E, rights * 0x5555_5555, access, simple=False)


ADDRESS, TABLE = 0x7000_0000, BASE + 0x10_0000


def assert_same(bare: Room, descriptor: int, second: int, dacr: int, access: str, simple: bool) -> None:
    """Compare an access in User mode with the walk; the code's own section is of domain 15, which is a client."""
    bare.translate()
    bare.section(BASE, BASE | 0xC02 | 15 << 5)
    bare.section(ADDRESS, descriptor)
    bare.put(TABLE, [BASE + 0x9000 | second])
    context = TranslationContext()
    context.sctlr = 0x00C5_0079 | SCTLR_M | (1 << 29 if simple else 0)
    context.ttbr0, context.dacr = ROOT, dacr & 0x3FFF_FFFF | 1 << 30
    bare.engine.enable_translation(0, context.sctlr)
    bare.engine.set_domains(context.dacr)
    bare.engine.flush_tlb()
    bare.registers.gpr[1] = ADDRESS
    word = {"read": 0xE591_0000, "write": 0xE581_0000, "fetch": 0xE12F_FF11}[access]
    bare.put(BASE + 0x9000, [0xEF00_0000] * 1024)  # what a fetch that is allowed runs into
    bare.engine.set_deadline(bare.engine.progress + 1000)
    kind, vector, status, pc = bare.run([word], most=1)[0]
    bare.engine.set_deadline(1 << 60)
    fault = walked(bare, context, access)
    at = ADDRESS if access == "fetch" else CODE
    aborted = kind is ExitKind.FAULT and vector in (DATA_ABORT, PREFETCH_ABORT) and pc == at
    assert aborted == (fault is not None)
    if fault is not None:
        assert (vector, status & 0xC0F) == (fault.vector, (fault.error or 0) & 0xC0F)


def walked(bare: Room, context: TranslationContext, access: str) -> ArmException | None:
    """The abort of a user access by the walk, or None."""
    try:
        Walker(bare.words, BASE, context).walk(ADDRESS, access == "write", True, access == "fetch")
    except ArmException as fault:
        return fault
    return None
