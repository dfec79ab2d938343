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


class Segment(Protocol):
    """A loaded segment register: selector and hidden part."""

    selector: int
    base: int
    limit: int
    attributes: int
    """Bits 8-23 of a descriptor's second word, at their place (type in 8-11, S 12, DPL 13-14,
    P 15, AVL 20, L 21, D/B 22, G 23)."""


class X86Registers(Protocol):
    """The registers of an x86 CPU, readable and writable while an exit is handled."""

    gpr: memoryview
    """Sixteen 64-bit words in encoding order: RAX RCX RDX RBX RSP RBP RSI RDI R8..R15."""
    rip: int
    rflags: int
    """The whole RFLAGS as the CPU has it (for a deprivileged guest: the *real* one)."""
    cr2: int

    def segment(self, index: int) -> tuple[int, int, int, int]:
        """Selector, base, limit, attributes of ES CS SS DS FS GS LDTR TR (0..7)."""
        ...

    def set_segment(self, index: int, selector: int, base: int, limit: int, attributes: int) -> None:
        """Load a segment register, hidden part included. Loading CS or SS does not change CPL."""
        ...


class Engine(Protocol):
    """A CPU with its memory, driven by one handler."""

    capabilities: Capabilities

    def map_memory(self, physical: int, memory: memoryview) -> None:
        """Back physical addresses from `physical` on by `memory` (page-aligned, writable)."""
        ...

    def run(self, handler: Callable[[Exit], None]) -> None:
        """Run until the handler calls `stop`. An exception raised by the handler propagates."""
        ...

    def stop(self) -> None:
        """End `run` after the handler returns. Only valid inside the handler."""
        ...

    @property
    def progress(self) -> int:
        """Guest progress since the engine was opened, in the engine's own unit (see the clock)."""
        ...

    def set_deadline(self, progress: int) -> None:
        """Ask for a BUDGET exit when `progress` is reached (at once if it is past)."""
        ...

    def code_changed(self, address: int, size: int) -> None:
        """The host changed bytes that may have been executed at guest-virtual `address`."""
        ...

    def close(self) -> None:
        """Release the CPU. Idempotent."""
        ...
