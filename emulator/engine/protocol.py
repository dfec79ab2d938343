"""The `Engine` protocol: a CPU that runs until something happens.

Room: `emulator/engine`. Every engine (Unicorn now, KVM next) fulfils this protocol; what an
engine can and cannot do is a field of `Capabilities`, so that no caller ever asks for an engine
by name. The caller's handler is invoked for every exit *while the engine's run is under way*:
an engine that can resume without leaving its run loop does so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from emulator.engine.exit import Exit


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do, as probed when it was opened."""

    name: str
    """For messages and reports only, never to be compared."""
    deterministic: bool
    """Progress is counted in guest execution: equal inputs give equal exits."""
    full_privilege: bool
    """Can run an unmodified kernel at full privilege, as the reference."""
    coherent_code: bool
    """Sees guest stores to code by itself, through any mapping."""
    fast_store_needs_no_execute: bool
    """Stores are fast only on pages without execute right."""
    execute_only: bool
    """Pages of protection key 1 can be executed but not read, so that reads of rewritten code are seen."""
    reports_identify: bool
    """CPUID exits in user mode."""
    ports_exit_in_user_mode: bool
    """IN and OUT exit with PORT_READ and PORT_WRITE at CPL 3 without a planted trap."""
    real_interrupt_flag: bool
    """The interrupt flag that PUSHF shows to a deprivileged guest."""
    exit_cost: float
    """Microseconds an exit costs, order of magnitude: chooses prefill width and the like."""
    reserved_root_slots: tuple[int, ...] = ()
    """Entries of a top-level page table that the guest's mappings must not use."""


class X86Registers(Protocol):
    """The registers of an x86 CPU, readable and writable while an exit is handled, and between runs."""

    @property
    def gpr(self) -> memoryview:
        """Sixteen 64-bit words in encoding order: RAX RCX RDX RBX RSP RBP RSI RDI R8..R15."""
        ...

    rip: int
    rflags: int
    """The whole RFLAGS as the CPU has it (for a deprivileged guest: the *real* one)."""
    cr2: int
    privilege: int
    """The real current privilege level, 0..3. Changing it changes no segment register."""
    interrupt_shadow: bool
    """Whether the next instruction still runs before an interrupt may come (STI, MOV SS); can be cleared."""

    def advance(self, length: int) -> None:
        """Move RIP over an instruction of `length` bytes."""
        ...

    @property
    def trap_flag(self) -> bool:
        """RFLAGS.TF alone, which is cheaper to tell than all of RFLAGS."""
        ...

    def control(self, number: int) -> int:
        """CR0, CR2, CR3 or CR4."""
        ...

    def debug(self, number: int) -> int:
        """DR0..DR7."""
        ...

    def msr(self, number: int) -> int:
        """EFER, STAR, LSTAR, CSTAR, FMASK or KERNEL_GS_BASE."""
        ...

    def segment(self, index: int) -> tuple[int, int, int, int]:
        """Selector, base, limit (bytes), attributes of ES CS SS DS FS GS LDTR TR (0..7).

        Attributes are bits 8-23 of a descriptor's second word, at their place (type in 8-11, S 12, DPL 13-14,
        P 15, AVL 20, L 21, D/B 22, G 23).
        """
        ...

    def set_segment(self, index: int, selector: int, base: int, limit: int, attributes: int) -> None:
        """Load a segment register, hidden part included. Loading CS or SS does not change the privilege level."""
        ...

    def segment_base(self, index: int) -> int:
        """The base of a segment register."""
        ...

    def set_segment_base(self, index: int, base: int) -> None:
        """Change only the base of FS (4) or GS (5)."""
        ...

    def table(self, which: int) -> tuple[int, int]:
        """Base and limit of GDTR (0) or IDTR (1)."""
        ...

    def set_table(self, which: int, base: int, limit: int) -> None:
        """Load GDTR (0) or IDTR (1)."""
        ...


Handler = Callable[[Exit], None]
"""What an engine calls for every exit. It must not keep the `Exit`, which is reused."""


class Engine(Protocol):
    """A CPU with its memory, driven by one handler.

    Physical addresses are the engine's own: the guest's memory lies at its guest-physical addresses, and a hypervisor
    may map memory of its own above it.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What was found when the engine was opened."""
        ...

    @property
    def registers(self) -> X86Registers:
        """The CPU's registers: one object for the engine's lifetime."""
        ...

    def map_memory(self, physical: int, memory: memoryview) -> None:
        """Back physical addresses from `physical` on by `memory` (page-aligned, writable)."""
        ...

    def map_mmio(
        self, physical: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Route accesses to `size` bytes at `physical` to `read(offset, size)` and `write(offset, size, value)`.

        An exception that they raise ends `run`, as one raised by the handler does.
        """
        ...

    def run(self, handler: Handler) -> None:
        """Run until the handler calls `stop`. An exception raised by the handler propagates, and the engine can be
        run again. Raises `GuestFault` when the CPU cannot go on for a reason that is no exit."""
        ...

    def stop(self) -> None:
        """End `run` after the handler returns. Only valid inside the handler."""
        ...

    @property
    def progress(self) -> int:
        """Guest progress since the engine was opened, in the engine's own unit (see the clock)."""
        ...

    def set_deadline(self, progress: int) -> None:
        """Ask for a BUDGET exit when `progress` is reached (as soon as possible if it is past)."""
        ...

    def set_root(self, physical: int) -> None:
        """Switch to the page table at `physical`; what was cached of another one is not used for it."""
        ...

    def set_control(self, cr0: int, cr4: int, efer: int) -> None:
        """Load the real control registers; a root must be set before CR0.PG is. Takes `guard_code` back."""
        ...

    def guard_code(self, enabled: bool = True) -> None:
        """From now on pages of protection key 1 are execute-only in user mode (a read faults with error bit 5), or not.

        Only for an engine whose capabilities say `execute_only`; followed by `set_root` or `flush_tlb`. While it is
        off, software finds no protection keys at all.
        """
        ...

    def write_msr(self, number: int, value: int) -> None:
        """Write one of the real processor's MSRs."""
        ...

    def flush_tlb(self) -> None:
        """Entries of page tables in use were changed or removed: what was cached of them is not used any more.

        An entry that becomes present needs no flush.
        """
        ...

    def code_changed(self, address: int, size: int) -> None:
        """The host changed bytes that may have been executed at mapped guest-virtual `address`."""
        ...

    def flush_code(self) -> None:
        """Any bytes that may have been executed were changed."""
        ...

    def close(self) -> None:
        """Release the CPU. Idempotent."""
        ...
