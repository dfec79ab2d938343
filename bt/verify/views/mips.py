"""A look at a MIPS32 processor.

Room: `bt/verify/views`. Names are those of the Privileged Resource Architecture (MD00090). There is no page-table
root that the processor knows: an address space is told by its ASID.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from bt.verify.views.view import View
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.mips import registers as r
from paravirt.modes.mips.hypervisor import MipsHypervisor
from paravirt.modes.mips.vcpu import MipsVirtualCpu

if TYPE_CHECKING:
    from bt.session import Session

_ASID: Final = 0xFF
_SYSCALL: Final = 8
"""Cause.ExcCode Sys."""
_V0: Final = 2
_COMPARED: Final = {("Context", 0): 0xFF80_0000, ("Context", 1): 0xFF80_0000, ("Index", 1): 0x8000_0000}
"""By name and highest bit, what of a register is defined: an address error leaves BadVPN2 of Context as it likes, and a
TLBP that finds nothing the rest of Index (MD00090, 9.1 and 9.9)."""
_NAMES: Final = (
    *("EntryLo0", "EntryLo1", "Context", "PageMask", "Wired", "HWREna", "BadVAddr", "EntryHi", "Status", "IntCtl"),
    *("Cause", "EPC", "EBase", "ErrorEPC", "Index"),
)


class MipsView(View):
    """The virtual processor, or that of a reference run, which has the same names."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        driver = session.driver
        self.cpu: Any = driver.vcpu if isinstance(driver, MipsHypervisor) else driver
        self.real = session.machine.engine.registers
        self._read: Callable[[str], int] = driver.vcpu.read if isinstance(driver, MipsHypervisor) else self.real.cp0

    @property
    def pc(self) -> int:
        """PC, or the branch in whose delay slot it is."""
        return int(self.real.restart_address)

    @property
    def level(self) -> int:
        """0 in kernel mode."""
        return int(self.cpu.level)

    def named(self, kind: str, number: int) -> tuple[str, int]:
        """SYSCALL is an exception like others; its number is in v0."""
        if kind == "exception" and number == _SYSCALL:
            return "system call", int(self.real.gpr[_V0])
        return kind, number

    def space(self) -> int:
        """The ASID."""
        return int(self._read("EntryHi")) & _ASID

    def registers(self) -> tuple[int, ...]:
        """The general registers and Status."""
        return (*map(int, self.real.gpr), int(self._read("Status")))

    def code(self, address: int) -> bytes:
        """By the guest's own TLB; of a reference run, whose TLB is the engine's, of unmapped segments alone."""
        if isinstance(self.cpu, MipsVirtualCpu):
            try:
                return self.from_page(self.cpu.translate(address, False, False)[0])
            except ArchitecturalException:
                return b""
        return self.from_page(address & r.UNMAPPED) if r.KSEG0 <= address < r.KSEG2 else b""

    def final(self) -> Iterator[tuple[str, int]]:
        """General, multiplier, floating-point and system registers."""
        real = self.real
        yield from ((f"R{number}", int(value)) for number, value in enumerate(real.gpr))
        yield from (("PC", self.pc), ("HI", real.hi), ("LO", real.lo), ("UserLocal", real.user_local))
        yield from ((f"F{number}", int(value)) for number, value in enumerate(real.fpr))
        yield "FCSR", real.fcsr
        for name in _NAMES:
            value = int(self._read(name))
            yield name, value & _COMPARED.get((name, value >> 31), -1)
