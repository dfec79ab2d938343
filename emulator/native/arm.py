"""The ARMv7 reference: the guest at full privilege on the same machine, unmodified.

Room: `emulator/native`. Privileged instructions execute in the engine itself; exceptions are entered here, on the real
registers (ARM B1.8). The generic timer is withheld by the engine and done by the board's, which counts guest progress.
"""

from __future__ import annotations

from emulator.board.arm_boot import ArmEntry, ArmVirt
from emulator.engine.arm import FULL, ArmEngine
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.arm import exceptions as x
from emulator.isa.arm.identity import IDENTITY
from emulator.isa.arm.paging import SCTLR_EE, SCTLR_TE, SCTLR_V
from emulator.isa.arm.system_registers import REGISTER_OF_KEY, SystemRegister
from emulator.machine import EndKind, Machine, Outcome
from emulator.native.cpu import Handlers, NativeCpu

_LOOK_AGAIN = 2
"""Blocks until the interrupt mask is looked at again while an interrupt waits for it."""
_MASK = 0xFFFF_FFFF
_HVC, _SMC = (0x0FF0_00F0, 0x0140_0070), (0x0FFF_FFF0, 0x0160_0070)


class ArmNativeCpu(NativeCpu):
    """The real processor of a reference run and its driver."""

    engine: ArmEngine
    board: ArmVirt

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self.registers = self.engine.registers
        self.engine.withhold_timer()
        self.engine.show_identity(IDENTITY)
        self.engine.see_all_stores()

    def _handlers(self) -> Handlers:
        return {
            ExitKind.FAULT: self._fault,
            ExitKind.SYSTEM_CALL: self._system_call,
            ExitKind.HALT: self._halt,
            ExitKind.UNBACKED: self._unbacked,
        }

    @property
    def pc(self) -> int:
        """Address of the next instruction."""
        return self.registers.pc

    @property
    def level(self) -> int:
        """0 in User mode, 1 in every other."""
        return int(self.registers.cpsr & x.MODE != x.USR)

    @property
    def state(self) -> tuple[object, ...]:
        """Everything that the guest can see of its processor."""
        registers = self.registers
        mode = registers.cpsr & x.MODE
        current = x.USR if mode == x.SYS else mode
        banks = [x.USR, x.IRQ, x.SVC, x.ABT, x.UND]
        return (
            tuple(registers.gpr),
            registers.cpsr,
            tuple((bank, *registers.banked(bank)) for bank in banks if bank != current),
            tuple(registers.system(name) for name in ("SCTLR", "TTBR0", "TTBR1", "TTBCR", "DACR", "VBAR")),
            registers.fpexc,
        )

    def enter(self, state: ArmEntry) -> None:
        """Set the processor up as the boot protocol says."""
        registers = self.registers
        self.engine.use_world(FULL)
        registers.cpsr = x.SVC | x.MASKS
        registers.set_system("CPACR", 0)
        registers.fpexc = 0
        for number in range(15):
            registers.gpr[number] = 0
        registers.gpr[1], registers.gpr[2] = _MASK, state.device_tree
        registers.pc = state.pc

    def _take(self, vector: int) -> None:
        """Enter an exception; PC is at the instruction that raised it, or that it comes before."""
        entry, registers = x.ENTRIES[vector], self.registers
        status, sctlr = registers.cpsr, registers.system("SCTLR")
        back = registers.pc + (entry.thumb if status & x.BIT_T else entry.arm)
        cleared = x.MODE | x.BIT_T | x.IT | x.BIT_E
        fresh = status & ~cleared | entry.mode | x.MASK_I | entry.masks
        fresh |= (x.BIT_T if sctlr & SCTLR_TE else 0) | (x.BIT_E if sctlr & SCTLR_EE else 0)
        registers.cpsr = fresh
        registers.spsr = status
        registers.gpr[14] = back & _MASK
        base = 0xFFFF_0000 if sctlr & SCTLR_V else registers.system("VBAR")
        registers.pc = base + 4 * vector & _MASK

    def _offer_interrupt(self) -> None:
        if self.registers.cpsr & x.MASK_I:
            self.engine.set_deadline(self.engine.progress + _LOOK_AGAIN)
            return
        self._event("interrupt", x.INTERRUPT, 0, self.pc)
        self._take(x.INTERRUPT)

    def _fault(self, exit_: Exit) -> None:
        vector, registers = exit_.vector, self.registers
        if vector == x.UNDEFINED:
            if not (self.level and self._perform()):
                self._event("exception", vector, 0, self.pc)
                self._take(vector)
            return
        prefix = "D" if vector == x.DATA_ABORT else "I"
        registers.set_system(f"{prefix}FSR", exit_.error)
        registers.set_system(f"{prefix}FAR", exit_.address)
        self._event("exception", vector, exit_.error, self.pc, exit_.address)
        self._take(vector)

    def _system_call(self, _exit: Exit) -> None:
        registers = self.registers
        registers.pc -= 2 if registers.thumb else 4
        self._event("system call", registers.gpr[7], 0, self.pc)
        self._take(x.SUPERVISOR_CALL)

    def _halt(self, _exit: Exit) -> None:
        if self.machine.poll_input is None and not self.board.intr and self.board.next_wake() is None:
            self.end(Outcome(EndKind.HALTED, detail="waiting with no interrupt to come"))
            return
        self._wait_for_interrupt()

    def _unbacked(self, exit_: Exit) -> None:
        self.registers.set_system("IFSR", x.EXTERNAL)
        self.registers.set_system("IFAR", exit_.address)
        self._take(x.PREFETCH_ABORT)

    # -- what the engine leaves to its driver ---------------------------------------------------

    def _perform(self) -> bool:
        """Do the undefined instruction at PC if it is a call of the firmware or an access to the timer."""
        word, thumb = self._fetch()
        condition = word >> 28
        if (thumb and word >> 20 == 0xF7E and word & 0xF000 == 0x8000) or (
            condition < 15 and any(word & mask == value for mask, value in (_HVC, _SMC))
        ):
            self._call_firmware()
        else:
            register = _timer_register(word)
            if register is None or condition == 15:
                return False
            self._access_timer(word, register)
        self.registers.advance(4)
        return True

    def _fetch(self) -> tuple[int, bool]:
        """The 32-bit instruction at PC, through the real tables; 0 where it is not in memory."""
        registers, memory = self.registers, self.machine.memory
        pc, thumb = registers.pc, registers.thumb
        registers.set_system("ATS1CPR", pc)
        where = registers.system("PAR")
        physical = where & 0xFFFF_F000 | pc & 0xFFF
        if where & 1 or not memory.base <= physical <= memory.end - 4 or pc & 0xFFF > 0xFFC:
            return 0, thumb
        word = int.from_bytes(memory.read_bytes(physical, 4), "little")
        return (word >> 16 | word << 16 & _MASK, True) if thumb else (word, False)

    def _call_firmware(self) -> None:
        gpr = self.registers.gpr
        gpr[0] = self.board.psci.call(gpr[0], [gpr[1], gpr[2], gpr[3]]) & _MASK
        self._device_written()

    def _access_timer(self, word: int, register: SystemRegister) -> None:
        gpr, timer = self.registers.gpr, self.board.timer
        low, high = word >> 12 & 15, word >> 16 & 15
        if word >> 20 & 1:
            value = timer.read(register.name)
            gpr[low] = value & _MASK
            if register.wide:
                gpr[high] = value >> 32 & _MASK
            return
        timer.write(register.name, gpr[low] | (gpr[high] << 32 if register.wide else 0))
        self._device_written()


def _timer_register(word: int) -> SystemRegister | None:
    """The timer's register that a coprocessor instruction accesses, or None."""
    if word >> 8 & 15 != 15:
        return None
    if word & 0x0FE0_0000 == 0x0C40_0000:
        register = REGISTER_OF_KEY.get((15, word >> 4 & 15, -1, word & 15, 0))
    elif word & 0x0F00_0010 == 0x0E00_0010:
        register = REGISTER_OF_KEY.get((15, word >> 21 & 7, word >> 16 & 15, word & 15, word >> 5 & 7))
    else:
        return None
    return register if register is not None and register.name.startswith("CNT") else None
