"""What an ARMv7-A engine has besides what every engine has: its registers, banks, system registers and page-table root.

Room: `emulator/engine`. Names and encodings are those of the ARM ARM (DDI 0406C). Exits of this instruction set:
a FAULT's `vector` is the number of the exception vector (`UNDEFINED`, ...), its `error` the fault status as DFSR or
IFSR would show it in short-descriptor form, its `address` DFAR or IFAR.
"""

from typing import Protocol

from emulator.engine.protocol import Engine

UNDEFINED, SUPERVISOR_CALL, PREFETCH_ABORT, DATA_ABORT, INTERRUPT, FAST_INTERRUPT = 1, 2, 3, 4, 6, 7
"""Exceptions, by the number of their vector (ARM B1.8.1)."""

USR, FIQ, IRQ, SVC, MON, ABT, HYP, UND, SYS = 0x10, 0x11, 0x12, 0x13, 0x16, 0x17, 0x1A, 0x1B, 0x1F
"""Processor modes, as in CPSR.M."""

DEBUG_EVENT = 0x002
"""The fault status of a prefetch abort that BKPT raises."""

WRITE = 1 << 11
"""Bit of a data abort's status: the access was a write (WnR)."""


class ArmRegisters(Protocol):
    """The registers of an ARMv7-A CPU, readable and writable while an exit is handled, and between runs."""

    @property
    def gpr(self) -> memoryview:
        """Sixteen 32-bit words, R0 to R14 of the current mode; word 15 is the address of the next instruction, without
        the offset that an instruction reading PC sees, and without CPSR.T."""
        ...

    pc: int
    """Word 15 of `gpr`. A FAULT finds it at the instruction; a SYSTEM_CALL and a HALT find it behind."""

    cpsr: int
    """The whole CPSR, T and IT bits included. A new mode changes the banked registers as the architecture has it."""

    @property
    def thumb(self) -> bool:
        """CPSR.T alone, which is cheaper to tell."""
        ...

    spsr: int
    """SPSR of the current mode."""

    def banked(self, mode: int) -> tuple[int, int, int]:
        """SP, LR and SPSR of a mode that is not the current one; User stands for User and System."""
        ...

    def set_banked(self, mode: int, sp: int, lr: int, spsr: int) -> None:
        """Change SP, LR and SPSR of a mode that is not the current one."""
        ...

    def advance(self, length: int) -> None:
        """Move PC over an instruction of `length` bytes, and the IT state with it."""
        ...

    user_thread: int
    """TPIDRURW."""
    user_thread_readonly: int
    """TPIDRURO."""
    fpexc: int
    """FPEXC: whether floating point runs."""

    def clear_exclusive(self) -> None:
        """CLREX: the next STREX fails."""
        ...

    def system(self, name: str) -> int:
        """A system register of the real processor, by the ARM ARM's name."""
        ...

    def set_system(self, name: str, value: int) -> None:
        """Write a system register of the real processor."""
        ...


class ArmEngine(Engine, Protocol):
    """An ARMv7-A CPU with its memory, driven by one handler. It begins in Supervisor mode with the MMU off."""

    @property
    def registers(self) -> ArmRegisters:
        """The CPU's registers: one object for the engine's lifetime."""
        ...

    def set_root(self, physical: int) -> None:
        """Switch TTBR0 to the first-level table at `physical`; what was cached of another one is not used for it."""
        ...

    def set_domains(self, value: int) -> None:
        """Load the real DACR. What loses access needs `flush_tlb`."""
        ...
