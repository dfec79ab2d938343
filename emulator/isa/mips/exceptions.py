"""Exceptions of MIPS32r2 as the manual has them, on any processor, real or virtual.

Room: `emulator/isa/mips`. Written against the small protocol `Processor`: a register file of coprocessor 0 and a place
in the program. Source: MIPS32 Privileged Resource Architecture (MD00090), chapter 6. Knows no engine.
"""

from typing import Protocol

from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.mips import registers as r

GENERAL, REFILL_VECTOR, INTERRUPT_VECTOR = 0x180, 0x000, 0x200
BOOT_BASE = 0xBFC0_0200
_TRANSLATION = frozenset({r.MOD, r.TLBL, r.TLBS})
_ADDRESS = frozenset({r.MOD, r.TLBL, r.TLBS, r.ADEL, r.ADES})


class MipsException(ArchitecturalException):
    """An exception of the guest's: `vector` is Cause.ExcCode; `error` is 1 for a TLB refill, or the coprocessor of CpU;
    `address` is BadVAddr."""


class Processor(Protocol):
    """What delivery needs of a processor. Registers of coprocessor 0 by their names, in small letters."""

    status: int
    cause: int
    epc: int
    error_epc: int
    bad_v_addr: int
    context: int
    entry_hi: int
    int_ctl: int

    @property
    def exception_base(self) -> int:
        """EBase with the CPU's number masked off."""
        ...

    @property
    def restart_address(self) -> int:
        """PC, or that of the branch before it in whose delay slot PC is."""
        ...

    @property
    def in_delay_slot(self) -> bool:
        """Whether PC is in a delay slot."""
        ...

    def jump(self, address: int) -> None:
        """Go on at `address`, outside of any delay slot."""
        ...

    def break_link(self) -> None:
        """LLbit := 0."""
        ...


def deliver(cpu: Processor, code: int, error: int = 0, address: int = 0) -> None:
    """Enter the handler of an exception (PRA, 6.2.11: general exception processing)."""
    cause, status = cpu.cause & ~(r.CAUSE_EXCCODE | r.CAUSE_CE), cpu.status
    offset = GENERAL
    if not status & r.STATUS_EXL:
        cpu.epc = cpu.restart_address
        cause = cause | r.CAUSE_BD if cpu.in_delay_slot else cause & ~r.CAUSE_BD
        if error and code in (r.TLBL, r.TLBS):
            offset = REFILL_VECTOR
        elif code == r.INT and cause & r.CAUSE_IV:
            offset = INTERRUPT_VECTOR + _spacing(cpu)
    cause |= code << 2
    if code == r.CPU:
        cause |= error << 28
    if code in _ADDRESS:
        cpu.bad_v_addr = address
    if code in _TRANSLATION:
        cpu.context = cpu.context & 0xFF80_0000 | address >> 9 & 0x007F_FFF0
        cpu.entry_hi = cpu.entry_hi & 0xFF | address & 0xFFFF_E000
    cpu.cause = cause
    cpu.status = status | r.STATUS_EXL
    cpu.jump((BOOT_BASE if status & r.STATUS_BEV else cpu.exception_base) + offset)


def _spacing(cpu: Processor) -> int:
    """Of vectored interrupts: how far from the first vector the one of the highest request is."""
    between = cpu.int_ctl >> 5 & 0x1F
    if not between or cpu.status & r.STATUS_BEV:
        return 0
    requests = (cpu.cause & cpu.status & r.STATUS_IM) >> 8
    return (requests.bit_length() - 1) * (between << 5)


def return_from_exception(cpu: Processor) -> None:
    """ERET: leave the error level, or else the exception level, and go on where it began. LLbit := 0."""
    if cpu.status & r.STATUS_ERL:
        cpu.status &= ~r.STATUS_ERL
        cpu.jump(cpu.error_epc)
    else:
        cpu.status &= ~r.STATUS_EXL
        cpu.jump(cpu.epc)
    cpu.break_link()


def interrupts_enabled(status: int, cause: int) -> bool:
    """Whether some requested interrupt is taken (PRA, 6.1.1)."""
    return status & 7 == r.STATUS_IE and bool(status & cause & r.STATUS_IM)


def is_kernel(status: int) -> bool:
    """Whether the processor is in kernel mode (PRA, 3.2)."""
    return bool(status & (r.STATUS_EXL | r.STATUS_ERL)) or not status & r.STATUS_UM
