"""Interrupts and exceptions enter their handlers as Intel SDM vol. 3A 6.14 has it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.isa.x86 import descriptors as d
from emulator.isa.x86.delivery import deliver, interrupt, raise_exception, software_interrupt
from emulator.isa.x86.processor import CS, SS, TR, Fault, Processor, TripleFault
from tests.emulator.isa.x86.memory_processor import (
    FAULT_STACK,
    FREE,
    GDT,
    HANDLERS,
    IDT,
    KERNEL_CS,
    KERNEL_DS,
    KERNEL_STACK,
    STACK_TOP,
    TASK,
    TSS,
    USER_CS,
    USER_CS32,
    USER_DS,
    MemoryProcessor,
)

ALL_FLAGS = 0x24_4FD7
"""Everything a program may have set: ID AC NT OF DF IF TF SF ZF AF PF CF."""


@pytest.fixture
def cpu() -> MemoryProcessor:
    return MemoryProcessor()


def fault_of(cpu: Processor, vector: int, error: int | None = None, **how: bool | int) -> tuple[int, int | None]:
    """Vector and error code of the fault that delivery meets; the registers must be untouched."""
    assert isinstance(cpu, MemoryProcessor)
    before = cpu.registers()
    with pytest.raises(Fault) as caught:
        deliver(cpu, vector, error, **how)  # type: ignore[arg-type]
    assert cpu.registers() == before
    return caught.value.vector, caught.value.error


def test_an_interrupt_in_the_kernel_pushes_an_aligned_frame_on_the_same_stack(cpu: MemoryProcessor) -> None:
    cpu.gpr[4] = STACK_TOP - 3
    cpu.rflags = 0x246
    deliver(cpu, 32, None)
    assert cpu.gpr[4] == STACK_TOP - 16 - 40
    assert cpu.stack(5) == [0x9_0000, KERNEL_CS, 0x246, STACK_TOP - 3, KERNEL_DS]
    assert cpu.rip == HANDLERS + 16 * 32
    assert cpu.segments[CS] == (KERNEL_CS, 0, d.FLAT_LIMIT, d.KERNEL_CODE)
    assert cpu.segments[SS][0] == KERNEL_DS
    assert cpu.cpl == 0


def test_an_interrupt_in_user_mode_enters_on_the_kernel_stack_with_a_null_ss(cpu: MemoryProcessor) -> None:
    cpu.run_user()
    deliver(cpu, 32, None)
    assert cpu.cpl == 0
    assert cpu.gpr[4] == KERNEL_STACK - 40
    assert cpu.stack(5) == [0x9_0000, USER_CS, 2, STACK_TOP, USER_DS]
    assert cpu.segments[SS] == (0, 0, d.FLAT_LIMIT, d.FLAT_DATA)


def test_an_interrupt_in_compatibility_mode_pushes_the_64_bit_frame(cpu: MemoryProcessor) -> None:
    cpu.run_user(32)
    deliver(cpu, 32, None)
    assert cpu.stack(5) == [0x9_0000, USER_CS32, 2, STACK_TOP, USER_DS]
    assert cpu.segments[CS][3] & d.LONG


def test_an_error_code_lies_on_top_of_the_frame(cpu: MemoryProcessor) -> None:
    deliver(cpu, 13, 0x1234)
    assert cpu.gpr[4] == STACK_TOP - 48
    assert cpu.stack(3) == [0x1234, 0x9_0000, KERNEL_CS]


def test_an_interrupt_gate_clears_the_interrupt_flag_and_a_trap_gate_keeps_it(cpu: MemoryProcessor) -> None:
    for kind, kept in ((d.TYPE_INTERRUPT_GATE, 0), (d.TYPE_TRAP_GATE, 0x200)):
        cpu.run_kernel()
        cpu.set_gate(40, kind=kind)
        cpu.rflags = ALL_FLAGS | 0x1_0000
        deliver(cpu, 40, None)
        assert cpu.rflags == ALL_FLAGS & ~0x4300 | kept
        assert cpu.stack(3)[2] == ALL_FLAGS | 0x1_0000


@pytest.mark.parametrize("level", [0, 3])
def test_an_interrupt_stack_is_taken_at_any_level(cpu: MemoryProcessor, level: int) -> None:
    if level:
        cpu.run_user()
    cpu.set_gate(2, stack=3)
    cpu.write(TSS + 36 + 16, 8, FAULT_STACK + 9)
    deliver(cpu, 2, None)
    assert cpu.gpr[4] == FAULT_STACK - 40
    assert cpu.segments[SS][0] == (0 if level else KERNEL_DS)


def test_a_conforming_handler_keeps_the_user_level_and_stack(cpu: MemoryProcessor) -> None:
    cpu.set_descriptor(FREE, d.segment_descriptor(0, d.FLAT_LIMIT, d.KERNEL_CODE | d.CONFORMING))
    cpu.set_gate(50, selector=FREE)
    cpu.run_user()
    deliver(cpu, 50, None)
    assert cpu.cpl == 3
    assert cpu.segments[CS][0] == FREE | 3
    assert cpu.gpr[4] == STACK_TOP - 40
    assert cpu.user_accesses == 5


def test_a_handler_of_the_users_own_level_runs_on_the_users_stack(cpu: MemoryProcessor) -> None:
    cpu.set_gate(50, selector=USER_CS)
    assert fault_of(cpu, 50) == (13, USER_CS & ~3 | 1)
    cpu.run_user()
    deliver(cpu, 50, None)
    assert (cpu.cpl, cpu.segments[CS][0], cpu.gpr[4]) == (3, USER_CS, STACK_TOP - 40)


def test_a_software_interrupt_returns_behind_itself(cpu: MemoryProcessor) -> None:
    cpu.run_user()
    cpu.set_gate(0x80, dpl=3)
    deliver(cpu, 0x80, None, software=True, length=2)
    assert cpu.stack(1) == [0x9_0002]


def test_a_software_interrupt_needs_the_privilege_of_the_gate(cpu: MemoryProcessor) -> None:
    cpu.run_user()
    assert fault_of(cpu, 0x80, software=True, length=2) == (13, 0x402)
    deliver(cpu, 0x80, None)  # a device needs none


def test_the_first_use_of_a_code_segment_sets_its_accessed_bit(cpu: MemoryProcessor) -> None:
    cpu.set_descriptor(KERNEL_CS, d.segment_descriptor(0, d.FLAT_LIMIT, d.KERNEL_CODE & ~d.ACCESSED))
    deliver(cpu, 32, None)
    assert cpu.read(GDT + KERNEL_CS, 8) == d.segment_descriptor(0, d.FLAT_LIMIT, d.KERNEL_CODE)
    assert cpu.segments[CS][3] == d.KERNEL_CODE


@pytest.mark.parametrize("kind", [k for k in range(16) if k not in (0xE, 0xF)])
def test_only_interrupt_and_trap_gates_are_taken(cpu: MemoryProcessor, kind: int) -> None:
    cpu.set_gate(33, kind=kind)
    assert fault_of(cpu, 33) == (13, 33 << 3 | 3)
    assert fault_of(cpu, 33, software=True) == (13, 33 << 3 | 2)


def test_a_vector_beyond_the_table_is_a_general_protection_fault(cpu: MemoryProcessor) -> None:
    cpu.idt_limit = 16 * 33 - 2
    assert fault_of(cpu, 32) == (13, 32 << 3 | 3)
    cpu.idt_limit = 16 * 33 - 1
    deliver(cpu, 32, None)


def test_an_absent_gate_is_not_present(cpu: MemoryProcessor) -> None:
    cpu.set_gate(33, present=0)
    assert fault_of(cpu, 33) == (11, 33 << 3 | 3)
    assert fault_of(cpu, 33, software=True) == (11, 33 << 3 | 2)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        (d.FLAT_DATA, 13),
        (d.KERNEL_CODE & ~d.LONG | d.DEFAULT_BIG, 13),
        (d.KERNEL_CODE | d.DEFAULT_BIG, 13),
        (d.KERNEL_CODE & ~d.PRESENT, 11),
        (d.KERNEL_CODE & ~d.SEGMENT, 13),
        (d.USER_CODE, 13),
    ],
)
def test_a_handler_needs_a_present_64_bit_code_segment(cpu: MemoryProcessor, attributes: int, expected: int) -> None:
    cpu.set_descriptor(FREE, d.segment_descriptor(0, d.FLAT_LIMIT, attributes))
    cpu.set_gate(33, selector=FREE)
    assert fault_of(cpu, 33) == (expected, FREE | 1)


def test_a_null_or_missing_code_selector_is_a_general_protection_fault(cpu: MemoryProcessor) -> None:
    cpu.set_gate(33, selector=3)
    assert fault_of(cpu, 33) == (13, 1)
    cpu.set_gate(33, selector=0x1000)
    assert fault_of(cpu, 33) == (13, 0x1001)
    cpu.set_gate(33, selector=0x1004)
    assert fault_of(cpu, 33, software=True) == (13, 0x1004)


def test_a_short_task_segment_cannot_supply_a_stack(cpu: MemoryProcessor) -> None:
    cpu.run_user()
    cpu.segments[TR] = (TASK, TSS, 10, d.PRESENT | d.TYPE_TSS_BUSY << 8)
    assert fault_of(cpu, 33) == (10, TASK | 1)
    cpu.segments[TR] = (TASK, TSS, 11, d.PRESENT | d.TYPE_TSS_BUSY << 8)
    deliver(cpu, 33, None)


def test_a_non_canonical_stack_or_handler_is_refused(cpu: MemoryProcessor) -> None:
    cpu.gpr[4] = 0x8000_0000_0010
    assert fault_of(cpu, 33) == (12, 1)
    cpu.gpr[4] = STACK_TOP
    low, high = d.gate(KERNEL_CS, 0x8000_0000_0000, d.TYPE_TRAP_GATE)
    cpu.write(IDT + 33 * 16, 8, low)
    cpu.write(IDT + 33 * 16 + 8, 8, high)
    assert fault_of(cpu, 33) == (13, 1)
    cpu.idt_base = 0x7FFF_FFFF_FFF8 - 33 * 16
    assert fault_of(cpu, 33) == (13, 33 << 3 | 3)


def test_a_stack_that_is_not_mapped_is_a_page_fault_and_changes_no_register(cpu: MemoryProcessor) -> None:
    cpu.gpr[4] = 0x1000 + 8
    assert fault_of(cpu, 33) == (14, 2)


def test_a_frame_may_wrap_below_address_zero(cpu: MemoryProcessor) -> None:
    cpu.pages[0] = bytearray(4096)
    cpu.pages[0xF_FFFF_FFFF_FFFF] = bytearray(4096)
    cpu.gpr[4] = 16
    deliver(cpu, 32, None)
    assert cpu.gpr[4] == 2**64 - 24


def test_faults_are_pushed_with_the_resume_flag_and_traps_without(cpu: MemoryProcessor) -> None:
    for vector, error, resume in ((13, 0, True), (6, None, True), (1, None, False), (3, None, False), (8, 0, False)):
        cpu.run_kernel()
        cpu.rflags = 2
        raise_exception(cpu, Fault(vector, error))
        flags = cpu.stack(4)[3 if error is not None else 2]
        assert flags == (0x1_0002 if resume else 2)
        assert cpu.rflags == 2


def test_a_page_fault_sets_cr2(cpu: MemoryProcessor) -> None:
    raise_exception(cpu, Fault(14, 6, 0xDEAD_B000))
    assert cpu.cr2 == 0xDEAD_B000
    assert cpu.stack(1) == [6]


def test_an_exception_that_always_has_an_error_code_gets_one(cpu: MemoryProcessor) -> None:
    raise_exception(cpu, Fault(13))
    assert cpu.stack(2) == [0, 0x9_0000]


BENIGN, CONTRIBUTORY, PAGE = (1, 3, 5, 6, 7, 16, 19), (0, 10, 11, 12, 13), (14,)


@pytest.mark.parametrize("first", BENIGN + CONTRIBUTORY + PAGE)
def test_a_contributory_fault_on_the_way_follows_the_double_fault_table(cpu: MemoryProcessor, first: int) -> None:
    cpu.set_gate(first, present=0)
    cpu.set_gate(11) if first != 11 else None
    raise_exception(cpu, Fault(first, 0 if first in (10, 11, 12, 13, 14) else None))
    if first in BENIGN:
        assert cpu.rip == HANDLERS + 16 * 11
        assert cpu.stack(1) == [first << 3 | 3]
    else:
        assert cpu.rip == HANDLERS + 16 * 8
        assert cpu.stack(1) == [0]


@pytest.mark.parametrize(("first", "handler"), [(6, 14), (13, 14), (14, 8)])
def test_a_page_fault_on_the_way_follows_the_double_fault_table(cpu: MemoryProcessor, first: int, handler: int) -> None:
    cpu.gpr[4] = 0x10_0000  # unmapped
    cpu.set_gate(handler, stack=1)
    raise_exception(cpu, Fault(first, 0 if first != 6 else None, 0x77))
    assert cpu.rip == HANDLERS + 16 * handler
    assert cpu.cr2 == 0xF_FFF8


def test_a_double_fault_that_cannot_be_delivered_is_a_triple_fault(cpu: MemoryProcessor) -> None:
    cpu.idt_limit = 0
    before = cpu.registers()
    with pytest.raises(TripleFault, match="double fault"):
        raise_exception(cpu, Fault(6))
    with pytest.raises(TripleFault, match="double fault"):
        interrupt(cpu, 32)
    with pytest.raises(TripleFault, match="double fault"):
        software_interrupt(cpu, 3, 1)
    assert cpu.registers() == before


def test_an_interrupt_whose_gate_is_absent_raises_not_present_with_the_external_bit(cpu: MemoryProcessor) -> None:
    cpu.set_gate(32, present=0)
    interrupt(cpu, 32)
    assert (cpu.rip, cpu.stack(1)) == (HANDLERS + 16 * 11, [32 << 3 | 3])


def test_a_refused_software_interrupt_is_reported_at_itself(cpu: MemoryProcessor) -> None:
    cpu.run_user()
    software_interrupt(cpu, 0x80, 2)
    assert cpu.stack(2) == [0x402, 0x9_0000]


WORD = st.integers(0, 2**64 - 1)
NEARLY = st.sampled_from([0, 0x67, 0xFFF, 0x7FFF_FFFF_FFF8, 0x8000_0000_0000, 2**64 - 4, 2**64 - 16, STACK_TOP, 0x1004])


@settings(max_examples=400, deadline=None)
@given(
    table=st.lists(WORD, min_size=8, max_size=8),
    gate=st.tuples(WORD, WORD),
    shape=st.sampled_from([None, 0x8E, 0xEF, 0x0E, 0x85]),
    task=st.lists(WORD | NEARLY, min_size=13, max_size=13),
    rsp=WORD | NEARLY,
    bases=st.tuples(NEARLY, NEARLY, NEARLY),
    default_bases=st.booleans(),
    event=st.tuples(st.integers(0, 255), st.sampled_from([0, 1, 2, 3]), st.booleans()),
)
def test_any_tables_give_a_handler_a_fault_or_a_triple_fault(
    table: list[int],
    gate: tuple[int, int],
    shape: int | None,
    task: list[int],
    rsp: int,
    bases: tuple[int, int, int],
    default_bases: bool,
    event: tuple[int, int, bool],
) -> None:
    cpu = MemoryProcessor()
    vector, level, software = event
    if level == 3:
        cpu.run_user()
    cpu.level = level
    cpu.gpr[4] = rsp
    for index, word in enumerate(table):
        cpu.write(GDT + 8 * index, 8, word)
    low = gate[0] if shape is None else gate[0] & ~(0xFF << 40 | 0xFFC0 << 16) | shape << 40
    for each in {vector, 8, 10, 11, 12, 13, 14}:
        cpu.write(IDT + 16 * each, 8, low)
        cpu.write(IDT + 16 * each + 8, 8, gate[1])
    for index, word in enumerate(task):
        cpu.write(TSS + 4 + 8 * index, 8, word)
    if not default_bases:
        cpu.gdt_base, cpu.idt_base = bases[0], bases[1]
        cpu.segments[TR] = (TASK, bases[2], 0xFFFF_FFFF, d.PRESENT | d.TYPE_TSS_BUSY << 8)
    before = cpu.registers()
    try:
        if software:
            software_interrupt(cpu, vector, 2)
        else:
            raise_exception(cpu, Fault(vector, None, 0x55))
    except TripleFault:
        assert cpu.registers() == before
    else:
        assert cpu.segments[CS][3] & d.LONG
        assert cpu.segments[CS][0] & 3 == cpu.level <= level
