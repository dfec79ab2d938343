"""The ARM engine: exits with exact PCs, banks, worlds, slices, devices, failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from emulator.engine.arm import DATA_ABORT, FULL, IRQ, OTHER, PREFETCH_ABORT, SVC, UNDEFINED, USR, WRITE, CopiedPages
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn import arm_copies, arm_state
from emulator.engine.unicorn.arm_copies import MARK
from emulator.errors import EngineMissing
from emulator.isa.arm import tables
from tests.emulator.engine.arm_room import BASE, CODE, DATA, ROOT, SVC0, Room, room

LOAD, STORE, UDF, WFI, LOOP = 0xE591_0000, 0xE581_0000, 0xE7F0_00F0, 0xE320_F003, 0xEAFF_FFFE
EXCLUSIVE = 0xE191_0F9F
REFUSED = 0x5000_0000


@pytest.fixture
def bare() -> Iterator[Room]:
    with room() as made:
        yield made


def test_every_event_arrives_with_its_status_and_exact_pc(bare: Room) -> None:
    bare.translate()
    bare.registers.gpr[1] = REFUSED + 0x123 * 4
    seen = bare.run([LOAD, STORE, UDF, 0xE120_0070])
    assert seen == [
        (ExitKind.FAULT, DATA_ABORT, 0x005, CODE),
        (ExitKind.FAULT, DATA_ABORT, 0x005 | WRITE, CODE + 4),
        (ExitKind.FAULT, UNDEFINED, 0x005 | WRITE, CODE + 8)
        if seen[2][2]
        else (ExitKind.FAULT, UNDEFINED, 0, CODE + 8),
        (ExitKind.FAULT, PREFETCH_ABORT, 0x002, CODE + 12),
        (ExitKind.SYSTEM_CALL, seen[4][1], seen[4][2], CODE + 20),
    ]


def test_a_fetch_from_an_unmapped_page_is_at_the_page_and_a_fetch_from_no_memory_is_unbacked(bare: Room) -> None:
    bare.translate()
    bare.registers.gpr[2] = 0x1234_5678
    assert bare.run([0xE12F_FF12], most=1) == [(ExitKind.FAULT, PREFETCH_ABORT, 0x005, 0x1234_5678)]
    bare.section(0x6000_0000, 0x9000_0000 | 0xC02)
    bare.registers.gpr[2] = 0x6000_0010
    kind, _, _, pc = bare.run([0xE12F_FF12], most=1)[0]
    assert (kind, pc) == (ExitKind.UNBACKED, 0x6000_0010)


def test_waiting_is_an_exit_in_both_modes_and_pc_is_behind(bare: Room) -> None:
    for user in (True, False):
        kind, _, _, pc = bare.run([WFI], user=user, most=1)[0]
        assert (kind, pc) == (ExitKind.HALT, CODE + 4)


def test_modes_have_their_own_stack_link_and_status(bare: Room) -> None:
    registers = bare.registers
    for mode in (SVC, IRQ):
        registers.cpsr = 0xC0 | mode
        registers.gpr[13], registers.gpr[14], registers.spsr = mode, mode + 1, mode + 2
    registers.cpsr = USR
    assert registers.banked(SVC) == (SVC, SVC + 1, SVC + 2)
    registers.set_banked(IRQ, 7, 8, 9)
    registers.cpsr = 0xC0 | IRQ
    assert (registers.gpr[13], registers.gpr[14], registers.spsr) == (7, 8, 9)
    with pytest.raises(ValueError, match="current one"):
        registers.banked(IRQ)
    with pytest.raises(ValueError, match="names no mode"):
        registers.cpsr = 0x15


def test_two_worlds_have_translations_and_thread_registers_of_their_own(bare: Room) -> None:
    bare.translate(OTHER)
    bare.translate(FULL)
    other = ROOT + 0x8000
    bare.words[(other - BASE) // 4 + (BASE >> 20)] = BASE | 0xC02
    bare.words[(other - BASE) // 4 + (REFUSED >> 20)] = BASE | 0xC02
    bare.engine.set_root(other, OTHER)
    bare.engine.set_threads(FULL, 1, 2)
    bare.engine.set_threads(OTHER, 3, 4)
    read = [0xEE1D_2F50, 0xEE1D_3F70, LOAD]
    bare.put(DATA, [0x77])
    found = []
    for world in (FULL, OTHER, FULL, OTHER):
        bare.engine.use_world(world)
        bare.registers.gpr[1] = REFUSED + DATA - BASE
        exits = bare.run(read)
        found.append((bare.registers.gpr[2], bare.registers.gpr[3], exits[0][0]))
    fault, call = ExitKind.FAULT, ExitKind.SYSTEM_CALL
    assert found == [(1, 2, fault), (3, 4, call)] * 2


def test_a_page_that_is_execute_only_runs_and_cannot_be_read(bare: Room) -> None:
    bare.translate()
    bare.section(0x8000_0000, BASE + 0x1_0000 | 1)  # a table without an entry
    bare.put(BASE + 0x2_0000, [0xE3A0_0005, 0xE591_2000, SVC0])
    bare.registers.gpr[1] = 0x8000_0000

    def enter(exit_: Exit) -> bool:
        if exit_.vector != PREFETCH_ABORT:
            return False
        bare.engine.map_execute_only(FULL, 0x8000_0000, BASE + 0x2_0000)
        return True

    seen = bare.run([0xE12F_FF11], on_exit=enter)
    assert [vector for _, vector, _, _ in seen][:2] == [PREFETCH_ABORT, DATA_ABORT]
    assert bare.registers.gpr[0] == 5


def test_a_marked_page_executes_from_its_copy_without_an_exit_and_is_read_where_it_is(bare: Room) -> None:
    """A page that is read at DATA and executes from a copy: called, and called again when everything was forgotten;
    then with no root told, with no copy, without the mark, with a first-level entry that leads out of the tables."""
    page, table, own, copy = 0x8000_3000, BASE + 0x1_0000, BASE + 0x2_0000, BASE + 0x2_1000
    copies = memoryview(bytearray(len(bare.memory)))
    at = table - BASE + 4 * 3
    bare.section(0x8000_0000, table | 1)
    bare.words[at // 4] = own | MARK | 0x23  # user code may read, and not execute
    bare.put(own, [0xAAAA_AAAA])
    bare.put(copy, [0xE591_2000, 0xE280_0001, 0xE12F_FF1E])
    words = copies.cast("I")
    words[at // 4] = copy
    bare.translate(OTHER)
    bare.engine.keep_copies(CopiedPages(bare.memory, BASE, copies))
    bare.engine.execute_copies(ROOT - BASE)
    call = [0xE1A0_E00F, 0xE12F_FF11]

    def aborted() -> int:
        bare.registers.gpr[0], bare.registers.gpr[1] = 0, page
        seen = bare.run(call, on_exit=leave)
        return sum(kind is ExitKind.FAULT and vector == PREFETCH_ABORT for kind, vector, _, _ in seen)

    def leave(exit_: Exit) -> bool:
        if exit_.kind is ExitKind.FAULT:
            assert exit_.address == page
            bare.registers.pc = CODE + 8
        return True

    for _ in range(2):
        assert (aborted(), bare.registers.gpr[0], bare.registers.gpr[2]) == (0, 1, 0xAAAA_AAAA)
        bare.engine.flush_tlb()
    bare.put(BASE + 0x10_0000 + (page >> 18), [table | 1])  # the same by another root, for the upper half of addresses
    bare.section(0x8000_0000, 0)
    bare.engine.split_roots(1, BASE + 0x10_0000, OTHER)
    for lower, upper, split, exits in ((ROOT, BASE + 0x10_0000, 1, 0), (ROOT, BASE + 0x10_0000, 0, 1)):
        bare.engine.execute_copies(lower - BASE, upper - BASE, split)
        bare.engine.flush_tlb()
        assert (aborted(), bare.registers.gpr[0]) == (exits, 1 - exits)
    bare.engine.split_roots(0, 0, OTHER)
    bare.section(0x8000_0000, table | 1)
    bare.engine.execute_copies(ROOT - BASE)
    steps: tuple[tuple[Callable[[], object], Callable[[], object]], ...] = (
        (lambda: bare.engine.execute_copies(-1), lambda: bare.engine.execute_copies(ROOT - BASE)),
        (lambda: words.__setitem__(at // 4, 0), lambda: words.__setitem__(at // 4, copy)),
        (lambda: bare.put(table + 12, [own | 0x23]), lambda: bare.put(table + 12, [own | MARK | 0x23])),
        (lambda: bare.section(0x8000_0000, 0x3000_0001), lambda: bare.section(0x8000_0000, table | 1)),
    )
    for change, undo in steps:
        change()
        bare.engine.flush_tlb()
        assert (aborted(), bare.registers.gpr[0]) == (1, 0)
        undo()
        bare.engine.flush_tlb()
        assert (aborted(), bare.registers.gpr[0]) == (0, 1)


def test_copies_are_looked_up_where_the_state_has_what_is_asked_for() -> None:
    assert (
        tuple(4 * word for word in (arm_state.W_SYNDROME, arm_state.W_STATUS, arm_state.W_FAULT_ADDRESS))
        == arm_copies.PLACES
    )
    assert arm_copies.MARK == tables.APART


def test_slices_end_at_equal_progress_in_equal_runs() -> None:
    ends = []
    for _ in range(2):
        with room() as bare:
            bare.engine.set_deadline(bare.engine.progress + 1000)
            start = bare.engine.progress
            kind, _, _, pc = bare.run([LOOP], most=1)[0]
            ends.append((kind, pc, bare.engine.progress - start))
    assert ends[0] == ends[1] == (ExitKind.BUDGET, CODE, ends[0][2])
    assert 1000 <= ends[0][2] <= 1001


def test_a_device_sees_offset_and_width_and_its_failure_ends_the_run(bare: Room) -> None:
    seen: list[tuple[int, int]] = []

    def read(offset: int, size: int) -> int:
        seen.append((offset, size))
        if offset == 8:
            raise RuntimeError("device")
        return 0x1234

    bare.engine.map_mmio(0x0900_0000, 0x1000, read, lambda _o, _s, _v: None)
    bare.registers.gpr[1] = 0x0900_0004
    bare.run([LOAD], user=False)
    assert (bare.registers.gpr[0], seen) == (0x1234, [(4, 4)])
    bare.registers.gpr[1] = 0x0900_0008
    with pytest.raises(RuntimeError, match="device"):
        bare.run([LOAD], user=False)
    assert bare.run([], user=False)[0][0] is ExitKind.SYSTEM_CALL


def test_an_it_block_advances_with_the_instructions(bare: Room) -> None:
    registers = bare.registers
    registers.cpsr = USR | 0x20
    registers.pc, registers.it_state = CODE, 0b0000_1010  # ITET: three left
    registers.advance(2)
    assert (registers.pc, registers.it_state) == (CODE + 2, 0b0001_0100)
    registers.advance(4)
    assert registers.it_state == 0b0000_1000
    registers.advance(2)
    assert registers.it_state == 0


def test_clearing_the_monitor_makes_the_next_exclusive_store_fail(bare: Room) -> None:
    registers = bare.registers
    store = 0xE181_2F93  # strex r2, r3, [r1]
    for clear in (False, True):
        registers.gpr[1], registers.gpr[2] = DATA, 9

        def between(_exit: Exit, clear: bool = clear) -> bool:
            if clear:
                registers.clear_exclusive()
            return False

        bare.run([EXCLUSIVE, UDF, store], user=False, on_exit=between)
        assert registers.gpr[2] == int(clear)


def test_the_withheld_timer_is_undefined_and_the_rest_is_not(bare: Room) -> None:
    bare.engine.withhold_timer()
    words = [0xEC51_0F1E, 0xEE0E_0F33, 0xEE10_0F10]  # mrrc CNTVCT; mcr CNTV_CTL; mrc MIDR
    assert [vector for kind, vector, _, _ in bare.run(words, user=False) if kind is ExitKind.FAULT] == [UNDEFINED] * 2


def test_identification_registers_show_what_they_are_told(bare: Room) -> None:
    bare.engine.show_identity({"MIDR": 0x1234_5678, "DBGOSDLR": 0})
    bare.registers.gpr[1] = 0xFFFF_FFFF
    bare.run([0xEE10_0F10, 0xEE11_1E93, SVC0], user=False)  # mrc MIDR; mrc DBGOSDLR to r1
    assert bare.registers.gpr[0] == 0x1234_5678
    assert bare.registers.gpr[1] == 0
    assert bare.registers.system("MIDR") == 0x1234_5678


def test_an_engine_whose_state_lies_elsewhere_does_not_open(monkeypatch: pytest.MonkeyPatch) -> None:
    from emulator.engine.unicorn import arm_state
    from emulator.engine.unicorn.arm import UnicornArmEngine

    monkeypatch.setattr(arm_state, "_THUMB", arm_state._THUMB + 1)
    with pytest.raises(EngineMissing, match="elsewhere"):
        UnicornArmEngine()
