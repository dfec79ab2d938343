"""The virtual CPU of AArch64: the processor at EL1 and EL0 that the guest believes in, on a real one at EL0.

Room: `paravirt/modes/aarch64`. General and vector registers, flags and interrupt masks are the engine's own: at real
EL0 the masks mean nothing, so the real DAIF is the guest's. Level, stack pointers and system registers are virtual.
While the guest's kernel runs, two real thread registers stand for others, so that its reads need no exit: TPIDRRO_EL0
for SP_EL0 and TPIDR_EL0 for TPIDR_EL1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from emulator.engine.aarch64 import SP, AArch64Registers
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.exceptions import AArch64Exception
from emulator.isa.aarch64.paging import TranslationContext, Walker
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.exceptions import ArchitecturalException
from paravirt.abi import AARCH64_FLOATING_POINT, AARCH64_FLOATING_POINT_BITS, AARCH64_STAND_INS

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_RESET_SCTLR: Final = 0x30D0_0800
MDSCR_SS, MDSCR_KDE = 1 << 0, 1 << 13
MDSCR: Final = BY_NAME["MDSCR_EL1"].encoding
_LOWER: Final = {
    x.FETCH_SAME: x.FETCH_LOWER,
    x.DATA_SAME: x.DATA_LOWER,
    x.STEP_SAME: x.STEP_LOWER,
    x.BREAKPOINT_SAME: x.BREAKPOINT_LOWER,
    x.WATCHPOINT_SAME: x.WATCHPOINT_LOWER,
}
"""What a class is called when the exception comes from EL0."""
_WITH_ADDRESS: Final = frozenset(
    {x.FETCH_LOWER, x.FETCH_SAME, x.DATA_LOWER, x.DATA_SAME, x.PC_ALIGNMENT, x.WATCHPOINT_LOWER, x.WATCHPOINT_SAME}
)
"""Classes with FAR_EL1."""
VBAR: Final = BY_NAME["VBAR_EL1"].encoding
_ELR, _SPSR, _ESR, _FAR = (
    BY_NAME[AARCH64_STAND_INS[name]].encoding for name in ("ELR_EL1", "SPSR_EL1", "ESR_EL1", "FAR_EL1")
)


CPACR: Final = BY_NAME["CPACR_EL1"].encoding
_RIGHTS: Final = AARCH64_FLOATING_POINT // 8
_FPEN: Final = AARCH64_FLOATING_POINT_BITS


class AArch64VirtualCpu:
    """One virtual processor."""

    def __init__(self, registers: AArch64Registers, memory: memoryview, base: int, shared: memoryview) -> None:
        """`memory` begins at guest-physical `base`; `shared` is the page shared with the guest's kernel, as words."""
        self.registers = registers
        self.rights = shared[_RIGHTS : _RIGHTS + 1]
        """CPACR_EL1, of which the guest's kernel may have stored anything; FPEN counts."""
        self._other_rights = 0
        """CPACR_EL1 but for FPEN."""
        self.gpr = registers.gpr
        self.advance = registers.advance
        self.context = TranslationContext(sctlr=_RESET_SCTLR)
        self._memory = memory
        self._base = base
        self._end = base + memory.nbytes
        self.walker = Walker(memory.cast("Q"), base, self.context)
        self._code_walker = Walker(memory.cast("Q"), base, self.context)
        """Looks at code while the result of the other one is in use."""
        self.level = 1
        self.own_stack = True
        """PSTATE.SP: EL1 uses SP_EL1."""
        self.other_sp = 0
        """The stack pointer that is not in use: SP_EL0 while SP_EL1 is, and the other way round."""
        self.user_thread = self.user_thread_read_only = 0
        """TPIDR_EL0 and TPIDRRO_EL0 while the kernel runs."""
        self.kernel_thread = 0
        """TPIDR_EL1 while user code runs."""
        self.system: dict[int, int] = {}
        """The other system registers by their 16-bit names."""
        self.stepping = False
        """PSTATE.SS: the next instruction is the one before a software step exception."""
        self.step_begins = False
        """The step is of what comes behind the ERET that has just been done."""
        self.before_write: Callable[[int], None] = lambda _frame: None
        self._written: dict[int, int] = {}

    # -- state ----------------------------------------------------------------------------------

    @property
    def pc(self) -> int:
        """Guest-virtual address of the instruction that the guest is at."""
        return self.registers.pc

    @pc.setter
    def pc(self, value: int) -> None:
        self.registers.pc = value & _MASK

    @property
    def interrupts_enabled(self) -> bool:
        """PSTATE.I is clear."""
        return not self.registers.daif & x.MASK_I

    @property
    def cpacr(self) -> int:
        """CPACR_EL1."""
        return self._other_rights | self.rights[0] & _FPEN

    @cpacr.setter
    def cpacr(self, value: int) -> None:
        self.rights[0] = value
        self._other_rights = value & ~_FPEN

    @property
    def system_registers(self) -> dict[int, int]:
        """`system`, and CPACR_EL1."""
        return {**self.system, CPACR: self.cpacr}

    @system_registers.setter
    def system_registers(self, values: Mapping[int, int]) -> None:
        self.system = dict(values)
        self.cpacr = self.system.pop(CPACR, 0)

    @property
    def mode(self) -> int:
        """PSTATE.M: level and stack pointer."""
        return x.EL0T if self.level == 0 else x.EL1H if self.own_stack else x.EL1T

    @property
    def pstate(self) -> int:
        """PSTATE as SPSR_EL1 would have it."""
        return self.registers.nzcv | self.registers.daif | self.mode | (x.SS if self.stepping else 0)

    @property
    def sp_el0(self) -> int:
        """SP_EL0."""
        return self.gpr[SP] if self.mode != x.EL1H else self.other_sp

    @sp_el0.setter
    def sp_el0(self, value: int) -> None:
        if self.mode != x.EL1H:
            self.gpr[SP] = value
        else:
            self.other_sp = value
        if self.level:
            self.registers.thread_read_only = value

    @property
    def state(self) -> tuple[Any, ...]:
        """Everything the guest can see of its processor, as a plain value."""
        registers = self.registers
        threads = (
            (self.user_thread, self.user_thread_read_only, registers.thread)
            if self.level
            else (registers.thread, registers.thread_read_only, self.kernel_thread)
        )
        context = self.context
        return (
            tuple(self.gpr),
            self.pc,
            self.pstate,
            self.other_sp,
            threads,
            (self.elr, self.spsr, self.esr, self.far),
            (context.sctlr, context.tcr, context.ttbr0, context.ttbr1),
            tuple(sorted(self.system_registers.items())),
            tuple(registers.vector(number) for number in range(32)),
            (registers.fpcr, registers.fpsr),
        )

    def _enter(self, level: int, own_stack: bool) -> None:
        """Change level and stack pointer, and with them what the real thread registers stand for."""
        registers, gpr = self.registers, self.gpr
        if (self.mode == x.EL1H) != (level == 1 and own_stack):
            self.other_sp, gpr[SP] = gpr[SP], self.other_sp
        if level != self.level:
            if level:
                self.user_thread, self.user_thread_read_only = registers.thread, registers.thread_read_only
                registers.thread = self.kernel_thread
            else:
                self.kernel_thread = registers.thread
                registers.thread, registers.thread_read_only = self.user_thread, self.user_thread_read_only
        self.level, self.own_stack = level, own_stack
        if level:
            registers.thread_read_only = self.sp_el0

    def select_stack(self, own: bool) -> None:
        """MSR SPSel."""
        self._enter(1, own)

    # -- registers that stand-ins hold ----------------------------------------------------------

    @property
    def elr(self) -> int:
        """ELR_EL1."""
        return self.registers.system(_ELR)

    @elr.setter
    def elr(self, value: int) -> None:
        self.registers.set_system(_ELR, value)

    @property
    def spsr(self) -> int:
        """SPSR_EL1."""
        return self.registers.system(_SPSR)

    @spsr.setter
    def spsr(self, value: int) -> None:
        self.registers.set_system(_SPSR, value)

    @property
    def esr(self) -> int:
        """ESR_EL1."""
        return self.registers.system(_ESR)

    @esr.setter
    def esr(self, value: int) -> None:
        self.registers.set_system(_ESR, value)

    @property
    def far(self) -> int:
        """FAR_EL1."""
        return self.registers.system(_FAR)

    @far.setter
    def far(self, value: int) -> None:
        self.registers.set_system(_FAR, value)

    # -- exceptions -----------------------------------------------------------------------------

    def take(self, offset: int, syndrome: int | None = None, address: int | None = None) -> None:
        """Enter EL1 by the vector at `offset` of its group; PC is what ELR_EL1 shall be."""
        group = x.FROM_EL0 if self.level == 0 else x.FROM_SPX if self.own_stack else x.FROM_SP0
        registers = self.registers
        self.spsr, self.elr = self.pstate, registers.pc
        if syndrome is not None:
            self.esr = syndrome
        if address is not None:
            self.far = address
        self.stepping = False
        self._enter(1, True)
        registers.daif = x.MASKS
        registers.pc = self.system.get(VBAR, 0) + group + offset & _MASK

    def raise_exception(self, fault: ArchitecturalException) -> None:
        """Enter EL1 for an exception that the guest raised."""
        kind = fault.vector
        if self.level == 0:
            kind = _LOWER.get(kind, kind)
        with_address = kind in _WITH_ADDRESS
        self.take(x.SYNCHRONOUS, x.syndrome(kind, fault.error or 0), fault.address if with_address else None)

    def return_from_exception(self) -> None:
        """ERET. Raises the guest's exception where SPSR_EL1 or ELR_EL1 make the return illegal."""
        spsr, registers = self.spsr, self.registers
        mode = spsr & 0x1F
        registers.clear_exclusive()
        registers.pc = self.elr
        registers.nzcv, registers.daif = spsr & x.FLAGS, spsr & x.MASKS
        if mode not in (x.EL0T, x.EL1T, x.EL1H) or spsr & x.ILLEGAL:
            raise AArch64Exception(x.ILLEGAL_STATE, 0)
        active = self.system.get(MDSCR, 0) & MDSCR_SS and (mode == x.EL0T or self._kernel_steps(spsr))
        self._enter(1 if mode else 0, mode == x.EL1H)
        self.stepping = self.step_begins = bool(active and spsr & x.SS)
        if self.stepping and self.level:
            registers.stepping = True  # the real level does not change
        if self.elr & 3:
            raise AArch64Exception(x.PC_ALIGNMENT, 0, self.elr)

    def _kernel_steps(self, spsr: int) -> bool:
        """Whether debug exceptions of EL1 are taken to EL1: MDSCR_EL1.KDE, and the D mask clear."""
        return bool(self.system.get(MDSCR, 0) & MDSCR_KDE and not spsr & x.MASK_D)

    # -- memory ---------------------------------------------------------------------------------

    def use_walkers(self, walker: Walker, code_walker: Walker) -> None:
        """Translate by these from now on."""
        self.walker, self._code_walker = walker, code_walker

    def forget_translations(self) -> None:
        """None are kept but the walkers'."""
        self.context.generation += 1

    def forget_writes(self) -> None:
        """From now on `before_write` must be asked again."""
        self._written.clear()

    def translate(self, address: int, write: bool, user: bool) -> int:
        """Guest-physical address of a byte; raises the guest's abort."""
        walk = self.walker.walk(address, write, user, False)
        return walk.frame | address & 0xFFF

    def read_memory(self, physical: int, size: int) -> int:
        """`size` bytes of memory."""
        at = physical - self._base
        return int.from_bytes(self._memory[at : at + size], "little")

    def write_memory(self, physical: int, size: int, value: int) -> None:
        """Store `size` bytes of memory."""
        at = physical - self._base
        self.before_write(at >> 12)
        self._memory[at : at + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")

    def is_memory(self, physical: int) -> bool:
        """Whether memory is at a guest-physical address."""
        return self._base <= physical < self._end

    def peek_page(self, address: int) -> bytes:
        """Nothing: no instruction reaches into another page, so that whoever looks at one needs no other."""
        return b""

    def fetch(self, pc: int) -> bytes:
        """The word at `pc` as the guest has it; empty where there is none."""
        try:
            frame = self._code_walker.walk(pc, False, self.level == 0, True).frame
        except AArch64Exception:
            return b""
        if pc & 3 or not self.is_memory(frame):
            return b""
        at = frame - self._base + (pc & 0xFFF)
        return bytes(self._memory[at : at + 4])
