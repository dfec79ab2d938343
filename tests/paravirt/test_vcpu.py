"""The virtual CPU: what the guest sees of flags, privilege and segments, and what the real processor holds instead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.engine.engines import X86_ENGINES
from emulator.engine.x86 import X86Engine
from emulator.isa.x86 import registers as r
from emulator.isa.x86.processor import Processor
from paravirt import abi
from paravirt.modes.x86.vcpu import X86VirtualCpu

STATUS = r.FLAGS_STATUS | r.FLAG_DF | r.FLAG_AC | r.FLAG_ID | r.FLAG_NT
DELTA, PRIVILEGE, CONTROL = abi.INTERRUPT_DELTA >> 3, abi.IO_PRIVILEGE >> 3, abi.CONTROL_REGISTERS >> 3


@pytest.fixture(scope="module")
def engine() -> Iterator[X86Engine]:
    opened = next(iter(X86_ENGINES.values()))()
    yield opened
    opened.close()


@pytest.fixture
def vcpu(engine: X86Engine) -> X86VirtualCpu:
    cpu = X86VirtualCpu(engine.registers, memoryview(bytearray(8192)), memoryview(bytearray(4096)).cast("Q"))
    cpu.rflags = r.FLAG_FIXED
    return cpu


def test_it_is_a_processor_of_the_semantics(vcpu: X86VirtualCpu) -> None:
    processor: Processor = vcpu
    assert processor.cpl == 0


@settings(max_examples=200, deadline=None)
@given(
    flags=st.integers(0, STATUS).map(lambda x: x & STATUS),
    enabled=st.booleans(),
    iopl=st.integers(0, 3),
    level=st.sampled_from([0, 3]),
    to=st.sampled_from([0, 3]),
)
def test_flags_are_read_as_written_at_every_level_and_across_levels(
    engine: X86Engine, flags: int, enabled: bool, iopl: int, level: int, to: int
) -> None:
    cpu = X86VirtualCpu(engine.registers, memoryview(bytearray(4096)), memoryview(bytearray(4096)).cast("Q"))
    cpu.level = level
    value = flags | r.FLAG_FIXED | r.FLAG_IF * enabled | iopl << 12
    cpu.rflags = value
    assert cpu.rflags == value
    assert cpu.interrupts_enabled is enabled
    assert cpu.iopl == iopl
    cpu.set_privilege(to)
    assert (cpu.rflags, cpu.cpl) == (value, to)


def test_the_real_flags_of_a_kernel_are_enabled_without_io_privilege(vcpu: X86VirtualCpu, engine: X86Engine) -> None:
    for value in (r.FLAG_FIXED, r.FLAG_FIXED | r.FLAG_IF | r.FLAG_IOPL):
        vcpu.rflags = value
        real = engine.registers.rflags
        assert real & (r.FLAG_IF | r.FLAG_IOPL) == r.FLAG_IF
        shown = real + vcpu.shared[DELTA] + vcpu.shared[PRIVILEGE] & 0xFFFF_FFFF_FFFF_FFFF
        assert shown == value, "real flags + delta + privilege are the virtual ones"


def test_the_real_flags_of_user_code_are_the_virtual_ones(vcpu: X86VirtualCpu, engine: X86Engine) -> None:
    vcpu.level = 3
    vcpu.rflags = r.FLAG_FIXED | r.FLAG_IOPL
    assert engine.registers.rflags & (r.FLAG_IF | r.FLAG_IOPL) == r.FLAG_IOPL
    vcpu.interrupts_enabled = True
    assert vcpu.rflags & r.FLAG_IF


@pytest.mark.parametrize("word", [1, 0x200, 0xFFFF_FFFF_FFFF_FFFF, abi.INTERRUPTS_DISABLED & (1 << 64) - 1])
def test_whatever_a_guest_puts_into_the_shared_word_means_disabled(vcpu: X86VirtualCpu, word: int) -> None:
    vcpu.shared[DELTA] = word
    assert not vcpu.interrupts_enabled
    assert vcpu.rflags & r.FLAG_IF == 0


@pytest.mark.parametrize(("index", "selector", "real"), [(1, 0x10, 0x13), (2, 0x18, 0x1B), (3, 0x18, 0x18), (5, 0, 0)])
def test_the_guest_sees_the_selector_it_loaded_and_the_processor_ring_three(
    vcpu: X86VirtualCpu, engine: X86Engine, index: int, selector: int, real: int
) -> None:
    attributes = 0xA09B00 if index == 1 else 0xC09300
    vcpu.set_segment(index, selector, 0x1000, 0xFFFF_FFFF, attributes)
    assert vcpu.segment(index) == (selector, 0x1000, 0xFFFF_FFFF, attributes)
    found = engine.registers.segment(index)
    assert found[0] == real
    assert found[3] & 3 << 13 == 3 << 13


def test_a_segment_that_user_code_loads_itself_is_the_real_one(vcpu: X86VirtualCpu, engine: X86Engine) -> None:
    vcpu.set_segment(3, 0x18, 0, 0xFFFF_FFFF, 0xC09300)
    engine.registers.set_segment(3, 0x2B, 0, 0xFFFF_FFFF, 0xC0F300)
    assert vcpu.segment(3) == (0x2B, 0, 0xFFFF_FFFF, 0xC0F300)


def test_task_and_local_table_registers_show_their_selectors_and_reach_nothing(
    vcpu: X86VirtualCpu, engine: X86Engine
) -> None:
    for index, kind in ((6, 0x8200), (7, 0x8B00)):
        vcpu.set_segment(index, 0x40, 0xFFFF_8000_0000_0000, 0x67, kind)
        assert vcpu.segment(index) == (0x40, 0xFFFF_8000_0000_0000, 0x67, kind)
        assert engine.registers.segment(index) == (0x40, 0, 0, kind & ~0x8000)


def test_control_registers_are_published_in_the_shared_page(vcpu: X86VirtualCpu) -> None:
    vcpu.cr0, vcpu.cr2, vcpu.cr3, vcpu.cr4 = 0x8005_0033, 0x1234, 0x5000, 0xA0
    assert [vcpu.shared[CONTROL + number] for number in (0, 2, 3, 4)] == [0x8005_0033, 0x1234, 0x5000, 0xA0]
    assert vcpu.context.write_protect
    assert vcpu.context.root == 0x5000


def test_long_mode_cannot_be_left_by_efer(vcpu: X86VirtualCpu) -> None:
    vcpu.efer = 0x901
    assert vcpu.efer == 0xD01
    assert vcpu.context.no_execute


def test_equal_processors_have_equal_states_and_other_ones_not(vcpu: X86VirtualCpu) -> None:
    before = vcpu.state
    assert vcpu.state == before
    hash(before)
    seen = {before}
    vcpu.cr8 = 3
    seen.add(vcpu.state)
    vcpu.msrs[0x277] = 1
    seen.add(vcpu.state)
    vcpu.kernel_gs_base = 9
    seen.add(vcpu.state)
    vcpu.debug[0] = 5
    seen.add(vcpu.state)
    assert len(seen) == 5
