"""What an ARMv7-A engine has besides what every engine has: its registers, banks, system registers and page-table root.

Room: `emulator/engine`. Names and encodings are those of the ARM ARM (DDI 0406C). Exits of this instruction set:
a FAULT's `vector` is the number of the exception vector (`UNDEFINED`, ...), its `error` the fault status as DFSR or
IFSR would show it in short-descriptor form, its `address` DFAR or IFAR.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from emulator.engine.protocol import Engine

UNDEFINED, SUPERVISOR_CALL, PREFETCH_ABORT, DATA_ABORT, INTERRUPT, FAST_INTERRUPT = 1, 2, 3, 4, 6, 7
"""Exceptions, by the number of their vector (ARM B1.8.1)."""

USR, FIQ, IRQ, SVC, MON, ABT, HYP, UND, SYS = 0x10, 0x11, 0x12, 0x13, 0x16, 0x17, 0x1A, 0x1B, 0x1F
"""Processor modes, as in CPSR.M."""

DEBUG_EVENT = 0x002
"""The fault status of a prefetch abort that BKPT raises."""

FULL, OTHER = 0, 1
"""The two worlds: Non-secure and Secure state."""

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

    thumb: bool
    """CPSR.T alone, which is cheaper to tell and to change."""
    it_state: int
    """CPSR.IT alone, as one field of eight bits."""

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

    fpexc: int
    """FPEXC: whether floating point runs."""
    floating: tuple[int, ...]
    """FPSCR, and D0 to D31."""
    monitor: tuple[int, int]
    """The exclusive monitor: its address, all ones when it is open, and the doubleword that was there."""

    def clear_exclusive(self) -> None:
        """CLREX: the next STREX fails."""
        ...

    def system(self, name: str) -> int:
        """A system register of the real processor, by the ARM ARM's name."""
        ...

    def set_system(self, name: str, value: int) -> None:
        """Write a system register of the real processor."""
        ...


class CopiedPages(NamedTuple):
    """What says of pages of code that they execute from other frames than are read at their addresses."""

    tables: memoryview
    """Shadow tables, in short descriptors; a page's entry has nG set where it is such a page."""
    physical: int
    """Engine-physical address of the tables, 32 bits."""
    copies: memoryview
    """At the place of each such entry, the engine-physical address of the copy, 32 bits; 0 where there is none."""


class ArmEngine(Engine, Protocol):
    """An ARMv7-A CPU with its memory, driven by one handler. It begins in Supervisor mode with the MMU off.

    It has two worlds, each with a root, domains and thread registers of its own, and what is cached of one is not used
    in the other: so a switch between two address spaces needs no flush. `FULL` is where a kernel runs at full
    privilege; User mode runs in both.
    """

    def break_at(self, addresses: Sequence[int], asked: Callable[[int], bool], everywhere: bool = False) -> None:
        """From now on call `asked` before an instruction at one of `addresses`, or before every one; True ends in a
        BREAKPOINT exit."""
        ...

    @property
    def registers(self) -> ArmRegisters:
        """The CPU's registers: one object for the engine's lifetime. `system` is about the world `FULL`."""
        ...

    def ask_floating_point(self, rights: memoryview) -> None:
        """From now on these two words say, as CPACR and FPEXC would, whether floating point runs in User mode, where
        the real FPEXC lets it: for a guest's kernel in the world `OTHER`, for its user code in `FULL`.

        They are looked at when the world or CPSR changes, behind each write of a system register that User mode may
        have, and when the driver has changed them (`floating_point_changed`).
        """
        ...

    def floating_point_changed(self) -> None:
        """See `ask_floating_point`."""
        ...

    def use_world(self, world: int) -> None:
        """Go on in another world."""
        ...

    def enable_translation(self, world: int, sctlr: int) -> None:
        """Load a world's SCTLR, and let its translation begin at TTBR0 alone."""
        ...

    def set_root(self, physical: int, world: int = FULL) -> None:
        """Switch TTBR0 to the first-level table at `physical`; what was cached of another one is not used for it."""
        ...

    def split_roots(self, bits: int, upper: int, world: int) -> None:
        """Let the table at `upper` translate what lies above the lowest 2 to the power of 32 - `bits` (TTBCR.N, TTBR1);
        0: none. `set_root` must follow."""
        ...

    def set_domains(self, value: int, world: int = FULL) -> None:
        """Load a world's real DACR. What loses access needs `flush_world`."""
        ...

    def threads(self, world: int) -> tuple[int, int]:
        """TPIDRURW and TPIDRURO of a world."""
        ...

    def set_threads(self, world: int, writable: int, readonly: int) -> None:
        """Load TPIDRURW and TPIDRURO of a world."""
        ...

    def flush_world(self, world: int) -> None:
        """Forget what is cached of the translations of one world."""
        ...

    def flush_page(self, world: int, address: int) -> None:
        """Forget what is cached of one page's translation in one world."""
        ...

    def see_all_stores(self) -> None:
        """From now on code that is written through any mapping is seen, which makes stores slow. Without it an engine
        may keep code that the guest has changed in a page that is mapped twice."""
        ...

    def show_identity(self, values: Mapping[str, int]) -> None:
        """From now on identification registers read as `values` says, by name. Raises `EngineMissing` for a register
        that the engine does not have."""
        ...

    def withhold_timer(self) -> None:
        """From now on accesses to the generic timer are undefined instructions at every privilege, so that whoever
        drives the CPU gives it one that counts guest progress."""
        ...

    def map_execute_only(self, world: int, address: int, physical: int) -> None:
        """Let a page be executed and neither read nor written, until what is cached of it is forgotten; its table entry
        must be invalid."""
        ...

    def keep_copies(self, pages: CopiedPages) -> None:
        """From now on pages of the other world that are marked in these tables are entered by the engine itself, to be
        executed from their copies, once it is told where to begin (`execute_copies`)."""
        ...

    def execute_copies(self, root: int, upper: int = -1, split: int = 0) -> None:
        """The root table begins at byte `root` of the tables, and, where `split` is not 0, at `upper` for addresses of
        which so many upper bits are not all 0; below 0: every fetch that aborts is an exit."""
        ...

    def frame_changed(self, physical: int, size: int) -> None:
        """Bytes of memory that may have been executed were changed, by the host or through another mapping."""
        ...
