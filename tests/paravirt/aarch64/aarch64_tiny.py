"""A few AArch64 instructions as a whole guest: deprivileged on a machine, with tables, vectors and a way to end.

Room: `tests`. The guest is `emulator.isa.aarch64.room` at the beginning of memory; EL0's part is a page of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bt.loadtime import LoadTimeTranslator
from emulator.board.arm_boot import ArmEntry
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.encoding import msr
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.aarch64.room import BASE, CODE, LAND, MAIR, ROOM_SIZE, ROOT, SCTLR, TCR, furnish
from emulator.machine import EndKind, Limits, Machine
from emulator.platforms import PLATFORMS
from paravirt.modes.aarch64.hypervisor import AArch64Hypervisor
from paravirt.modes.aarch64.vcpu import VBAR
from paravirt.translator import Translator, Untouched

OFF = (0xD2B0_8000, 0xF280_0100, 0xD400_0002)
"""movz x0, #0x8400, lsl #16; movk x0, #8; hvc #0: PSCI's SYSTEM_OFF."""
KERNEL_VECTOR, USER_VECTOR = LAND + x.FROM_SPX, LAND + x.FROM_EL0
USER = BASE + 0x9000
"""EL0's code."""
USER_PAGE = 0x703 | 1 << 6 | 1 << 7 | 1 << 53


def trapping() -> Translator:
    return LoadTimeTranslator("trap", isa="aarch64")


class Guest:
    """`code` at CODE, and the words of `places` at other addresses; the vectors end the run."""

    def __init__(
        self,
        code: list[int],
        places: Mapping[int, list[int]] | None = None,
        translator: Callable[[], Translator] = Untouched,
    ) -> None:
        self.printed = bytearray()
        self.machine = Machine(
            4 << 20, self.printed.extend, platform=PLATFORMS["aarch64"], limits=Limits(guest_seconds=1.0)
        )
        memory = self.machine.memory
        furnish(memory.view[:ROOM_SIZE], b"")
        memory.write(ROOT + 0x2000 + (USER >> 12 & 511) * 8, 8, USER | USER_PAGE)
        ends = {KERNEL_VECTOR: list(OFF), USER_VECTOR: list(OFF), LAND + x.FROM_SPX + x.IRQ: list(OFF)}
        for address, words in {**ends, **(places or {}), CODE: [*code, *OFF]}.items():
            for number, word in enumerate(words):
                memory.write(address + 4 * number, 4, word)
        self.hypervisor = AArch64Hypervisor(self.machine, translator())
        self.hypervisor.enter(ArmEntry(CODE, 0))
        vcpu = self.hypervisor.vcpu
        vcpu.context.sctlr, vcpu.context.tcr, vcpu.context.ttbr0 = SCTLR, TCR, ROOT
        vcpu.system[VBAR] = LAND
        vcpu.system[BY_NAME["MAIR_EL1"].encoding] = MAIR
        self.hypervisor.translation_changed()

    def run(self) -> list[int]:
        """The general registers at the end."""
        outcome = self.hypervisor.run()
        assert outcome.kind is EndKind.POWER_OFF, outcome
        return list(self.hypervisor.vcpu.gpr)

    @property
    def caught(self) -> tuple[int, int, int]:
        """Class and specific part of the last exception's syndrome, and where it came from."""
        vcpu = self.hypervisor.vcpu
        return vcpu.esr >> 26, vcpu.esr & 0x1FF_FFFF, vcpu.elr


def load(register: int, value: int) -> list[int]:
    """movz and movk: a 48-bit number into a register."""
    first = 0xD280_0000 | (value & 0xFFFF) << 5 | register
    return [first, *(0xF280_0000 | place << 21 | (value >> 16 * place & 0xFFFF) << 5 | register for place in (1, 2))]


def to_user(pc: int = USER, pstate: int = 0) -> list[int]:
    """An exception return to EL0."""
    return [
        *load(9, pc),
        msr(BY_NAME["ELR_EL1"].encoding, 9),
        *load(9, pstate),
        msr(BY_NAME["SPSR_EL1"].encoding, 9),
        0xD69F_03E0,
    ]
