"""A look at an ARMv7-A processor.

Room: `bt/verify/views`. Names are those of the ARM Architecture Reference Manual (DDI 0406).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from bt.verify.views.view import View
from emulator.isa.arm import exceptions as x
from emulator.isa.arm.paging import TranslationContext, Walker
from emulator.isa.exceptions import ArchitecturalException
from emulator.native.arm import ArmNativeCpu
from paravirt.modes.arm.hypervisor import ArmHypervisor

if TYPE_CHECKING:
    from bt.session import Session

_TABLE: Final = 0xFFFF_C000
"""Of TTBR0: the first-level table's address (B4.1.154, TTBCR.N 0)."""
_TRANSLATION: Final = ("SCTLR", "TTBR0", "TTBR1", "TTBCR", "DACR")
_BANKS: Final = {"usr": x.USR, "irq": x.IRQ, "svc": x.SVC, "abt": x.ABT, "und": x.UND}
_THUMB: Final = 16


class ArmView(View):
    """The processor of a reference run, or the virtual one."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        driver = session.driver
        assert isinstance(driver, ArmNativeCpu | ArmHypervisor)
        self.cpu = driver if isinstance(driver, ArmNativeCpu) else driver.vcpu
        self.real = self.cpu.registers
        self._context = TranslationContext()
        self._walker = Walker(self.memory.view.cast("I"), self.memory.base, self._context)

    @property
    def level(self) -> int:
        """0 in User mode, 1 in every other."""
        return self.cpu.level

    @property
    def bits(self) -> int:
        """32, or 16 for T32 code."""
        return _THUMB if self.real.thumb else 32

    @property
    def cpsr(self) -> int:
        """CPSR as the guest sees it."""
        cpu = self.cpu
        return self.real.cpsr if isinstance(cpu, ArmNativeCpu) else cpu.cpsr

    def translation(self) -> tuple[int, int, int, int, int]:
        """SCTLR, TTBR0, TTBR1, TTBCR and DACR."""
        cpu = self.cpu
        if isinstance(cpu, ArmNativeCpu):
            sctlr, ttbr0, ttbr1, ttbcr, dacr = (self.real.system(name) for name in _TRANSLATION)
            return sctlr, ttbr0, ttbr1, ttbcr, dacr
        context = cpu.context
        return context.sctlr, context.ttbr0, context.ttbr1, context.ttbcr, context.dacr

    def space(self) -> int:
        """The table in TTBR0."""
        return self.translation()[1] & _TABLE

    def registers(self) -> tuple[int, ...]:
        """R0 to R14 and CPSR."""
        return (*map(int, self.real.gpr[:15]), self.cpsr)

    def code(self, address: int) -> bytes:
        """By the guest's own tables."""
        context = self._context
        context.sctlr, context.ttbr0, context.ttbr1, context.ttbcr, context.dacr = self.translation()
        try:
            frame = self._walker.walk(address & ~0xFFF, False, not self.level, True).physical
        except ArchitecturalException:
            return b""
        return self.from_page(frame | address & 0xFFF)

    def final(self) -> Iterator[tuple[str, int]]:
        """General, banked, status and translation registers."""
        names = (*(f"R{number}" for number in range(13)), "SP", "LR", "CPSR")
        yield from zip(names, self.registers(), strict=True)
        yield "PC", self.pc
        mode = self.cpsr & x.MODE
        current = x.USR if mode == x.SYS else mode
        for name, bank in _BANKS.items():
            if bank != current:
                yield from zip((f"SP_{name}", f"LR_{name}", f"SPSR_{name}"), self._bank(bank), strict=True)
        yield from zip(_TRANSLATION, self.translation(), strict=True)
        cpu = self.cpu
        yield "VBAR", self.real.system("VBAR") if isinstance(cpu, ArmNativeCpu) else cpu.vbar

    def _bank(self, bank: int) -> tuple[int, int, int]:
        cpu = self.cpu
        if isinstance(cpu, ArmNativeCpu):
            stack, link, status = self.real.banked(bank)
        else:
            stack, link, status = cpu.banked(bank, 0), cpu.banked(bank, 1), cpu.banked(bank, 2)
        return stack, link, 0 if bank == x.USR else status  # User mode has no SPSR
