"""What every engine must do besides its exits: stops, budgets, determinism, registers, translations, and its end."""

import mmap
from collections.abc import Callable
from itertools import pairwise

import pytest

from emulator.engine.engines import X86_ENGINES
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.x86 import X86Engine, X86Registers
from emulator.isa.x86 import registers as r
from emulator.isa.x86.room import CODE, DATA, ROOM_SIZE, ROOT
from tests.emulator.engine.bare_engine import PAGE_TABLE, BareGuest, Seen

LOOP = "48ffc3 ebfb"
"""inc rbx; jmp back: a block an iteration."""


def needs_kernels(engine: X86Engine) -> None:
    if not engine.capabilities.full_privilege:
        pytest.skip("no code runs at full privilege on this engine")


def test_a_stop_ends_the_run_and_the_next_run_goes_on(engine: X86Engine) -> None:
    guest = BareGuest(engine, "cc 48ffc3 cc 48ffc3 cc")

    def behind(exit_: Exit) -> bool:
        engine.registers.rip += exit_.length
        return False

    for count in range(3):
        (seen,) = guest.run(behind)
        assert (seen.rip, engine.registers.gpr[3]) == (CODE + 4 * count, count)


def test_a_budget_is_exact_and_may_be_set_again_from_its_exit(engine: X86Engine) -> None:
    guest = BareGuest(engine, LOOP)
    begin = engine.progress

    def again(exit_: Exit) -> bool:
        engine.set_deadline(engine.progress + 1000)
        return len(guest.exits) < 5

    engine.set_deadline(begin + 1000)
    ticks = guest.run(again)
    assert [tick.kind for tick in ticks] == [ExitKind.BUDGET] * 5
    assert {tick.rip for tick in ticks} <= {CODE, CODE + 3}
    distances = [b.progress - a.progress for a, b in pairwise(ticks)]
    if engine.capabilities.deterministic:
        assert ticks[0].progress - begin == 1000
        assert distances == [1000] * 4
    assert engine.registers.gpr[3] > 1000


def test_a_deadline_that_is_past_is_due_at_once(engine: X86Engine) -> None:
    guest = BareGuest(engine, LOOP)
    engine.set_deadline(engine.progress - 5)
    (seen,) = guest.run()
    assert seen.kind is ExitKind.BUDGET
    assert engine.registers.gpr[3] < 3


def test_progress_never_goes_back(engine: X86Engine) -> None:
    guest = BareGuest(engine, "b964000000 cc ffc9 75fb 48ffc3 f4")  # 100 x int3

    def go_on(exit_: Exit) -> bool:
        engine.registers.rip += exit_.length
        return exit_.kind is ExitKind.SOFTWARE_INTERRUPT

    progress = [seen.progress for seen in guest.run(go_on)]
    assert len(progress) == 101
    assert progress == sorted(progress)


def busy(engine: X86Engine) -> list[Seen]:
    """A run with faults, ports, interrupts and budgets in it."""
    guest = BareGuest(engine, "b920030000 e660 cc ffc9 75f9 0f0b")

    def go_on(exit_: Exit) -> bool:
        if exit_.kind is ExitKind.SOFTWARE_INTERRUPT:
            engine.registers.rip += exit_.length
        elif exit_.kind is ExitKind.BUDGET:
            engine.set_deadline(engine.progress + 7)
        return exit_.kind is not ExitKind.FAULT

    engine.set_deadline(engine.progress + 7)
    return guest.run(go_on)


def test_two_runs_make_the_same_exits_at_the_same_progress(opened: Callable[[], X86Engine]) -> None:
    runs = []
    for _ in range(2):
        engine = opened()
        if not engine.capabilities.deterministic:
            pytest.skip("this engine counts in host time")
        runs.append(busy(engine))
        engine.close()
    assert runs[0] == runs[1]
    assert {seen.kind for seen in runs[0]} >= {ExitKind.BUDGET, ExitKind.SOFTWARE_INTERRUPT, ExitKind.PORT_WRITE}


@pytest.mark.parametrize("code", ["0f0b", "cc", "e460", "e660", "0f05", "0fa2", "f4"])
def test_an_exception_of_the_handler_propagates_and_the_engine_goes_on(engine: X86Engine, code: str) -> None:
    guest = BareGuest(engine, code + "0f0b")

    def broken(_exit: Exit) -> bool:
        raise KeyError("a mistake of the handler's")

    with pytest.raises(KeyError, match="a mistake"):
        guest.run(broken)
    engine.registers.rip = CODE + len(code) // 2
    (seen,) = guest.run()
    assert (seen.kind, seen.vector) == (ExitKind.FAULT, 6)


def test_an_exception_of_a_device_propagates(engine: X86Engine) -> None:
    def broken(*_access: int) -> int:
        raise KeyError("a mistake of the device's")

    engine.map_mmio(1 << 30, 0x1000, broken, lambda *_access: None)
    guest = BareGuest(engine, "8b042510900000 f4")
    guest.page(DATA >> 12, 1 << 30 | 7)
    with pytest.raises(KeyError, match="of the device"):
        guest.run()


def test_registers_written_by_the_handler_are_the_guests(engine: X86Engine) -> None:
    guest = BareGuest(engine, "cc 4c89f8 9c 415e f4")  # int3; mov rax, r15; pushf; pop r14; hlt

    def write(exit_: Exit) -> bool:
        state = engine.registers
        if exit_.kind is not ExitKind.SOFTWARE_INTERRUPT:
            return False
        state.rip += exit_.length
        state.gpr[15] = 0x1234_5678_9ABC_DEF0
        state.rflags = r.FLAG_FIXED | r.FLAG_CF | r.FLAG_DF | r.FLAG_ZF | r.FLAG_IF
        return True

    guest.run(write)
    assert engine.registers.gpr[0] == 0x1234_5678_9ABC_DEF0
    assert engine.registers.gpr[14] == r.FLAG_FIXED | r.FLAG_CF | r.FLAG_DF | r.FLAG_ZF | r.FLAG_IF


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("extra", [0, r.FLAG_TF])
def test_flags_outlive_a_budget_whoever_writes_them(engine: X86Engine, inside: bool, extra: int) -> None:
    guest = BareGuest(engine, "ebfe f4")
    state = engine.registers
    flags = r.FLAG_FIXED | r.FLAG_CF | r.FLAG_ZF | r.FLAG_DF

    def leave(exit_: Exit) -> bool:
        if exit_.kind is not ExitKind.BUDGET:
            return False
        state.rip = CODE + 2
        state.rflags = flags | extra
        engine.set_deadline(engine.progress + 1_000_000_000)
        return inside

    engine.set_deadline(engine.progress + 5)
    seen = guest.run(leave)
    if not inside:
        seen += guest.run(leave)
    assert seen[0].kind is ExitKind.BUDGET
    assert seen[-1].rflags & ~r.FLAG_RF == flags | extra


@pytest.mark.parametrize("flags", [0, r.FLAG_CF, r.FLAG_ZF | r.FLAG_SF, r.FLAG_OF | r.FLAG_DF, r.FLAG_AF | r.FLAG_PF])
def test_flags_are_what_the_guest_computed(engine: X86Engine, flags: int) -> None:
    guest = BareGuest(engine, "9d cc")
    top = engine.registers.gpr[4] - 8
    engine.registers.gpr[4] = top
    guest.words[top >> 3] = flags | r.FLAG_FIXED
    assert guest.run()[0].rflags == flags | r.FLAG_FIXED
    engine.registers.rip = CODE
    guest.memory[CODE : CODE + 5] = bytes.fromhex("31c0ffc8cc")  # xor eax, eax; dec eax: S, P, A
    engine.code_changed(CODE, 4096)
    assert guest.run()[0].rflags & r.FLAGS_STATUS == r.FLAG_SF | r.FLAG_PF | r.FLAG_AF


def test_segments_and_tables_are_read_back_as_written(engine: X86Engine) -> None:
    BareGuest(engine, "90")
    state: X86Registers = engine.registers
    for index in range(8):
        state.set_segment(index, 0x40 + 8 * index, 0x1000 * index, 0xFFF + index, 0xC0F300)
        assert state.segment(index) == (0x40 + 8 * index, 0x1000 * index, 0xFFF + index, 0xC0F300)
        assert state.segment_base(index) == 0x1000 * index
    state.set_segment_base(5, 0xFFFF_8000_0000_1000)
    assert state.segment(5)[1] == 0xFFFF_8000_0000_1000
    for which in (0, 1):
        state.set_table(which, 0xFFFF_8000_0000_0000 + which, 0x7F)
        assert state.table(which) == (0xFFFF_8000_0000_0000 + which, 0x7F)


def test_a_segment_base_written_by_the_handler_is_used(engine: X86Engine) -> None:
    guest = BareGuest(engine, "65488b042508000000 cc")  # mov rax, gs:[8]
    engine.registers.set_segment_base(5, DATA)
    guest.words[(DATA >> 3) + 1] = 77
    guest.run()
    assert engine.registers.gpr[0] == 77


def test_loading_cs_does_not_change_the_level_and_the_level_no_selector(engine: X86Engine) -> None:
    needs_kernels(engine)
    guest = BareGuest(engine, "fa f4", level=0)
    state = engine.registers
    before = state.segment(1)
    state.set_segment(1, 0x33, 0, 0xFFFF_FFFF, 0x20FB00)
    assert state.privilege == 0
    state.set_segment(1, *before)
    state.privilege = 3
    assert state.segment(1) == before
    (seen,) = guest.run()
    assert (seen.vector, seen.rip) == (13, CODE)


def test_compatibility_code_is_32_bits_wide(engine: X86Engine) -> None:
    guest = BareGuest(engine, "48 cc")  # dec eax; int3
    engine.registers.set_segment(1, 0x23, 0, 0xFFFF_FFFF, 0xC0FB00)
    guest.run()
    assert engine.registers.gpr[0] & 0xFFFF_FFFF == 0xFFFF_FFFF


def test_sti_holds_interrupts_off_for_one_instruction(engine: X86Engine) -> None:
    needs_kernels(engine)
    guest = BareGuest(engine, "fb cc", level=0)
    guest.run()
    assert engine.registers.interrupt_shadow
    engine.registers.interrupt_shadow = False
    assert not engine.registers.interrupt_shadow


def test_a_root_that_is_set_is_the_one_that_is_walked(engine: X86Engine) -> None:
    guest = BareGuest(engine, "488b042500900000 cc")
    other = memoryview(mmap.mmap(-1, 4 * 4096))
    base, words = ROOM_SIZE, other.cast("Q")
    engine.map_memory(base, other)
    for level in range(3):
        words[512 * level] = base + 0x1000 * (level + 1) | 7
    for page in range(16):
        words[3 * 512 + page] = page << 12 | 7
    words[3 * 512 + 9] = CODE | 7
    guest.words[DATA >> 3] = 1
    for root, expected in ((ROOT, 1), (base, guest.words[CODE >> 3]), (ROOT, 1)):
        engine.set_root(root)
        engine.registers.rip = CODE
        guest.run()
        assert engine.registers.gpr[0] == expected


def test_an_entry_that_was_changed_is_seen_after_a_flush(engine: X86Engine) -> None:
    guest = BareGuest(engine, "488b042500900000 cc")
    guest.words[DATA >> 3] = 1
    guest.run()
    guest.page(DATA >> 12, CODE | 7)
    engine.flush_tlb()
    engine.registers.rip = CODE
    guest.run()
    assert engine.registers.gpr[0] == guest.words[CODE >> 3]
    guest.page(DATA >> 12, 0)
    engine.flush_tlb()
    engine.registers.rip = CODE
    assert guest.run()[0].vector == 14


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 15, 40])
@pytest.mark.parametrize("named", ["pages", "entries"])
def test_changed_entries_that_are_named_are_seen_after_a_flush(engine: X86Engine, count: int, named: str) -> None:
    first = ROOM_SIZE >> 12
    pages = memoryview(mmap.mmap(-1, 2 * count << 12))
    words = pages.cast("Q")
    for number in range(2 * count):
        words[number << 9] = 1000 + number
    # mov rsi, room's end; mov ecx, count; add rax, [rsi]; add rsi, 4096; dec ecx; jnz; int3
    code = f"be{ROOM_SIZE.to_bytes(4, 'little').hex()} b9{count.to_bytes(4, 'little').hex()}"
    guest = BareGuest(engine, code + "480306 4881c600100000 ffc9 75f2 cc")
    engine.map_memory(1 << 32, pages)
    for shift in (0, count, 0):
        changes = []
        for number in range(count):
            at = PAGE_TABLE + 8 * (first + number)
            old = guest.words[at >> 3] & ~0xFFF
            guest.page(first + number, (1 << 32) + (number + shift << 12) | 7)
            changes.append((at, old if named == "pages" and old else -1))
        engine.flush_tlb(changes)
        engine.registers.rip, engine.registers.gpr[0] = CODE, 0
        (seen,) = guest.run()
        assert seen.kind is ExitKind.SOFTWARE_INTERRUPT
        assert engine.registers.gpr[0] == sum(1000 + number + shift for number in range(count))
        assert [guest.words[at >> 3] & ~0xFFF for at, _ in changes] == [
            (1 << 32) + (number + shift << 12) for number in range(count)
        ]


def test_a_changed_table_is_seen_after_a_flush_that_names_its_entry(engine: X86Engine) -> None:
    guest = BareGuest(engine, "488b042500900000 cc")
    other = memoryview(mmap.mmap(-1, 4096))
    engine.map_memory(1 << 32, other)
    words = other.cast("Q")
    for page in range(16):
        words[page] = page << 12 | 7
    words[DATA >> 12] = CODE | 7
    guest.words[DATA >> 3] = 1
    directory = PAGE_TABLE - 0x1000
    for table, expected in ((PAGE_TABLE, 1), (1 << 32, guest.words[CODE >> 3]), (PAGE_TABLE, 1)):
        guest.words[directory >> 3] = table | 7
        engine.flush_tlb([(directory, -1)])
        engine.registers.rip = CODE
        guest.run()
        assert engine.registers.gpr[0] == expected


def test_no_breakpoint_is_lost_to_a_budget(engine: X86Engine) -> None:
    guest = BareGuest(engine, "b900040000 cc ffc9 75fb 0f0b")  # 1024 x int3

    def again(exit_: Exit) -> bool:
        if exit_.kind is ExitKind.SOFTWARE_INTERRUPT:
            engine.registers.rip += exit_.length
        engine.set_deadline(engine.progress + 20_000)
        return exit_.kind is not ExitKind.FAULT

    engine.set_deadline(engine.progress + 20_000)
    seen = guest.run(again)
    assert (seen[-1].vector, seen[-1].rip) == (6, CODE + 10)
    assert sum(one.kind is ExitKind.SOFTWARE_INTERRUPT for one in seen) == 1024


def test_an_entry_that_became_present_needs_no_flush(engine: X86Engine) -> None:
    guest = BareGuest(engine, "488b042500900000 cc")
    guest.page(DATA >> 12, 0)
    guest.words[DATA >> 3] = 5

    def fill(exit_: Exit) -> bool:
        guest.page(DATA >> 12, DATA | 7)
        return exit_.kind is ExitKind.FAULT

    assert [seen.kind for seen in guest.run(fill)] == [ExitKind.FAULT, ExitKind.SOFTWARE_INTERRUPT]
    assert engine.registers.gpr[0] == 5


@pytest.mark.parametrize("everything", [False, True])
def test_code_that_the_host_changed_is_executed_as_it_is_now(engine: X86Engine, everything: bool) -> None:
    guest = BareGuest(engine, "b801000000 cc")
    for value in range(1, 6):
        guest.memory[CODE + 1] = value
        if everything:
            engine.flush_code()
        else:
            engine.code_changed(CODE, 4096)
        engine.registers.rip = CODE
        guest.run()
        assert engine.registers.gpr[0] == value


def test_code_may_be_forgotten_within_a_block_and_what_follows_is_where_it_is(engine: X86Engine) -> None:
    if not engine.capabilities.reports_identify:
        pytest.skip("CPUID does not exit on this engine")
    guest = BareGuest(engine, "0fa2 48ffc3 e460 48ffc3 488b042500000100", level=0)

    def forget(exit_: Exit) -> bool:
        if exit_.kind is ExitKind.IDENTIFY:
            engine.flush_code()
        return exit_.kind is not ExitKind.FAULT

    for _ in range(3):
        engine.registers.rip, engine.registers.gpr[3] = CODE, 0
        found = [(seen.kind, seen.rip - CODE) for seen in guest.run(forget)]
        assert found == [(ExitKind.IDENTIFY, 0), (ExitKind.PORT_READ, 5), (ExitKind.FAULT, 10)]
        assert engine.registers.gpr[3] == 2


@pytest.mark.parametrize("ending", ["f4", "cc", "ebfe"], ids=["halt", "interrupt", "budget"])
def test_code_forgotten_within_a_block_loses_no_exit(engine: X86Engine, ending: str) -> None:
    if not engine.capabilities.reports_identify:
        pytest.skip("CPUID does not exit on this engine")
    guest = BareGuest(engine, "0fa2" * 3 + ending, level=0)

    def forget(exit_: Exit) -> bool:
        if exit_.kind is ExitKind.IDENTIFY:
            engine.flush_code()
            engine.set_deadline(engine.progress + 100)
        return exit_.kind is ExitKind.IDENTIFY

    expected = {"f4": ExitKind.HALT, "cc": ExitKind.SOFTWARE_INTERRUPT, "ebfe": ExitKind.BUDGET}[ending]
    assert [seen.kind for seen in guest.run(forget)] == [ExitKind.IDENTIFY] * 3 + [expected]


def test_code_forgotten_within_a_block_is_forgotten_before_the_next(engine: X86Engine) -> None:
    if not engine.capabilities.reports_identify:
        pytest.skip("CPUID does not exit on this engine")
    guest = BareGuest(engine, "e80b000000 0fa2 e804000000 cc 90909090", level=0)  # call f; cpuid; call f; int3
    function = CODE + 0x10
    guest.memory[function : function + 6] = bytes.fromhex("b801000000c3")

    def change(exit_: Exit) -> bool:
        guest.memory[function + 1] = 2
        engine.flush_code()
        return exit_.kind is ExitKind.IDENTIFY

    guest.run(change)
    assert engine.registers.gpr[0] == 2


def test_code_that_the_guest_changed_is_executed_as_it_is_now(engine: X86Engine) -> None:
    if not engine.capabilities.coherent_code:
        pytest.skip("this engine does not see stores to code by itself")
    guest = BareGuest(engine, "c6042509800000 02 b801000000 cc")  # mov byte [behind], 2; mov eax, 1
    guest.run()
    assert engine.registers.gpr[0] == 2


def test_msrs_are_read_back(engine: X86Engine) -> None:
    for number in (0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084, 0xC000_0102):
        engine.write_msr(number, 0x7FFF_0000 + (number & 0xFF))
        assert engine.registers.msr(number) == 0x7FFF_0000 + (number & 0xFF)


def test_control_registers_are_read_back(engine: X86Engine) -> None:
    BareGuest(engine, "90")
    state = engine.registers
    assert state.control(3) == ROOT
    assert state.control(4) & (r.CR4_PAE | r.CR4_OSFXSR) == r.CR4_PAE | r.CR4_OSFXSR
    assert state.msr(0xC000_0080) & r.EFER_LMA


def test_several_engines_run_side_by_side(opened: Callable[[], X86Engine]) -> None:
    guests = [BareGuest(opened(), f"b8{number:02x}000000 cc 48ffc3 cc") for number in range(4)]

    def behind(exit_: Exit) -> bool:
        return False

    for _ in range(2):
        for guest in guests:
            guest.run(behind)
            guest.engine.registers.rip += 1
    assert [(g.engine.registers.gpr[0], g.engine.registers.gpr[3]) for g in guests] == [(n, 1) for n in range(4)]
    for guest in guests:
        guest.close()


def test_an_engine_runs_another_within_its_handler(opened: Callable[[], X86Engine]) -> None:
    outer, inner = BareGuest(opened(), "cc f4"), BareGuest(opened(), "b807000000 cc")

    def nested(exit_: Exit) -> bool:
        if exit_.kind is ExitKind.FAULT:
            return False
        inner.run()
        outer.engine.registers.gpr[3] = inner.engine.registers.gpr[0]
        outer.engine.registers.rip += exit_.length
        return True

    outer.run(nested)
    assert outer.engine.registers.gpr[3] == 7
    outer.close()
    inner.close()


def test_close_may_be_called_twice_and_engines_opened_again_and_again(opened: Callable[[], X86Engine]) -> None:
    for _ in range(50):
        engine = opened()
        assert BareGuest(engine, "90 cc").run()[0].rip == CODE + 1
        engine.close()
        engine.close()


def test_what_an_engine_can_do_is_said_in_its_capabilities(engine: X86Engine) -> None:
    found = engine.capabilities
    assert found.name in X86_ENGINES
    assert found.exit_cost > 0
    assert all(0 <= slot < 512 for slot in found.reserved_root_slots)
