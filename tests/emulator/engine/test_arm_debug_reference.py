"""At full privilege the embedded engine has ARMv7's breakpoints itself: the reference for ours."""

from collections.abc import Iterator

import pytest

from emulator.engine.unicorn.arm_state import W_SYNDROME
from tests.emulator.engine.arm_room import BASE
from tests.emulator.engine.test_arm_quirks import Raw


@pytest.fixture
def raw() -> Iterator[Raw]:
    made = Raw()
    yield made
    made.close()


def test_a_breakpoint_of_the_kernel_is_before_its_instruction_as_ours_is(raw: Raw) -> None:
    at = BASE + 4 * 12
    words = []
    for word, value in ((0xEE00_0E90, at), (0xEE00_0EB0, 0x1E7), (0xEE00_0E52, 1 << 15)):
        low, high = value & 0xFFFF, value >> 16
        words += [0xE300_9000 | (low >> 12) << 16 | low & 0xFFF, 0xE340_9000 | (high >> 12) << 16 | high & 0xFFF]
        words.append(word | 9 << 12)  # DBGBVR0, DBGBCR0, DBGDSCR
    for number, word in enumerate([*words, *[0xE1A0_0000] * 4, 0xE120_0070]):  # nop; bkpt
        raw.memory.cast("I")[number] = word
    raw.registers.words[W_SYNDROME] = 0
    raw.library.uc_emu_start(raw.handle, BASE, raw.nowhere, 0, 0)
    assert raw.told[-1][1] == at
