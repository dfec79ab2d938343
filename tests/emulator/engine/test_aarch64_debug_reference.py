"""At full privilege the embedded engine has AArch64's breakpoints itself: the reference for ours."""

from collections.abc import Iterator

import pytest

from emulator.engine.exit import Exit
from emulator.engine.unicorn.aarch64 import UnicornAArch64Engine
from emulator.isa.aarch64 import encoding as e
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.aarch64.room import CODE
from tests.emulator.engine.aarch64_guest import Guest

UNMASK = 0xD503_48FF


def setting(kind: str, address: int, control: int) -> list[int]:
    """Debug register 0 of a kind ("DBGB", "DBGW") written by code, and debug exceptions enabled."""
    words = []
    values = {f"{kind}VR0_EL1": address, f"{kind}CR0_EL1": control, "MDSCR_EL1": 1 << 15 | 1 << 13}
    for name, value in values.items():
        words += [0xD280_0002 | (value & 0xFFFF) << 5, 0xF2A0_0002 | (value >> 16) << 5]  # movz, movk x2
        words.append(e.msr(BY_NAME[name].encoding, 2))
    return words


@pytest.fixture
def engine() -> Iterator[UnicornAArch64Engine]:
    opened = UnicornAArch64Engine()
    yield opened
    opened.close()


def once(_exit: Exit) -> bool:
    return True


def test_a_breakpoint_of_the_kernel_has_the_vector_syndrome_and_pc_that_ours_has(engine: UnicornAArch64Engine) -> None:
    words = setting("DBGB", CODE + 4 * 11, 1 | 1 << 1 | 0xF << 5)
    [seen] = Guest(engine, [*words, UNMASK, e.NOP, e.NOP, e.BRK], 1).run(once)
    assert (seen.vector, seen.at, seen.error & 0x3F) == (x.BREAKPOINT_SAME, 4 * 11, 0x22)
