"""A look at an AArch64 processor.

Room: `bt/verify/views`. Names are those of the Arm Architecture Reference Manual (DDI 0487).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from bt.verify.views.view import View
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.paging import TranslationContext, Walker
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.exceptions import ArchitecturalException
from emulator.native.aarch64 import AArch64NativeCpu
from paravirt.modes.aarch64.hypervisor import AArch64Hypervisor

if TYPE_CHECKING:
    from bt.session import Session

_BASE: Final = 0xFFFF_FFFF_FFFE
"""Of TTBR0_EL1: the table's address (D17.2.144, without the ASID and CnP)."""
_FROM_EL0: Final = {
    x.FETCH_SAME: x.FETCH_LOWER,
    x.DATA_SAME: x.DATA_LOWER,
    x.STEP_SAME: x.STEP_LOWER,
}
_VBAR: Final = BY_NAME["VBAR_EL1"].encoding
_TRANSLATION: Final = ("SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1")
_CODES: Final = tuple(BY_NAME[name].encoding for name in _TRANSLATION)
_REST: Final = ("ELR_EL1", "SPSR_EL1", "ESR_EL1", "FAR_EL1")


class AArch64View(View):
    """The processor of a reference run, or the virtual one."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        driver = session.driver
        assert isinstance(driver, AArch64NativeCpu | AArch64Hypervisor)
        self.cpu = driver if isinstance(driver, AArch64NativeCpu) else driver.vcpu
        self.real = self.cpu.registers
        self._context = TranslationContext()
        self._walker = Walker(self.memory.words, self.memory.base, self._context)

    @property
    def level(self) -> int:
        """The exception level."""
        return self.cpu.level

    @property
    def pstate(self) -> int:
        """PSTATE as SPSR_EL1 would have it."""
        cpu = self.cpu
        return self.real.pstate if isinstance(cpu, AArch64NativeCpu) else cpu.pstate

    def translation(self) -> tuple[int, int, int, int]:
        """SCTLR_EL1, TCR_EL1, TTBR0_EL1 and TTBR1_EL1."""
        cpu = self.cpu
        if isinstance(cpu, AArch64NativeCpu):
            sctlr, tcr, ttbr0, ttbr1 = (self.real.system(code) for code in _CODES)
            return sctlr, tcr, ttbr0, ttbr1
        return cpu.context.sctlr, cpu.context.tcr, cpu.context.ttbr0, cpu.context.ttbr1

    def space(self) -> int:
        """The table in TTBR0_EL1."""
        return self.translation()[2] & _BASE

    def named(self, kind: str, number: int) -> tuple[str, int]:
        """Of an exception that has one class at EL0 and one at EL1, that of the level it came from."""
        return kind, number if self.level or kind != "exception" else _FROM_EL0.get(number, number)

    def registers(self) -> tuple[int, ...]:
        """X0 to X30, SP and PSTATE."""
        return (*self.cpu_gpr(), self.pstate)

    def cpu_gpr(self) -> tuple[int, ...]:
        """X0 to X30, and the stack pointer in use."""
        return tuple(map(int, self.real.gpr))

    def code(self, address: int) -> bytes:
        """By the guest's own tables."""
        context = self._context
        context.generation += 1
        context.sctlr, context.tcr, context.ttbr0, context.ttbr1 = self.translation()
        try:
            frame = self._walker.walk(address & ~0xFFF, False, not self.level, True).frame
        except ArchitecturalException:
            return b""
        return self.from_page(frame | address & 0xFFF)

    def final(self) -> Iterator[tuple[str, int]]:
        """General, translation, exception and vector registers."""
        cpu, real = self.cpu, self.real
        for number, value in enumerate(self.cpu_gpr()):
            yield (f"X{number}" if number < 31 else "SP"), value
        yield from (("PC", self.pc), ("PSTATE", self.pstate))
        yield from zip(_TRANSLATION, self.translation(), strict=True)
        if isinstance(cpu, AArch64NativeCpu):
            rest = [real.system(BY_NAME[name].encoding) for name in _REST]
            vector = real.system(_VBAR)
            threads = [real.system(BY_NAME[name].encoding) for name in ("TPIDR_EL0", "TPIDRRO_EL0", "TPIDR_EL1")]
        else:
            rest, vector = [cpu.elr, cpu.spsr, cpu.esr, cpu.far], cpu.system.get(_VBAR, 0)
            threads = list(cpu.state[4])
        yield from zip(_REST, rest, strict=True)
        yield "VBAR_EL1", vector
        yield from zip(("TPIDR_EL0", "TPIDRRO_EL0", "TPIDR_EL1"), threads, strict=True)
        yield from ((f"V{number}", real.vector(number)) for number in range(32))
        yield from (("FPCR", real.fpcr), ("FPSR", real.fpsr))
