"""Returns, far transfers and system calls between levels and modes keep the rules of long mode."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.isa.x86 import descriptors as d
from emulator.isa.x86.delivery import deliver
from emulator.isa.x86.processor import CS, DS, ES, FS, GS, SS, Fault
from emulator.isa.x86.transfer import far_call, far_jump, far_return, iret, syscall, sysret
from tests.emulator.isa.x86.memory_processor import (
    FREE,
    GDT,
    KERNEL_CS,
    KERNEL_DS,
    KERNEL_STACK,
    STACK_TOP,
    USER_CS,
    USER_CS32,
    USER_DS,
    MemoryProcessor,
)

CODE_32 = d.KERNEL_CODE & ~d.LONG | d.DEFAULT_BIG
HIGH = 0xFFFF_8000_0000_1000
HOLE = 0x8000_0000_0000


@pytest.fixture
def cpu() -> MemoryProcessor:
    return MemoryProcessor()


def frame(cpu: MemoryProcessor, rip: int, cs: int, flags: int, rsp: int, ss: int, size: int = 8) -> None:
    cpu.push(ss, rsp, flags, cs, rip, size=size)


def fault_of(cpu: MemoryProcessor, operation: object, *arguments: int) -> tuple[int, int | None]:
    before = cpu.registers()
    with pytest.raises(Fault) as caught:
        operation(cpu, *arguments)  # type: ignore[operator]
    assert cpu.registers() == before
    return caught.value.vector, caught.value.error


def put(cpu: MemoryProcessor, attributes: int, selector: int = FREE) -> None:
    cpu.set_descriptor(selector, d.segment_descriptor(0, 0xFFFF_FFFF, attributes | d.GRANULARITY))


@pytest.mark.parametrize("user", [0, 32, 64])
def test_iret_undoes_a_delivery(cpu: MemoryProcessor, user: int) -> None:
    if user:
        cpu.run_user(user)
    cpu.rflags = 0x24_0ED7
    before = cpu.registers()
    deliver(cpu, 32, None)
    iret(cpu, 8)
    assert cpu.registers() == before


def test_iret_in_the_kernel_keeps_a_null_stack_and_its_selector(cpu: MemoryProcessor) -> None:
    frame(cpu, HIGH, KERNEL_CS, 2, HIGH, 0)
    iret(cpu, 8)
    assert (cpu.rip, cpu.gpr[4], cpu.segments[SS]) == (HIGH, HIGH, (0, 0, d.FLAT_LIMIT, d.FLAT_DATA))


def test_a_null_stack_is_for_64_bit_code_below_level_3_with_its_own_rpl(cpu: MemoryProcessor) -> None:
    frame(cpu, HIGH, KERNEL_CS, 2, HIGH, 1)
    assert fault_of(cpu, iret, 8) == (13, 0)
    put(cpu, CODE_32)
    frame(cpu, 0x1000, FREE, 2, 0x5000, 0)
    assert fault_of(cpu, iret, 8) == (13, 0)


def test_iret_to_user_needs_a_stack_segment(cpu: MemoryProcessor) -> None:
    for stack, expected in ((0, (13, 0)), (3, (13, 0)), (KERNEL_DS, (13, KERNEL_DS)), (0x1003, (13, 0x1000))):
        cpu.gpr[4] = STACK_TOP
        frame(cpu, 0x1234, USER_CS, 2, 0x5000, stack)
        assert fault_of(cpu, iret, 8) == expected
    put(cpu, d.USER_DATA & ~d.PRESENT)
    frame(cpu, 0x1234, USER_CS, 2, 0x5000, FREE | 3)
    assert fault_of(cpu, iret, 8) == (12, FREE)


def test_iret_to_compatibility_mode_cuts_rip_and_rsp_to_32_bits(cpu: MemoryProcessor) -> None:
    frame(cpu, HIGH, USER_CS32, 2, HIGH + 8, USER_DS)
    iret(cpu, 8)
    assert (cpu.rip, cpu.gpr[4], cpu.cpl) == (0x1000, 0x1008, 3)


def test_iret_to_a_16_bit_stack_leaves_the_upper_half_of_rsp(cpu: MemoryProcessor) -> None:
    put(cpu, d.USER_DATA & ~d.DEFAULT_BIG)
    frame(cpu, 0x1000, USER_CS32, 2, 0xABCD_1234, FREE | 3)
    top = cpu.gpr[4]
    iret(cpu, 8)
    assert cpu.gpr[4] == top & ~0xFFFF | 0x1234


def test_iret_to_64_bit_mode_needs_a_canonical_address(cpu: MemoryProcessor) -> None:
    for rip in (HOLE, HIGH - 0x2000, 1 << 63):
        cpu.gpr[4] = STACK_TOP
        frame(cpu, rip, USER_CS, 2, 0x5000, USER_DS)
        assert fault_of(cpu, iret, 8) == (13, 0)


def test_iret_with_nested_task_set_is_refused(cpu: MemoryProcessor) -> None:
    frame(cpu, HIGH, KERNEL_CS, 2, HIGH, 0)
    cpu.rflags |= 1 << 14
    assert fault_of(cpu, iret, 8) == (13, 0)


def test_iret_refuses_a_stack_in_the_hole(cpu: MemoryProcessor) -> None:
    cpu.gpr[4] = HOLE - 32
    assert fault_of(cpu, iret, 8) == (12, 0)


@pytest.mark.parametrize(
    ("cs", "expected"),
    [
        (0, (13, 0)),
        (3, (13, 0)),
        (0x1000, (13, 0x1000)),
        (KERNEL_DS, (13, KERNEL_DS)),
        (USER_CS & ~3, (13, USER_CS & ~3)),
        (KERNEL_CS | 3, (13, KERNEL_CS)),
    ],
)
def test_iret_refuses_a_code_selector_of_another_kind_or_level(
    cpu: MemoryProcessor, cs: int, expected: tuple[int, int]
) -> None:
    frame(cpu, 0x1000, cs, 2, 0x5000, USER_DS)
    assert fault_of(cpu, iret, 8) == expected


def test_iret_and_far_ret_refuse_absent_and_ambiguous_code(cpu: MemoryProcessor) -> None:
    for attributes, vector in ((d.USER_CODE & ~d.PRESENT, 11), (d.USER_CODE | d.DEFAULT_BIG, 13)):
        cpu.gpr[4] = STACK_TOP
        put(cpu, attributes)
        frame(cpu, 0x1000, FREE | 3, 2, 0x5000, USER_DS)
        assert fault_of(cpu, iret, 8) == (vector, FREE)
        assert fault_of(cpu, far_return, 8) == (vector, FREE)


def test_a_return_to_conforming_code_takes_its_level_from_the_selector(cpu: MemoryProcessor) -> None:
    put(cpu, d.KERNEL_CODE | d.CONFORMING)
    frame(cpu, 0x1000, FREE | 3, 2, 0x5000, USER_DS)
    iret(cpu, 8)
    assert (cpu.cpl, cpu.segments[CS][0]) == (3, FREE | 3)
    cpu.run_kernel()
    put(cpu, d.USER_CODE | d.CONFORMING)
    frame(cpu, 0x1000, FREE, 2, 0x5000, 0)
    assert fault_of(cpu, iret, 8) == (13, FREE)


def test_user_code_cannot_iret_inwards(cpu: MemoryProcessor) -> None:
    cpu.run_user()
    frame(cpu, 0x1000, KERNEL_CS, 2, 0x5000, KERNEL_DS)
    assert fault_of(cpu, iret, 8) == (13, KERNEL_CS)
    assert cpu.user_accesses == 5


@pytest.mark.parametrize(
    ("level", "iopl", "size", "result"),
    [
        (0, 0, 8, 0x3D_7FD7),
        (0, 3, 8, 0x3D_4FD7),
        (0, 0, 4, 0x3D_7FD7),
        (0, 0, 2, 0x7FD7),
        (3, 0, 8, 0x25_4DD7),
        (3, 3, 8, 0x25_7FD7),
        (3, 2, 4, 0x25_6DD7),
        (3, 3, 2, 0x7FD7),
    ],
)
def test_iret_changes_the_flags_that_level_and_size_allow(
    cpu: MemoryProcessor, level: int, iopl: int, size: int, result: int
) -> None:
    if level:
        cpu.run_user()
    cpu.rflags = 2 | iopl << 12
    popped = (1 << 8 * size) - 1 ^ iopl << 12  # every bit set, but IOPL inverted
    frame(cpu, 0x1000, cpu.segments[CS][0], popped, 0x5000, cpu.segments[SS][0], size)
    iret(cpu, size)
    assert cpu.rflags == result


@pytest.mark.parametrize("size", [2, 4, 8])
def test_iret_and_far_ret_pop_words_of_their_operand_size(cpu: MemoryProcessor, size: int) -> None:
    frame(cpu, 0x1234, USER_CS, 2, 0x5678, USER_DS, size)
    iret(cpu, size)
    assert (cpu.rip, cpu.gpr[4], cpu.segments[CS][0], cpu.segments[SS][0]) == (0x1234, 0x5678, USER_CS, USER_DS)
    cpu.run_kernel()
    cpu.push(USER_DS, 0x5678, USER_CS, 0x1234, size=size)
    far_return(cpu, size)
    assert (cpu.rip, cpu.gpr[4], cpu.segments[CS][0], cpu.segments[SS][0]) == (0x1234, 0x5678, USER_CS, USER_DS)


def test_iret_in_compatibility_mode_pops_the_stack_only_on_the_way_out(cpu: MemoryProcessor) -> None:
    cpu.run_user(32)
    cpu.push(2, USER_CS, 0x1234, size=4)
    iret(cpu, 4)
    assert (cpu.rip, cpu.gpr[4]) == (0x1234, STACK_TOP)
    put(cpu, CODE_32)
    cpu.run_kernel()
    cpu.segments[CS] = (FREE, 0, d.FLAT_LIMIT, CODE_32)
    frame(cpu, 0x1234, USER_CS32, 2, 0x5678, USER_DS, 4)
    iret(cpu, 4)
    assert (cpu.rip, cpu.gpr[4], cpu.cpl) == (0x1234, 0x5678, 3)


def test_compatibility_stacks_keep_their_limits(cpu: MemoryProcessor) -> None:
    cpu.run_user(32)
    cpu.push(2, USER_CS, 0x1234, size=4)
    down = d.USER_DATA | d.EXPAND_DOWN
    for attributes, limit, fits in (
        (d.USER_DATA, STACK_TOP - 1, True),
        (d.USER_DATA, STACK_TOP - 2, False),
        (down, STACK_TOP - 13, True),
        (down, STACK_TOP - 12, False),
    ):
        cpu.gpr[4] = STACK_TOP - 12
        cpu.segments[SS] = (USER_DS, 0, limit, attributes)
        if fits:
            iret(cpu, 4)
            cpu.segments[CS] = (USER_CS32, 0, d.FLAT_LIMIT, d.USER_CODE_32)
        else:
            assert fault_of(cpu, iret, 4) == (12, 0)


def test_a_return_to_user_drops_what_user_code_may_not_hold(cpu: MemoryProcessor) -> None:
    cpu.segments[DS] = (KERNEL_DS, 0, d.FLAT_LIMIT, d.FLAT_DATA)
    cpu.segments[ES] = (USER_DS, 0, d.FLAT_LIMIT, d.USER_DATA)
    cpu.segments[FS] = (FREE, 5, d.FLAT_LIMIT, d.KERNEL_CODE | d.CONFORMING)
    cpu.segments[GS] = (1, 0xFFFF_8000_0000_0000, 0, 0)
    frame(cpu, 0x1234, USER_CS, 2, 0x5678, USER_DS)
    iret(cpu, 8)
    assert cpu.segments[DS] == (0, 0, 0, 0)
    assert cpu.segments[ES][0] == USER_DS
    assert cpu.segments[FS][0] == FREE
    assert cpu.segments[GS] == (0, 0xFFFF_8000_0000_0000, 0, 0)


def test_a_return_sets_the_accessed_bits_of_code_and_stack(cpu: MemoryProcessor) -> None:
    for selector, attributes in ((USER_CS, d.USER_CODE), (USER_DS, d.USER_DATA)):
        cpu.set_descriptor(selector, d.segment_descriptor(0, d.FLAT_LIMIT, attributes & ~d.ACCESSED))
    frame(cpu, 0x1234, USER_CS, 2, 0x5678, USER_DS)
    iret(cpu, 8)
    assert cpu.segments[CS][3] == d.USER_CODE
    assert cpu.segments[SS][3] == d.USER_DATA
    assert cpu.read(GDT + (USER_CS & ~7) + 5, 1) == 0xFB
    assert cpu.read(GDT + (USER_DS & ~7) + 5, 1) == 0xF3


def test_a_far_return_releases_its_parameters_on_both_stacks(cpu: MemoryProcessor) -> None:
    cpu.push(KERNEL_CS, HIGH)
    far_return(cpu, 8, 0x20)
    assert (cpu.rip, cpu.gpr[4]) == (HIGH, STACK_TOP + 0x20)
    cpu.run_kernel()
    cpu.push(USER_DS, 0x5000, 0, 0, USER_CS, 0x1234)
    far_return(cpu, 8, 16)
    assert (cpu.rip, cpu.gpr[4], cpu.cpl) == (0x1234, 0x5010, 3)


def test_a_far_jump_changes_the_mode_of_execution(cpu: MemoryProcessor) -> None:
    cpu.run_user()
    far_jump(cpu, USER_CS32, 0x1_2345_6789)
    assert (cpu.rip, cpu.segments[CS][0], cpu.cpl) == (0x2345_6789, USER_CS32, 3)
    far_jump(cpu, USER_CS & ~3, 0x1000)
    assert cpu.segments[CS] == (USER_CS, 0, d.FLAT_LIMIT, d.USER_CODE)


def test_a_far_jump_stays_at_its_level(cpu: MemoryProcessor) -> None:
    assert fault_of(cpu, far_jump, USER_CS, 0) == (13, USER_CS & ~3)
    assert fault_of(cpu, far_jump, KERNEL_CS | 3, 0) == (13, KERNEL_CS)
    assert fault_of(cpu, far_jump, KERNEL_CS, HOLE) == (13, 0)
    assert fault_of(cpu, far_jump, 2, 0) == (13, 0)
    assert fault_of(cpu, far_jump, KERNEL_DS, 0) == (13, KERNEL_DS)
    cpu.run_user()
    assert fault_of(cpu, far_jump, KERNEL_CS, 0) == (13, KERNEL_CS)
    put(cpu, d.KERNEL_CODE | d.CONFORMING)
    far_jump(cpu, FREE, 0x44)
    assert (cpu.rip, cpu.cpl, cpu.segments[CS][0]) == (0x44, 3, FREE | 3)


def test_a_jump_beyond_a_compatibility_segment_is_refused(cpu: MemoryProcessor) -> None:
    cpu.set_descriptor(FREE, d.segment_descriptor(0, 0xFFFF, CODE_32 & ~d.GRANULARITY))
    assert fault_of(cpu, far_jump, FREE, 0x1_0000) == (13, 0)
    far_jump(cpu, FREE, 0xFFFF)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_far_call_pushes_where_to_return(cpu: MemoryProcessor, size: int) -> None:
    far_call(cpu, KERNEL_CS, 0x1234, size, 7)
    assert cpu.gpr[4] == STACK_TOP - 2 * size
    back = 0x9_0007 & (1 << 8 * size) - 1
    assert [cpu.read(cpu.gpr[4] + i * size, size) for i in range(2)] == [back, KERNEL_CS]
    far_return(cpu, size)
    assert (cpu.rip, cpu.gpr[4]) == (back, STACK_TOP)


def test_a_far_call_in_compatibility_mode_pushes_on_the_segmented_stack(cpu: MemoryProcessor) -> None:
    cpu.run_user(32)
    cpu.segments[SS] = (USER_DS, 0x1000, d.FLAT_LIMIT, d.USER_DATA)
    far_call(cpu, USER_CS, 0x1234, 4, 7)
    assert (cpu.rip, cpu.gpr[4], cpu.user_accesses) == (0x1234, STACK_TOP - 8, 2)
    assert cpu.read(STACK_TOP - 8 + 0x1000, 8) == USER_CS32 << 32 | 0x9_0007


def call_gate(cpu: MemoryProcessor, dpl: int, selector: int = KERNEL_CS, offset: int = HIGH, extra: int = 0) -> None:
    low, high = d.gate(selector, offset, d.TYPE_CALL_GATE, dpl=dpl)
    cpu.set_descriptor(FREE, low)
    cpu.set_descriptor(FREE + 8, high | extra)


def test_a_call_gate_leads_user_code_into_the_kernel_and_back(cpu: MemoryProcessor) -> None:
    call_gate(cpu, 3)
    cpu.run_user()
    before = cpu.registers()
    far_call(cpu, FREE | 3, 0, 8, 7)
    assert (cpu.rip, cpu.cpl, cpu.gpr[4]) == (HIGH, 0, KERNEL_STACK - 32)
    assert cpu.stack(4) == [0x9_0007, USER_CS, STACK_TOP, USER_DS]
    cpu.segments[DS] = cpu.segments[ES] = (USER_DS, 0, d.FLAT_LIMIT, d.USER_DATA)
    far_return(cpu, 8)
    cpu.rip -= 7
    assert cpu.registers() == before


def test_a_call_gate_keeps_its_rules(cpu: MemoryProcessor) -> None:
    call_gate(cpu, 3)
    assert fault_of(cpu, far_jump, 0x1000, 0) == (13, 0x1000)
    far_jump(cpu, FREE, 0)
    assert cpu.rip == HIGH
    cpu.run_user()
    assert fault_of(cpu, far_jump, FREE, 0) == (13, KERNEL_CS)
    call_gate(cpu, 0)
    assert fault_of(cpu, far_call, FREE, 0, 8) == (13, FREE)
    cpu.run_kernel()
    assert fault_of(cpu, far_call, FREE | 1, 0, 8) == (13, FREE)
    cpu.run_user()
    call_gate(cpu, 3, extra=1 << 40)
    assert fault_of(cpu, far_call, FREE, 0, 8) == (13, FREE)
    call_gate(cpu, 3, selector=USER_CS32)
    assert fault_of(cpu, far_call, FREE, 0, 8) == (13, USER_CS32 & ~3)
    call_gate(cpu, 3, selector=0)
    assert fault_of(cpu, far_call, FREE, 0, 8) == (13, 0)
    call_gate(cpu, 3, offset=HOLE)
    assert fault_of(cpu, far_call, FREE, 0, 8) == (13, 0)
    call_gate(cpu, 3)
    cpu.write(0x4004, 8, HOLE + 64)
    assert fault_of(cpu, far_call, FREE, 0, 8) == (12, 0)


def test_a_system_call_and_its_return_exchange_the_levels(cpu: MemoryProcessor) -> None:
    cpu.run_user()
    cpu.rflags = 0x1_0646
    syscall(cpu, 2)
    assert (cpu.rip, cpu.gpr[1], cpu.gpr[11], cpu.rflags) == (0x7_0000, 0x9_0002, 0x646, 0x46)
    assert cpu.segments[CS] == (KERNEL_CS, 0, d.FLAT_LIMIT, d.KERNEL_CODE)
    assert cpu.segments[SS] == (KERNEL_DS, 0, d.FLAT_LIMIT, d.FLAT_DATA)
    assert cpu.cpl == 0
    sysret(cpu, 8)
    assert (cpu.rip, cpu.rflags, cpu.cpl) == (0x9_0002, 0x646, 3)
    assert cpu.segments[CS] == (USER_CS, 0, d.FLAT_LIMIT, d.USER_CODE)
    assert cpu.segments[SS] == (USER_DS, 0, d.FLAT_LIMIT, d.USER_DATA)


def test_a_system_return_to_compatibility_mode_takes_32_bits_of_rcx(cpu: MemoryProcessor) -> None:
    cpu.gpr[1], cpu.gpr[11] = HIGH, 2**64 - 1
    sysret(cpu, 4)
    assert (cpu.rip, cpu.rflags, cpu.segments[CS]) == (
        0x1000,
        0x3C_7FD7,
        (USER_CS32, 0, d.FLAT_LIMIT, d.USER_CODE_32),
    )


def test_system_calls_keep_the_rules_of_intel(cpu: MemoryProcessor) -> None:
    cpu.gpr[1] = HOLE
    assert fault_of(cpu, sysret, 8) == (13, 0)
    cpu.run_user(32)
    assert fault_of(cpu, syscall, 2) == (6, None)
    cpu.run_user(64)
    assert fault_of(cpu, sysret, 8) == (13, 0)
    cpu.efer &= ~1
    assert fault_of(cpu, syscall, 2) == (6, None)
    assert fault_of(cpu, sysret, 8) == (6, None)


WORD = st.integers(0, 2**64 - 1)
EDGE = st.sampled_from([0, 4, 0x6004, 0x7FFE, 0x7FFF_FFFF_FFF8, HOLE, HIGH, 2**64 - 4, 2**64 - 40]) | WORD
SELECTOR = st.integers(0, 0x3F) | st.integers(0, 0xFFFF)


@settings(max_examples=500, deadline=None)
@given(
    table=st.lists(WORD, min_size=8, max_size=8),
    force=st.sampled_from([0, 0x9B, 0xFB, 0x93, 0xF3, 0xEC, 0x8C]),
    stack=st.lists(EDGE | SELECTOR, min_size=8, max_size=8),
    rsp=EDGE | st.just(0x7000),
    selector=SELECTOR,
    mode=st.tuples(st.integers(0, 3), st.booleans(), st.booleans()),
    size=st.sampled_from([2, 4, 8]),
    rflags=st.integers(0, 2**22 - 1),
)
def test_any_tables_and_stacks_transfer_or_fault(
    table: list[int],
    force: int,
    stack: list[int],
    rsp: int,
    selector: int,
    mode: tuple[int, bool, bool],
    size: int,
    rflags: int,
) -> None:
    level, long, big = mode
    operations: tuple[Callable[[MemoryProcessor], None], ...] = (
        lambda cpu: iret(cpu, size),
        lambda cpu: far_return(cpu, size, selector),
        lambda cpu: far_jump(cpu, selector, stack[0]),
        lambda cpu: far_call(cpu, selector, stack[0], size, 15),
        lambda cpu: syscall(cpu, 2),
        lambda cpu: sysret(cpu, size),
    )
    for operation in operations:
        cpu = MemoryProcessor()
        cpu.level, cpu.rflags = level, rflags
        cpu.segments[CS] = (level, 0, d.FLAT_LIMIT, d.KERNEL_CODE if long else CODE_32)
        cpu.segments[SS] = (8 | level, 0x123, d.FLAT_LIMIT, d.FLAT_DATA & (-1 if big else ~d.DEFAULT_BIG))
        for index, word in enumerate(table):
            cpu.write(GDT + 8 * index, 8, word if not force else word & ~(0xFF << 40) | force << 40)
        for index, word in enumerate(stack):
            cpu.write(0x7000 + 8 * index, 8, word)
        cpu.gpr[4], cpu.gpr[1], cpu.gpr[11] = rsp, stack[1], stack[2]
        before = cpu.registers()
        try:
            operation(cpu)
        except Fault:
            assert cpu.registers() == before
        else:
            assert 0 <= cpu.rip < 2**64
            assert cpu.segments[CS][0] & 3 == cpu.level
