"""A guest with something of everything that a state has: a periodic interrupt, output, user code, and a bug.

Room: `tests`. Its kernel counts thirty rounds, prints one character in each, calls user code at the end of which it is
called back, and in one round, and only there, stores where it should not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from bt.loadtime import LoadTimeTranslator
from paravirt.modes.x86.hypervisor import X86Hypervisor
from tests.emulator.guest_image import DATA, HALT, KERNEL
from tests.paravirt.tiny_guest import TinyGuest

ROUNDS = 30
VICTIM = DATA + 0x100
"""What the bug destroys."""
_SET_UP = "b011e620 b020e621 b004e621 b001e621 b0fee621 b034e643 b080e640 b000e640"
_HANDLER = "50 48ff042500000700 b020e620 58 48cf"
"""Count at DATA, acknowledge, return."""
_HEAD = _SET_UP + f"48c7c3{ROUNDS:02x}000000 fb"
_LOOP = "b900200000 ffc975fc 66baf803b078ee 48ff042508000700 4883fb07 7508"
_BUG = "48891c2500010700"
"""mov [VICTIM], rbx"""
_TAIL = "48ffcb 75d5"
KERNEL_CODE = _HEAD + _LOOP + _BUG + _TAIL + HALT
BUG_AT = KERNEL + len(bytes.fromhex(_HEAD + _LOOP))
"""Address of the store that should not be."""
LOOP_AT = KERNEL + len(bytes.fromhex(_HEAD))
TICK = KERNEL + 0x800


class TickingGuest(TinyGuest):
    """The guest, ready to run."""

    def __init__(self, mode: str = "inline") -> None:
        self.translator = LoadTimeTranslator(mode)
        super().__init__(KERNEL_CODE, "", self.translator, 0.2)
        self.put(TICK, _HANDLER)
        self.gate(0x20, TICK)
        self.words[VICTIM >> 3] = 0x1234_5678

    @property
    def driver(self) -> X86Hypervisor:
        """What runs it."""
        return self.hypervisor

    def listen(self, heard: Callable[[bytes], None]) -> None:
        """Give what it prints to somebody."""
        self.machine.board.com1._output = heard


def fingerprint(driver: Any) -> tuple[Any, ...]:
    """Everything that two machines must have in common to be the same."""
    machine = driver.machine
    return (
        machine.engine.progress,
        machine.clock.now(),
        driver.exits.counts,
        machine.memory.digest(),
        machine.board.digest(),
        hashlib.sha256(repr(driver.state).encode()).hexdigest(),
        bytes(driver.shared.cast("B")),
    )
