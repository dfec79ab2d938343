"""The AArch64 reference: the guest at full privilege on the same machine, unmodified.

Room: `emulator/native`. Privileged instructions execute in the engine itself; exceptions are entered here, on the real
registers (DDI 0487, D1.3). The generic timer is withheld by the engine and done by the board's, which counts guest
progress; HVC, for which there is no EL2, is the firmware's.
"""

from __future__ import annotations

from typing import Final

from emulator.board.arm_boot import ArmEntry
from emulator.board.virt import Virt
from emulator.engine.aarch64 import SP, AArch64Engine
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.encoding import HVC, MRS, MSR, named
from emulator.isa.aarch64.identity import IDENTITY
from emulator.isa.aarch64.paging import TranslationContext, Walker
from emulator.isa.aarch64.registers import BY_ENCODING, BY_NAME
from emulator.isa.exceptions import ArchitecturalException
from emulator.machine import EndKind, Machine, Outcome
from emulator.native.cpu import Handlers, NativeCpu

_LOOK_AGAIN: Final = 2
"""Blocks until the interrupt mask is looked at again while an interrupt waits for it."""
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_E: Final = {name: one.encoding for name, one in BY_NAME.items()}
_RESET_SCTLR: Final = 0x30D0_0800
_STATE: Final = (
    *("SCTLR_EL1", "TCR_EL1", "TTBR0_EL1", "TTBR1_EL1", "ELR_EL1", "SPSR_EL1", "ESR_EL1", "FAR_EL1"),
    *("VBAR_EL1", "TPIDR_EL0", "TPIDR_EL1", "TPIDRRO_EL0"),
)
_USER_TIMER: Final = {"CNTVCT": 2, "CNTPCT": 1, "CNTFRQ": 3, "CNTV": 1 << 8, "CNTP": 1 << 9}
"""Bits of CNTKCTL_EL1 of which any lets EL0 access a register or group."""


class AArch64NativeCpu(NativeCpu):
    """The real processor of a reference run and its driver."""

    engine: AArch64Engine
    board: Virt

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.registers = self.engine.registers
        self.engine.withhold_timer()
        self.engine.show_identity(IDENTITY)
        self.engine.see_all_stores()
        self._context = TranslationContext()
        memory = machine.memory
        self._walker = Walker(memory.words, memory.base, self._context)

    def _handlers(self) -> Handlers:
        return {ExitKind.FAULT: self._fault, ExitKind.HALT: self._halt, ExitKind.UNBACKED: self._unbacked}

    @property
    def pc(self) -> int:
        """Address of the next instruction."""
        return self.registers.pc

    @property
    def level(self) -> int:
        """The exception level."""
        return self.registers.level

    @property
    def state(self) -> tuple[object, ...]:
        """Everything that the guest can see of its processor."""
        registers = self.registers
        return (
            tuple(registers.gpr),
            registers.pc,
            registers.pstate,
            tuple(registers.system(_E[name]) for name in _STATE),
            tuple(registers.vector(number) for number in range(32)),
            (registers.fpcr, registers.fpsr),
        )

    def enter(self, state: ArmEntry) -> None:
        """Set the processor up as the boot protocol says."""
        registers = self.registers
        for number in range(32):
            registers.gpr[number] = 0
        registers.gpr[0] = state.device_tree
        self.engine.set_roots(0, 0)
        self.engine.set_control(_RESET_SCTLR, 0, 0)
        registers.set_system(_E["CPACR_EL1"], 0)
        registers.nzcv, registers.daif, registers.level = 0, x.MASKS, 1
        registers.pc = state.pc

    # -- exceptions -----------------------------------------------------------------------------

    def _take(self, offset: int, syndrome: int | None = None, address: int | None = None) -> None:
        """Enter EL1 by the vector at `offset` of its group; PC is what ELR_EL1 shall be."""
        registers = self.registers
        status = registers.pstate
        group = x.FROM_EL0 if not status & 0xC else x.FROM_SPX if status & 1 else x.FROM_SP0
        registers.set_system(_E["SPSR_EL1"], status)
        registers.set_system(_E["ELR_EL1"], registers.pc)
        if syndrome is not None:
            registers.set_system(_E["ESR_EL1"], syndrome)
        if address is not None:
            registers.set_system(_E["FAR_EL1"], address)
        registers.enter_level_1()
        registers.pc = registers.system(_E["VBAR_EL1"]) + group + offset & _MASK

    def _offer_interrupt(self) -> None:
        if self.registers.daif & x.MASK_I:
            self.engine.set_deadline(self.engine.progress + _LOOK_AGAIN)
            return
        self._event("interrupt", x.IRQ, 0, self.pc)
        self._take(x.IRQ)

    def _fault(self, exit_: Exit) -> None:
        kind, registers = exit_.vector, self.registers
        if kind in (x.UNKNOWN, x.SYSTEM_REGISTER):
            if self._perform():
                return
            self._event("exception", x.UNKNOWN, 0, self.pc)
            self._take(x.SYNCHRONOUS, x.syndrome(x.UNKNOWN))
        elif kind == x.SVC:
            self._event("system call", registers.gpr[8], 0, self.pc - 4)
            self._take(x.SYNCHRONOUS, exit_.error)
        else:
            with_address = kind in (x.FETCH_LOWER, x.FETCH_SAME, x.DATA_LOWER, x.DATA_SAME, x.PC_ALIGNMENT)
            self._event("exception", kind, exit_.error & 0x1FF_FFFF, self.pc, exit_.address if with_address else 0)
            self._take(x.SYNCHRONOUS, exit_.error, exit_.address if with_address else None)

    def _halt(self, _exit: Exit) -> None:
        if self.machine.poll_input is None and not self.board.intr and self.board.next_wake() is None:
            self.end(Outcome(EndKind.HALTED, detail="waiting with no interrupt to come"))
            return
        self._wait_for_interrupt()

    def _unbacked(self, exit_: Exit) -> None:
        kind = x.FETCH_SAME if self.level else x.FETCH_LOWER
        self._take(x.SYNCHRONOUS, x.syndrome(kind, x.EXTERNAL_ABORT), exit_.address)

    # -- what the engine leaves to its driver ---------------------------------------------------

    def _perform(self) -> bool:
        """Do the undefined instruction at PC if it is a call of the firmware or an access to the timer."""
        word = self._fetch()
        if word & 0xFFE0_001F == HVC and self.level:
            self._call_firmware()
        elif word & 0xFFD0_0000 == MSR & ~0x20_0000:
            one = BY_ENCODING.get(named(word))
            if one is None or not one.name.startswith(("CNTV", "CNTP", "CNTFRQ")) or one.feature:
                return False
            name = one.name.removesuffix("_EL0")
            if not self.level and not self._user_may(name):
                return False
            self._access_timer(word, name)
        else:
            return False
        self.registers.advance()
        return True

    def _user_may(self, name: str) -> bool:
        control = self.registers.system(_E["CNTKCTL_EL1"])
        return bool(control & _USER_TIMER.get(name, _USER_TIMER[name[:4]]))

    def _fetch(self) -> int:
        """The word at PC, through the real tables; 0 where it is not in memory."""
        registers, context, memory = self.registers, self._context, self.machine.memory
        context.generation += 1
        context.sctlr, context.tcr = registers.system(_E["SCTLR_EL1"]), registers.system(_E["TCR_EL1"])
        context.ttbr0, context.ttbr1 = registers.system(_E["TTBR0_EL1"]), registers.system(_E["TTBR1_EL1"])
        pc = registers.pc
        try:
            physical = self._walker.walk(pc, False, not self.level, True).frame | pc & 0xFFF
        except ArchitecturalException:
            return 0
        if pc & 3 or not memory.base <= physical <= memory.end - 4:
            return 0
        return int.from_bytes(memory.read_bytes(physical, 4), "little")

    def _call_firmware(self) -> None:
        gpr = self.registers.gpr
        gpr[0] = self.board.psci.call(gpr[0], [gpr[1], gpr[2], gpr[3]]) & _MASK
        self._device_written()

    def _access_timer(self, word: int, name: str) -> None:
        gpr, timer, register = self.registers.gpr, self.board.timer, word & 31
        if word & MRS & ~MSR:
            value = timer.read(name)
            if register != SP:
                gpr[register] = value & _MASK
            return
        timer.write(name, gpr[register] if register != SP else 0)
        self._device_written()
