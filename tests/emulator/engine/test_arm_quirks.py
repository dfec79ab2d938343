"""Each departure of Unicorn from ARMv7, shown raw: a test that fails here says that upstream has mended it."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator

import pytest
import unicorn
from unicorn import arm_const

from emulator.engine.arm import OTHER, SVC
from emulator.engine.exit import ExitKind
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.arm_quirks import ARM_QUIRKS
from emulator.engine.unicorn.arm_state import W_SYNDROME, UnicornArmRegisters, find_state
from emulator.engine.unicorn.core import UnicornCpu
from emulator.engine.unicorn.floating_access import CHOICE
from tests.emulator.engine.arm_room import BASE, CODE, DATA, Room, room

VADD = 0xEE30_0B00
"""vadd.f64 d0, d0, d0."""


@pytest.fixture
def bare() -> Iterator[Room]:
    with room() as made:
        yield made


def test_every_quirk_names_a_test_of_this_file() -> None:
    assert {quirk.test for quirk in ARM_QUIRKS} <= set(globals())


class Raw(UnicornCpu):
    """Unicorn's ARM with nothing mended: what its hooks are told."""

    def __init__(self) -> None:
        super().__init__(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_ARM, arm_const.UC_CPU_ARM_CORTEX_A7)
        assert self.handle is not None
        self.registers = UnicornArmRegisters(self.library, self.handle, find_state(self.library, self.handle))
        self.told: list[tuple[int, int, int]] = []
        """Number of the exception (-1: undefined), PC, syndrome."""
        self.memory = memoryview(mmap.mmap(-1, 0x1000))
        self.map_memory(BASE, self.memory)
        self._hook(lib.HOOK_INTR, lib.FaultCallback(lambda _e, number, _u: self._tell(number)))
        self._hook(lib.HOOK_INSN_INVALID, lib.InvalidCallback(lambda _e, _u: self._tell(-1)))

    def _tell(self, number: int) -> int:
        words = self.registers.words
        self.told.append((number, self.registers.pc, words[W_SYNDROME]))
        self.library.uc_emu_stop(self.handle)
        return 1

    def execute(self, word: int) -> tuple[int, int, int]:
        """What is told of one instruction at BASE in Supervisor mode."""
        self.memory.cast("I")[0] = word
        self.registers.words[W_SYNDROME] = 0
        self.library.uc_emu_start(self.handle, BASE, self.nowhere, 0, 0)
        return self.told[-1]


@pytest.fixture
def raw() -> Iterator[Raw]:
    made = Raw()
    yield made
    made.close()


@pytest.mark.parametrize("word", [0xE320_F002, 0xE320_F001], ids=["WFE", "YIELD"])
def test_wfe_and_yield_arrive_without_a_syndrome_and_behind_the_instruction(word: int, raw: Raw) -> None:
    assert raw.execute(word) == (-1, BASE + 4, 0)


def test_a_monitor_call_arrives_behind_the_instruction(raw: Raw) -> None:
    number, pc, _ = raw.execute(0xE160_0070)
    assert (number, pc) == (13, BASE + 4)


def _flush_of_one_page_reaches_another(bare: Room) -> bool:
    """Whether a stale translation of one page is gone after another page was flushed."""
    bare.translate()
    bare.section(0x5000_0000, BASE + 0x1_0000 | 1)
    table = BASE + 0x1_0000
    bare.put(table, [BASE + 0x2_0000 | 0x3E, BASE + 0x2_1000 | 0x3E])
    bare.registers.gpr[1], bare.registers.gpr[2] = 0x5000_0000, 0x5000_1000
    bare.run([0xE591_0000, 0xE592_0000])
    bare.put(table, [0, 0])
    bare.engine.flush_page(0, 0x5000_0000)
    bare.registers.gpr[2] = 0x5000_1000
    return bare.run([0xE592_0000])[0][0] is ExitKind.FAULT


def test_without_a_page_size_the_flush_of_one_page_flushes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    with room() as bare:
        assert not _flush_of_one_page_reaches_another(bare)
    plain = UnicornCpu.__init__
    monkeypatch.setattr(UnicornCpu, "__init__", lambda self, a, m, model=None, _size=0: plain(self, a, m, model))
    with room() as bare:
        assert _flush_of_one_page_reaches_another(bare)


def test_a_misaligned_load_completes_though_sctlr_forbids_it(bare: Room) -> None:
    bare.translate()
    bare.engine.enable_translation(0, 0x00C5_007B)
    bare.registers.gpr[1] = DATA + 1
    assert bare.run([0xE591_0000])[0][0] is ExitKind.SYSTEM_CALL


def test_the_domain_is_looked_at_before_the_second_level(bare: Room) -> None:
    bare.translate()
    bare.section(0x5000_0000, BASE + 0x1_0000 | 1 << 5 | 1)  # domain 1, which has no access; no second-level entry
    bare.registers.gpr[1] = 0x5000_0000
    assert bare.run([0xE591_0000])[0][2] & 0xF == 0xB


def test_code_written_through_another_mapping_is_kept_in_spite_of_maintenance(bare: Room) -> None:
    bare.translate()
    bare.section(0x5000_0000, BASE | 0xC12)  # not executable: there stores are fast
    alias = 0x5000_0000 + 0xA000
    bare.put(BASE + 0xA000, [0xE3A0_0001, 0xE12F_FF1E])  # mov r0, #1; bx lr
    registers = bare.registers
    registers.cpsr = 0xC0 | SVC
    code = [0xE1A0_400E]  # mov r4, lr
    code += [0xE12F_FF31, 0xE583_2000, 0xEE07_3F35, 0xF57F_F06F] * 3  # blx r1; str r2, [r3]; icimvau r3; isb
    code.append(0xE12F_FF31)
    registers.gpr[1], registers.gpr[2], registers.gpr[3] = BASE + 0xA000, 0xE3A0_0002, alias
    bare.run(code, user=False)
    first = registers.gpr[0]
    registers.gpr[2] = 0xE3A0_0003
    bare.put(CODE, [*code, 0xEF00_0000])
    registers.pc = CODE
    bare.engine.run(lambda _exit: bare.engine.stop())
    assert bare.words[0xA000 // 4] == 0xE3A0_0003
    assert (first, registers.gpr[0]) == (2, 2)


def test_adds_into_pc_keeps_the_mode(bare: Room) -> None:
    bare.registers.cpsr = 0xC0 | SVC
    bare.registers.spsr = 0x10
    bare.registers.gpr[2], bare.registers.gpr[3] = CODE, 4
    bare.run([0xE092_F003], user=False)  # adds pc, r2, r3
    assert bare.registers.cpsr & 0x1F == SVC


def test_the_counter_moves_while_no_instruction_runs(bare: Room) -> None:
    bare.run([0xEC51_0F1E], user=False)
    before = bare.registers.gpr[0] | bare.registers.gpr[1] << 32
    time.sleep(0.01)
    bare.run([0xEC51_0F1E], user=False)
    assert bare.registers.gpr[0] | bare.registers.gpr[1] << 32 > before


def test_floating_point_runs_whatever_cpacr_says(bare: Room) -> None:
    bare.translate()
    bare.registers.fpexc = 1 << 30
    code = [0xEE01_0F50, 0xF57F_F06F, VADD]  # mcr p15, 0, r0, c1, c0, 2; isb; vadd.f64 d0, d0, d0
    bare.registers.gpr[0] = 0
    assert bare.run(code, user=False)[0][:2] == (ExitKind.FAULT, 1)
    bare.registers.words[CHOICE // 4] = 0  # what is put in its place says the same as Unicorn's
    assert len(bare.run(code, user=False)) == 1


@pytest.mark.parametrize("world", [0, 1])
@pytest.mark.parametrize(("rights", "enabled"), [(0, 1), (1, 1), (2, 1), (3, 1), (3, 0)])
def test_words_say_whether_floating_point_runs(bare: Room, world: int, rights: int, enabled: int) -> None:
    """They are looked at behind a write of TPIDRURW, and not before."""
    bare.translate(world)
    words = bare.words[(DATA - BASE) // 4 : (DATA - BASE) // 4 + 2]
    words[0], words[1] = 0x00F0_0000, 1 << 30
    bare.engine.ask_floating_point(words)
    bare.registers.fpexc = 1 << 30
    for number, value in enumerate((rights << 20, enabled << 30, DATA)):
        bare.registers.gpr[number] = value
    # vadd; str r0, [r2]; str r1, [r2, #4]; vadd; mcr tpidrurw; vadd
    seen = bare.run([VADD, 0xE582_0000, 0xE582_1004, VADD, 0xEE0D_0F50, VADD])
    runs = enabled and (rights == 3 or (rights == 1 and world == OTHER))
    assert [pc - CODE for kind, _, _, pc in seen if kind is ExitKind.FAULT] == ([] if runs else [20])
