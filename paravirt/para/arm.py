"""Para-virtual guests of ARMv7-A: one bank of registers, exceptions by their meaning, two roots.

Room: `paravirt/para`. Short descriptors; the lower 2 GiB are translated by one root (of 8 KiB), the upper by the
kernel's (16 KiB), all in domain 0. There are no modes: frames have the stack pointer and LR of what was interrupted.
THREAD_REGISTER is TPIDRURO.
"""

from __future__ import annotations

from typing import ClassVar, Final

from emulator.board.arm_boot import ArmEntry
from emulator.engine.exit import Exit
from emulator.isa.arm import exceptions as x
from emulator.isa.exceptions import ArchitecturalException
from paravirt.abi.calls import Status
from paravirt.abi.guests import (
    ACCESS_EXECUTE,
    ACCESS_PRESENT,
    ACCESS_READ,
    ACCESS_WRITE,
    CONVENTIONS,
    Convention,
    Trap,
)
from paravirt.modes.arm.hypervisor import ArmHypervisor
from paravirt.modes.arm.vcpu import KERNEL, USER
from paravirt.operations.arm.registers import write_thread
from paravirt.para.calls import Refused
from paravirt.para.guest import ParaGuest

_MMU_ON: Final = 1
_SPLIT: Final = 1
"""TTBCR.N: TTBR0 has the lower half."""
_CLIENT: Final = 1
_ENABLED: Final = 1 << 30
"""FPEXC.EN."""
_ALL_ACCESS: Final = 0x00F0_0000
"""CPACR: coprocessors 10 and 11."""
_KEPT: Final = x.FLAGS | x.IT | x.BIT_E | x.BIT_T
"""What a frame may change besides the state."""
_ABSENT: Final = frozenset({x.TRANSLATION_SECTION, x.TRANSLATION_PAGE})
_FORBIDDEN: Final = frozenset({x.PERMISSION_SECTION, x.PERMISSION_PAGE, x.DOMAIN_SECTION, x.DOMAIN_PAGE})
_ROOT_BYTES: Final = (0x2000, 0x4000)
_TABLE: Final = 1
_INDEX: Final = {f"r{number}": number for number in range(16)}


def is_floating_point(word: int) -> bool:
    """Whether an A32 instruction is one of VFP or Advanced SIMD (ARM A5.6, A5.7)."""
    space, coprocessor = word >> 24 & 15, word >> 8 & 15
    if word >> 28 == 0xF:
        return word >> 25 == 0x79 or (word >> 24 == 0xF4 and not word & 0x10_0000)
    return space in (12, 13, 14) and coprocessor in (10, 11)


def is_floating_point_t32(first: int, second: int) -> bool:
    """The same of a T32 instruction of two halfwords (ARM A6.3)."""
    return (first & 0xEC00 == 0xEC00 and second >> 8 & 15 in (10, 11)) or (
        first & 0xEF00 == 0xEF00 or first & 0xFF10 == 0xF900
    )


class ArmPara(ParaGuest, ArmHypervisor):
    """One para-virtual ARMv7 guest."""

    CONVENTION: ClassVar[Convention] = CONVENTIONS["armv7"]
    KERNEL_LEVEL: ClassVar[int] = KERNEL
    entry_bytes = 4
    levels = 2

    def enter(self, state: ArmEntry) -> None:
        """As the boot protocol says, with floating point disabled by FPEXC alone."""
        super().enter(state)
        self.vcpu.cpacr = _ALL_ACCESS
        self.floating_point_changed()

    # -- registers ------------------------------------------------------------------------------

    def _get(self, register: str) -> int:
        return self.vcpu.gpr[_INDEX[register]]

    def _set(self, register: str, value: int) -> None:
        self.vcpu.gpr[_INDEX[register]] = value

    def _registers_out(self) -> tuple[int, ...]:
        return (*self.vcpu.gpr[:15], self._registers.cpsr & _KEPT)

    def _registers_in(self, values: tuple[int, ...], flags: int) -> None:
        gpr, registers = self.vcpu.gpr, self._registers
        registers.cpsr = flags & _KEPT | x.USR
        for number, value in enumerate(values):
            gpr[number] = value
        registers.clear_exclusive()

    def _at_level(self, user: bool) -> None:
        vcpu = self.vcpu
        vcpu.mode, vcpu.level = (x.USR, USER) if user else (x.SVC, KERNEL)

    def _enter_handler(self, handler: int, frame: int) -> None:
        registers = self._registers
        registers.cpsr = x.USR | (x.BIT_T if handler & 1 else 0)
        registers.clear_exclusive()
        self.vcpu.pc = handler & ~1

    def _leave_call(self, resume: int) -> None:
        """As BX LR does."""
        if resume & 1:
            self._registers.thumb = True
        super()._leave_call(resume & ~1)

    def _floating_point(self, enabled: bool) -> None:
        wanted = _ENABLED if enabled else 0
        if self.vcpu.fpexc != wanted:
            self.vcpu.fpexc = wanted
            self.floating_point_changed()

    def _thread_register(self, value: int) -> int:
        write_thread(self.vcpu, "TPIDRURO", value)
        return 0

    # -- memory ---------------------------------------------------------------------------------

    def _reach(self, address: int, write: bool) -> int:
        physical = self.vcpu.walker.walk(address, write, False, False).physical | address & 0xFFF
        if not self.is_memory(physical, 1):
            raise Refused(Status.BAD_ADDRESS)
        return physical - self.machine.memory.base

    def entry_address(self, address: int) -> int | None:
        """By the guest's tables as they are now."""
        context, memory = self.vcpu.context, self.machine.memory
        at = context.first_level(address)
        if not context.sctlr & _MMU_ON or not self.is_memory(at, 4):
            return None
        entry = memory.read(at, 4)
        if entry & 3 != _TABLE:
            return None
        at = (entry & ~0x3FF) + (address >> 12 & 0xFF) * 4
        return at if self.is_memory(at, 4) else None

    def is_root(self, value: int) -> bool:
        """Two pages for 2 GiB."""
        return self._is_root(value, 0)

    def _is_root(self, value: int, part: int) -> bool:
        size = _ROOT_BYTES[part]
        return not value & size - 1 and self.is_memory(value, size)

    def load_root(self, value: int) -> None:
        """TTBR0."""
        context = self.vcpu.context
        context.ttbr0 = value
        if context.sctlr & _MMU_ON:
            self.address_space_changed()

    def load_kernel_root(self, root: int, part: int) -> int:
        """TTBR1, and translation is on."""
        if part != 1 or not self._is_root(root, part):
            raise Refused(Status.INVALID)
        context = self.vcpu.context
        old = context.dacr
        context.ttbr1, context.ttbcr, context.dacr = root, _SPLIT, _CLIENT
        context.sctlr |= _MMU_ON
        self.domains_changed(old)
        self.address_space_changed()
        return 0

    def forget_page(self, address: int) -> None:
        """TLBIMVA."""
        self.invalidate(address)

    def forget_all(self) -> None:
        """TLBIALL."""
        self.invalidate_all()

    # -- exceptions -----------------------------------------------------------------------------

    def _explain(self, fault: ArchitecturalException) -> tuple[Trap, int, int]:
        vector, status = fault.vector, fault.error or 0
        if vector == x.UNDEFINED:
            return (Trap.FLOATING_POINT if self._is_disabled() else Trap.UNDEFINED), 0, 0
        short = status & 0x40F
        if short in _ABSENT or short in _FORBIDDEN:
            access = ACCESS_EXECUTE if vector == x.PREFETCH_ABORT else ACCESS_WRITE if status & x.WRITE else ACCESS_READ
            return Trap.PAGE_FAULT, access | (ACCESS_PRESENT if short in _FORBIDDEN else 0), fault.address
        if vector == x.PREFETCH_ABORT and short == x.DEBUG_EVENT:
            return Trap.BREAKPOINT, 0, 0
        return Trap.OTHER, vector, status

    def _is_disabled(self) -> bool:
        """What is undefined is a floating-point instruction, and these are disabled."""
        if self.vcpu.fpexc:
            return False
        code = self.vcpu.fetch(self.vcpu.pc, 4)
        if len(code) < 4:
            return False
        if self._registers.thumb:
            return is_floating_point_t32(int.from_bytes(code[:2], "little"), int.from_bytes(code[2:], "little"))
        return is_floating_point(int.from_bytes(code, "little"))

    def _system_call(self, _exit: Exit) -> None:
        vcpu = self.vcpu
        if vcpu.level != USER:
            vcpu.pc -= 2 if self._registers.thumb else 4
            self._refuse(x.undefined())
            return
        self._called_by_user(vcpu.gpr[7])

    def _perform_for_user(self, pc: int) -> bool:
        """User code has no privileges."""
        return False
