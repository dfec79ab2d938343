"""Segment loads and descriptor inspection keep the rules of long mode."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.isa.x86 import descriptors as d
from emulator.isa.x86.processor import CS, DS, ES, FS, GS, LDTR, SS, TR, Fault
from emulator.isa.x86.segments import (
    canonical,
    lar,
    load_ldt,
    load_segment,
    load_task_register,
    lsl,
    verr,
    verw,
)
from tests.emulator.isa.x86.memory_processor import (
    FREE,
    GDT,
    KERNEL_CS,
    KERNEL_DS,
    LDT,
    TABLE,
    TASK,
    USER_CS,
    USER_CS32,
    USER_DS,
    MemoryProcessor,
)


@pytest.fixture
def cpu() -> MemoryProcessor:
    return MemoryProcessor()


def fault_of(cpu: MemoryProcessor, index: int, selector: int) -> tuple[int, int | None]:
    before = cpu.registers()
    with pytest.raises(Fault) as caught:
        load_segment(cpu, index, selector)
    assert cpu.registers() == before
    return caught.value.vector, caught.value.error


def put(cpu: MemoryProcessor, attributes: int, base: int = 0, selector: int = FREE) -> None:
    cpu.set_descriptor(selector, d.segment_descriptor(base, 0xFFF, attributes & ~d.GRANULARITY))


@pytest.mark.parametrize("index", [ES, SS, DS, FS, GS])
def test_a_data_segment_brings_its_base_limit_and_attributes(cpu: MemoryProcessor, index: int) -> None:
    put(cpu, d.FLAT_DATA, base=0xF123_4567)
    load_segment(cpu, index, FREE)
    assert cpu.segments[index] == (FREE, 0xF123_4567, 0xFFF, d.FLAT_DATA & ~d.GRANULARITY)


@pytest.mark.parametrize("index", [ES, DS, FS, GS])
def test_a_null_selector_empties_a_data_segment(cpu: MemoryProcessor, index: int) -> None:
    cpu.run_user(32)
    cpu.segments[index] = (USER_DS, 0x1234, 5, d.USER_DATA)
    load_segment(cpu, index, 3)
    assert cpu.segments[index] == (3, 0, 0, 0)


def test_a_null_stack_is_allowed_in_64_bit_mode_below_level_3_only(cpu: MemoryProcessor) -> None:
    load_segment(cpu, SS, 0)
    assert cpu.segments[SS] == (0, 0, d.FLAT_LIMIT, d.FLAT_DATA)
    assert fault_of(cpu, SS, 1) == (13, 0)
    cpu.segments[CS] = (KERNEL_CS, 0, d.FLAT_LIMIT, d.KERNEL_CODE & ~d.LONG | d.DEFAULT_BIG)
    assert fault_of(cpu, SS, 0) == (13, 0)
    cpu.run_user()
    assert fault_of(cpu, SS, 3) == (13, 0)


def test_cs_cannot_be_loaded(cpu: MemoryProcessor) -> None:
    assert fault_of(cpu, CS, KERNEL_CS) == (6, None)


@pytest.mark.parametrize("selector", [0x1000, 0x1004, 0x1007])
def test_a_selector_beyond_its_table_is_refused(cpu: MemoryProcessor, selector: int) -> None:
    assert fault_of(cpu, DS, selector) == (13, selector & 0xFFFC)


def test_the_last_descriptor_counts_when_it_fits_whole(cpu: MemoryProcessor) -> None:
    put(cpu, d.FLAT_DATA)
    cpu.gdt_limit = FREE + 7
    load_segment(cpu, DS, FREE)
    cpu.gdt_limit = FREE + 6
    assert fault_of(cpu, DS, FREE) == (13, FREE)


def test_a_local_descriptor_is_found_by_ldtr_and_only_while_one_is_loaded(cpu: MemoryProcessor) -> None:
    put(cpu, d.FLAT_DATA, selector=4)
    load_segment(cpu, DS, 4)
    load_ldt(cpu, 0)
    assert fault_of(cpu, DS, 4) == (13, 4)
    cpu.segments[LDTR] = (0, LDT, 0xFFFF, 0)  # as some machines leave it at reset
    assert fault_of(cpu, DS, 4) == (13, 4)


@pytest.mark.parametrize(
    ("attributes", "data", "stack"),
    [
        (d.FLAT_DATA & ~d.PRESENT, (11, FREE), (12, FREE)),
        (d.FLAT_DATA & ~d.WRITABLE, None, (13, FREE)),
        (d.FLAT_DATA & ~d.SEGMENT, (13, FREE), (13, FREE)),
        (d.KERNEL_CODE, None, (13, FREE)),
        (d.KERNEL_CODE & ~d.READABLE, (13, FREE), (13, FREE)),
        (d.USER_DATA, None, (13, FREE)),
    ],
)
def test_the_kernel_may_load_what_it_may_read_and_as_stack_what_it_may_write(
    cpu: MemoryProcessor, attributes: int, data: tuple[int, int] | None, stack: tuple[int, int] | None
) -> None:
    put(cpu, attributes)
    for index, expected in ((DS, data), (SS, stack)):
        if expected is None:
            load_segment(cpu, index, FREE)
        else:
            assert fault_of(cpu, index, FREE) == expected


def test_user_code_loads_no_kernel_segment_but_a_conforming_one(cpu: MemoryProcessor) -> None:
    cpu.run_user()
    for index in (DS, SS):
        assert fault_of(cpu, index, KERNEL_DS | 3) == (13, KERNEL_DS)
    put(cpu, d.KERNEL_CODE | d.CONFORMING)
    load_segment(cpu, DS, FREE | 3)


def test_the_requested_level_weakens_a_selector(cpu: MemoryProcessor) -> None:
    assert fault_of(cpu, DS, KERNEL_DS | 1) == (13, KERNEL_DS)
    assert fault_of(cpu, SS, KERNEL_DS | 1) == (13, KERNEL_DS)
    load_segment(cpu, DS, USER_DS)


def test_the_first_load_sets_the_accessed_bit_in_the_table(cpu: MemoryProcessor) -> None:
    put(cpu, d.FLAT_DATA & ~d.ACCESSED)
    load_segment(cpu, DS, FREE)
    assert cpu.read(GDT + FREE + 5, 1) == 0x93
    assert cpu.segments[DS][3] & d.ACCESSED


def test_a_task_register_load_marks_the_task_busy_once(cpu: MemoryProcessor) -> None:
    low, high = d.system_descriptor(0xFFFF_8000_0000_4000, 0x67, d.PRESENT | d.TYPE_TSS << 8)
    cpu.set_descriptor(FREE, low)
    cpu.set_descriptor(FREE + 8, high)
    load_task_register(cpu, FREE)
    assert cpu.segments[TR] == (FREE, 0xFFFF_8000_0000_4000, 0x67, d.PRESENT | d.TYPE_TSS_BUSY << 8)
    assert cpu.read(GDT + FREE, 8) == low | 2 << 40
    with pytest.raises(Fault) as caught:
        load_task_register(cpu, FREE)
    assert (caught.value.vector, caught.value.error) == (13, FREE)


def test_a_local_table_load_takes_only_a_present_ldt_of_the_global_table(cpu: MemoryProcessor) -> None:
    load_ldt(cpu, TABLE)
    for selector, low, high, vector in (
        (TASK, None, 0, 13),
        (FREE, d.TYPE_LDT << 40, 0, 11),
        (FREE, 0x82 << 40, 0x8000, 13),  # base not canonical
        (FREE, 0x82 << 40, 0x0100_0000_0000, 13),  # upper half could pass for a descriptor
        (TABLE | 4, None, 0, 13),
        (0xFF8, None, 0, 13),  # its second half is beyond the table
    ):
        if low is not None:
            cpu.set_descriptor(selector, low)
            cpu.set_descriptor(selector + 8, high)
        with pytest.raises(Fault) as caught:
            load_ldt(cpu, selector)
        assert (caught.value.vector, caught.value.error) == (vector, selector)
    load_ldt(cpu, 2)
    assert cpu.segments[LDTR][0] == 2


def test_system_registers_are_loaded_at_level_0_only(cpu: MemoryProcessor) -> None:
    cpu.run_user()
    for load, selector in ((load_ldt, TABLE), (load_task_register, TASK)):
        with pytest.raises(Fault) as caught:
            load(cpu, selector)
        assert (caught.value.vector, caught.value.error) == (13, 0)


def test_the_null_task_cannot_be_loaded(cpu: MemoryProcessor) -> None:
    with pytest.raises(Fault) as caught:
        load_task_register(cpu, 3)
    assert (caught.value.vector, caught.value.error) == (13, 0)


def test_access_rights_and_limits_are_shown_to_who_may_use_the_segment(cpu: MemoryProcessor) -> None:
    assert lar(cpu, USER_DS) == d.USER_DATA
    assert lsl(cpu, USER_DS) == d.FLAT_LIMIT
    assert lar(cpu, KERNEL_DS | 1) is None
    cpu.run_user()
    assert lar(cpu, KERNEL_DS) is None
    assert lsl(cpu, KERNEL_CS) is None
    put(cpu, d.KERNEL_CODE | d.CONFORMING)
    assert lar(cpu, FREE | 3) == (d.KERNEL_CODE | d.CONFORMING) & ~d.GRANULARITY
    assert lsl(cpu, FREE | 3) == 0xFFF
    for nothing in (0, 3, 0x1000, 0xFFFC):
        assert lar(cpu, nothing) is lsl(cpu, nothing) is None


def test_of_the_system_descriptors_long_mode_shows_ldt_tss_and_call_gates(cpu: MemoryProcessor) -> None:
    for kind in range(16):
        cpu.set_descriptor(FREE, d.segment_descriptor(0, 0x123, d.PRESENT | kind << 8))
        assert lar(cpu, FREE) == (0x8000 | kind << 8 if kind in (2, 9, 0xB, 0xC) else None)
        assert lsl(cpu, FREE) == (0x123 if kind in (2, 9, 0xB) else None)
        assert not verr(cpu, FREE)
        assert not verw(cpu, FREE)


def test_readable_and_writable_follow_type_and_level(cpu: MemoryProcessor) -> None:
    for selector, readable, writable in (
        (KERNEL_DS, True, True),
        (KERNEL_CS, True, False),
        (KERNEL_DS | 3, False, False),
        (USER_DS, True, True),
        (USER_CS32, True, False),
        (USER_CS, True, False),
        (0, False, False),
    ):
        assert (verr(cpu, selector), verw(cpu, selector)) == (readable, writable)
    put(cpu, d.KERNEL_CODE & ~d.READABLE)
    assert not verr(cpu, FREE)
    put(cpu, d.FLAT_DATA & ~d.WRITABLE)
    assert verr(cpu, FREE)
    assert not verw(cpu, FREE)


def test_canonical_addresses_are_those_that_extend_bit_47() -> None:
    for address in (0, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000, 2**64 - 1):
        assert canonical(address)
    for address in (0x8000_0000_0000, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63):
        assert not canonical(address)


WORD = st.integers(0, 2**64 - 1)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(WORD, min_size=4, max_size=4),
    st.integers(0, 0x27),
    st.integers(0, 3),
    st.integers(0, 7),
    st.sampled_from([GDT, 0, 0x7FFF_FFFF_FFFC, 0x8000_0000_0000, 2**64 - 12]),
)
def test_any_descriptors_load_or_fault(words: list[int], selector: int, level: int, index: int, base: int) -> None:
    cpu = MemoryProcessor()
    cpu.level = level
    for slot, word in enumerate(words):
        cpu.write(GDT + 8 * slot, 8, word)
    cpu.gdt_base = base
    for operation in (lar, lsl, verr, verw, load_ldt, load_task_register):
        try:
            operation(cpu, selector)
        except Fault:
            continue
    before = cpu.registers()
    try:
        load_segment(cpu, index, selector)
    except Fault:
        assert cpu.registers() == before
    else:
        assert cpu.segments[index][0] == selector
