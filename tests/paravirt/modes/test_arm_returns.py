"""ARMv7 deprivileged: what a return from an exception does to the exclusive monitor and to an IT block."""

from __future__ import annotations

import pytest

from emulator.isa.arm import exceptions as x
from tests.paravirt.modes.test_arm_debug import SVC, USER, VECTORS, WAYS, Guest, load, to_user

LDREX, STREX = 0xE191_2F9F, 0xE181_3F92
"""ldrex r2, [r1]; strex r3, r2, [r1]."""
AFTER_SVC = VECTORS + 0x100 + 0x80 * 2


def serving(code: list[int], user: list[int], mode: str, calls: list[int]) -> Guest:
    """A guest whose supervisor calls are handled by `calls`."""
    guest = Guest(code, user, mode)
    for number, word in enumerate(calls):
        guest.machine.memory.write(AFTER_SVC + 4 * number, 4, word)
    return guest


@WAYS
def test_a_return_from_an_exception_clears_the_monitor(mode: str) -> None:
    """The handler returns from the first call; R7 is 1 at the second, which ends the run."""
    calls = [0xE357_0001, 0x13A0_7001, 0x11B0_F00E, *load(0, 0x8400_0008), 0xE140_0070]  # cmp; movne; movsne pc, lr
    user = [*load(7, 0), *load(1, USER + 0x1000), LDREX, SVC, STREX, SVC]
    assert serving(to_user(), user, mode, calls).run()[3] == 1


@WAYS
def test_without_an_exception_in_between_the_monitor_stays(mode: str) -> None:
    assert Guest(to_user(), [*load(1, USER + 0x1000), LDREX, STREX, SVC], mode).run()[3] == 0


@pytest.mark.parametrize("equal", [False, True])
def test_a_call_within_an_it_block_comes_back_into_the_block(equal: bool) -> None:
    """itte eq; svc #0 if equal; moveq r4, #1; movne r5, #1; svc #0 ends the run, for R7 is 1 then."""
    calls = [0xE357_0001, 0x13A0_7001, 0x11B0_F00E, *load(0, 0x8400_0008), 0xE140_0070]
    it_block = [0xBF06, 0xDF00, 0x2401, 0x2501, 0x2701, 0xDF00]
    halves = [0x2700, 0x2400, 0x2500, 0x2600 if equal else 0x2601, *it_block]  # movs r6 sets Z or clears it
    words = [low | high << 16 for low, high in zip(halves[::2], [*halves[1::2], 0xBF00], strict=False)]
    guest = serving(to_user(USER, x.USR | 1 << 5), words, "trap", calls)
    gpr = guest.run()
    assert (gpr[4], gpr[5]) == ((1, 0) if equal else (0, 1))
