"""The `Engine` protocol: a CPU that runs until something happens.

Room: `emulator/engine`. Every engine fulfils this protocol, and for its instruction set the wider one beside it
(`emulator.engine.x86`, ...), which adds the registers and what else only that architecture has. What an
engine can and cannot do is a field of `Capabilities`, so that no caller ever asks for an engine
by name. The caller's handler is invoked for every exit *while the engine's run is under way*:
an engine that can resume without leaving its run loop does so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from emulator.engine.exit import Exit

WHOLE_TABLE: Final = -2
"""In a list of changed entries of page tables: whichever ones of the table at that address."""


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
    """Sees guest stores to code by itself, through the mapping that it executes."""
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
    coherent_aliases: bool = False
    """Sees guest stores to code through any other mapping as well, whatever its rights."""
    time_stamp_faults: bool = True
    """RDTSC in user mode faults while CR4.TSD is set."""
    wide_vectors: bool = False
    """User code can use AVX although the processor shown to it has none: state that its kernel does not save."""
    task_switched_faults: bool = True
    """A floating-point instruction faults while CR0.TS is set."""
    shows_selectors: bool = True
    """Reads of segment registers in user mode show the selectors that they were entered with."""
    shows_io_privilege: bool = True
    """PUSHF in user mode shows the I/O privilege level and the interrupt flag that it was entered with."""
    opens_ports: bool = False
    """IN and OUT in user mode fault as above the I/O privilege level, unless `open_ports` has them exit."""
    answers_ports: bool = False
    """Single ports can be posted and answered without an exit (`post_port`, `answer_port`)."""
    shows_segments: bool = False
    """User code loads segments by what `show_segments` was given, and not from the table in GDTR."""
    names_changes: bool = False
    """Translations are kept until the engine is told which went: `flush_tlb` without the changed entries is slow."""
    names_gained: bool = False
    """That goes for an entry as well which only gained the right to write: no look at the tables before a store by it
    is refused."""
    open_bases: bool = False
    """RDFSBASE, WRGSBASE and their like work in user mode, and what they set is found in the registers at an exit."""
    steady_counter: bool = False
    """RDTSC in user mode shows a counter of the host's that goes at a steady rate (`X86Engine.counter`); MULX works."""
    crosses: bool = False
    """SYSCALL and SYSRET of a deprivileged guest need no exit (`emulator.engine.x86.CrossingEngine`)."""
    data_breakpoints: bool = False
    """Tells of accesses to chosen places in memory (`emulator.engine.accesses.AccessEngine`)."""
    progress_per_second: int = 100_000_000
    """Units of progress that are one second of virtual time. The default is for basic blocks: about a 500 MHz CPU."""
    single_step: bool = True
    """Comes back after one instruction when the trap flag (or what the architecture has for it) is set."""
    watches: bool = False
    """Calls back before chosen instructions, and stops there (`emulator.engine.pausing.WatchingEngine`)."""
    pauses_exactly: bool = False
    """Can be stopped at any progress, and watched, without a trace in what it does then (`emulator.engine.pausing`)."""
    lands: bool = False
    """Progress follows from the guest's own exits and from what the engine tells: its runs can be done again
    (`emulator.engine.landing`)."""


Handler = Callable[[Exit], None]
"""What an engine calls for every exit. It must not keep the `Exit`, which is reused."""


class Engine(Protocol):
    """A CPU of any instruction set with its memory, driven by one handler.

    Physical addresses are the engine's own: the guest's memory lies at its guest-physical addresses, and a hypervisor
    may map memory of its own above it.
    """

    @property
    def capabilities(self) -> Capabilities:
        """What was found when the engine was opened."""
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

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None:
        """Entries of page tables in use were changed or removed: what was cached of them is not used any more.

        An entry that becomes present needs no flush. `changes` may name the entries by their engine-physical addresses,
        each with the address of the 4 KiB page that it mapped (-1: a large page, or a table; `WHOLE_TABLE`: any of the
        4 KiB table that begins there); without it, all that is cached goes. Slow where the capabilities say
        `names_changes`.
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
