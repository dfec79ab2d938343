"""Each departure of Unicorn from AArch64, shown raw: a test fails when upstream mends it."""

import ctypes
import mmap
from collections.abc import Iterator

import pytest
from unicorn import arm64_const

from emulator.engine.aarch64 import SP
from emulator.engine.exit import Exit, ExitKind
from emulator.engine.unicorn.aarch64 import UnicornAArch64Engine
from emulator.engine.unicorn.aarch64_quirks import QUIRKS
from emulator.engine.unicorn.aarch64_state import SCR_EL3
from emulator.engine.unicorn.floating_access import CHOICE
from emulator.isa.aarch64 import encoding as e
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.aarch64.room import BASE, CODE, DATA, MAIR, ROOM_SIZE, ROOT, SCTLR, STACK, TCR, furnish
from tests.emulator.engine.aarch64_guest import Guest
from tests.emulator.engine.test_aarch64_debug_reference import UNMASK, setting

LOAD = 0xF940_0020
ADD_1 = 0x9100_0400


@pytest.fixture
def engine() -> Iterator[UnicornAArch64Engine]:
    opened = UnicornAArch64Engine()
    yield opened
    opened.close()


def once(_exit: Exit) -> bool:
    return True


def test_every_quirk_names_a_test_that_is_here() -> None:
    assert [quirk.test for quirk in QUIRKS if quirk.test not in globals()] == []


def test_without_scr_rw_translation_is_aarch32(engine: UnicornAArch64Engine) -> None:
    guest = Guest(engine, [e.NOP], 0)
    engine.registers.set_public(SCR_EL3, 0x30)
    engine.flush_tlb()
    [seen] = guest.run(once)
    assert (seen.vector, seen.at) == (x.FETCH_LOWER, 0)


def test_writing_pstate_does_not_change_the_level(engine: UnicornAArch64Engine) -> None:
    guest = Guest(engine, [e.mrs(BY_NAME["CurrentEL"].encoding), e.BRK], 1)
    value = ctypes.c_uint64(0)
    engine.library.uc_reg_write(engine.handle, arm64_const.UC_ARM64_REG_PSTATE, ctypes.byref(value))
    assert engine.registers.level == 0
    [seen] = guest.run(once)
    assert seen.vector == x.BREAKPOINT  # the register of EL1 was read


def test_an_exception_leaves_esr_and_far_alone(engine: UnicornAArch64Engine) -> None:
    guest = Guest(engine, [LOAD], 1)
    engine.registers.gpr[1] = 0x1000
    [seen] = guest.run(once)
    assert seen.vector == x.DATA_SAME
    assert [engine.registers.system(BY_NAME[name].encoding) for name in ("ESR_EL1", "FAR_EL1", "ELR_EL1")] == [0, 0, 0]


def test_a_misaligned_pc_is_executed(engine: UnicornAArch64Engine) -> None:
    guest = Guest(engine, [0xD61F_0020], 0)
    guest.memory[CODE + 0x42 - BASE : CODE + 0x46 - BASE] = ADD_1.to_bytes(4, "little")
    engine.registers.gpr[1] = CODE + 0x42
    [seen] = guest.run(once)
    assert engine.registers.gpr[0] == 1
    assert (seen.vector, seen.at) == (x.PC_ALIGNMENT, 0x46)  # by the engine, at the first word that faults


def test_a_misaligned_sp_is_used(engine: UnicornAArch64Engine) -> None:
    guest = Guest(engine, [0xF940_03E0, e.BRK], 0, SCTLR | 3 << 3)
    engine.registers.gpr[SP] = STACK + 8
    assert guest.run(once)[0].vector == x.BREAKPOINT


def test_smc_exits_with_pc_behind_it(engine: UnicornAArch64Engine) -> None:
    guest = Guest(engine, [e.SMC], 1)
    raw = []
    engine._hook(  # called behind the engine's own callback, which has put PC back
        1,
        ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p)(
            lambda _u, number, _p: raw.append(number)
        ),
    )
    [seen] = guest.run(once)
    assert (seen.vector, seen.at) == (x.UNKNOWN, 0)
    assert raw == [13]


def test_cntvct_counts_the_hosts_time(engine: UnicornAArch64Engine) -> None:
    guest = Guest(engine, [0xD53B_E040, 0xD53B_E041, e.BRK], 1)
    guest.run(once)
    first = engine.registers.gpr[1]
    engine.registers.pc = CODE
    guest.run(once)
    assert engine.registers.gpr[0] > first > 0


def test_the_virtual_timer_keeps_its_status_clear(engine: UnicornAArch64Engine) -> None:
    read, write = e.mrs(BY_NAME["CNTV_CTL_EL0"].encoding), e.msr(BY_NAME["CNTV_CTL_EL0"].encoding)
    guest = Guest(engine, [write, read, e.BRK], 1)  # enabled, its compare value 0 long past
    engine.registers.gpr[0] = 1
    [seen] = guest.run(once)
    assert (seen.kind, seen.vector) == (ExitKind.FAULT, x.BREAKPOINT)
    assert engine.registers.gpr[0] & 4 == 0


def test_host_stores_leave_stale_code(engine: UnicornAArch64Engine) -> None:
    guest = Guest(engine, [ADD_1, e.BRK], 0)
    guest.run(once)
    guest.write(CODE, e.NOP)
    engine.registers.pc = CODE
    guest.run(once)
    assert engine.registers.gpr[0] == 2
    engine.code_changed(CODE, 4)
    engine.registers.pc = CODE
    guest.run(once)
    assert engine.registers.gpr[0] == 2


def test_the_engine_refuses_a_state_that_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from emulator.engine.unicorn import aarch64_state
    from emulator.errors import EngineMissing

    monkeypatch.setitem(aarch64_state.IN_PLACE, "TTBR1_EL1", aarch64_state.IN_PLACE["TTBR0_EL1"])
    with pytest.raises(EngineMissing, match="keeps TTBR1_EL1 of its AArch64 processor elsewhere"):
        UnicornAArch64Engine()


def test_a_room_mapped_twice_is_one_memory(engine: UnicornAArch64Engine) -> None:
    room = memoryview(mmap.mmap(-1, ROOM_SIZE))
    furnish(room, LOAD.to_bytes(4, "little"))
    engine.map_memory(BASE, room)
    engine.map_memory(1 << 33, room)
    room[DATA - BASE : DATA - BASE + 4] = b"\x2a\0\0\0"
    engine.set_roots(ROOT, 0)
    engine.set_control(SCTLR, TCR, MAIR)
    engine.registers.level, engine.registers.pc, engine.registers.gpr[1] = 0, CODE, DATA
    engine.run(lambda _exit: engine.stop())
    assert engine.registers.gpr[0] == 0x2A


def test_a_watchpoint_never_fires(engine: UnicornAArch64Engine) -> None:
    words = setting("DBGW", DATA, 1 | 1 << 1 | 2 << 3 | 0xFF << 5)
    guest = Guest(engine, [*words, UNMASK, 0xF900_0020, e.BRK], 1)  # str x0, [x1]
    engine.registers.gpr[1] = DATA
    [seen] = guest.run(once)
    assert (seen.vector, seen.at) == (x.BREAKPOINT, 4 * 11)


FADD = 0x1E60_2800
"""fadd d0, d0, d0."""


def test_floating_point_runs_whatever_cpacr_says(engine: UnicornAArch64Engine) -> None:
    guest = Guest(engine, [e.msr(BY_NAME["CPACR_EL1"].encoding, 0), e.NOP, FADD, e.BRK], 1)
    [seen] = guest.run(once)
    assert (seen.vector, seen.at) == (x.FLOATING_POINT, 8), "asked, as it is for everybody"
    engine.registers.words[CHOICE // 8] = 0  # what is put in its place says the same as Unicorn's
    engine.registers.pc = CODE
    assert guest.run(once)[-1].vector == x.BREAKPOINT


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("rights", [0, 1, 2, 3])
@pytest.mark.parametrize("register", ["TPIDR_EL0", "PMEVCNTR0_EL0"])
def test_a_word_says_whether_floating_point_runs(
    engine: UnicornAArch64Engine, register: str, rights: int, view: int
) -> None:
    """It is looked at behind a write of a register that EL0 may have, and not before."""
    # fadd; str x0, [x1]; fadd; msr, x0; fadd
    guest = Guest(engine, [FADD, 0xF900_0020, FADD, e.msr(BY_NAME[register].encoding, 0), FADD, e.BRK])
    engine.set_roots(ROOT, 0, view)
    engine.registers.level = 0
    engine.allow_user(0, True)
    words = guest.memory[DATA - BASE : DATA - BASE + 8].cast("Q")
    words[0] = 3 << 20
    engine.ask_floating_point(words)
    engine.registers.gpr[0], engine.registers.gpr[1] = rights << 20, DATA
    [seen] = guest.run(once)
    runs = rights == 3 or (rights == 1 and view == 0)
    assert (seen.vector, seen.at) == ((x.BREAKPOINT, 20) if runs else (x.FLOATING_POINT, 16))
