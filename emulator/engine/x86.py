"""What an x86 engine has besides what every engine has: its registers, page-table root and control registers.

Room: `emulator/engine`. Names and encodings are those of Intel's manual.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from emulator.engine.crossing import Crossing
from emulator.engine.protocol import Engine


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

    def selector(self, index: int) -> int:
        """The selector alone, which is cheaper to tell."""
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


Burst = Callable[[int, bytes], bool]
"""Takes bytes that were written to a port one after another; or does not, and says so."""


class X86Engine(Engine, Protocol):
    """An x86-64 CPU with its memory, driven by one handler."""

    @property
    def registers(self) -> X86Registers:
        """The CPU's registers: one object for the engine's lifetime."""
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

    def open_ports(self, enabled: bool = True) -> None:
        """From now on IN and OUT in user mode exit and are never refused, or fault as above the I/O privilege level.

        Only for an engine whose capabilities say `opens_ports`; others do nothing.
        """
        ...

    def post_ports(self, ports: Sequence[tuple[int, int]], burst: Burst | None = None) -> None:
        """Allow writes to these ports (first, count) to be handed up late: in order, before whatever exit comes next.

        The registers at such an exit are those of the later one. Several bytes in a row to one port may be offered to
        `burst` instead.
        """
        ...

    def vectors(self) -> bytes:
        """The vector state beyond x87 and SSE as a value; empty in its initial state, or where there is none."""
        ...

    def set_vectors(self, state: bytes) -> None:
        """Put a state back that `vectors` gave."""
        ...

    def floating(self) -> bytes:
        """x87 and SSE state, as FXSAVE stores it in 64-bit mode: 512 bytes."""
        ...

    def set_floating(self, image: bytes) -> None:
        """Put a state back that `floating` gave, on this engine or another. Raises `ValueError` for another size."""
        ...

    def show_segments(self, table: bytes) -> None:
        """Let user code load the segments of this descriptor table, which holds no others than user segments, or none
        at all if it is empty. Only for an engine whose capabilities say `shows_segments`; others do nothing."""
        ...

    def counter(self) -> tuple[int, float]:
        """What RDTSC in user mode would show now, and by how much it grows in a nanosecond. Only for an engine whose
        capabilities say `steady_counter`."""
        ...


class CrossingEngine(X86Engine, Protocol):
    """An engine whose capabilities say `crosses`: SYSCALL and SYSRET of a deprivileged guest need no exit."""

    @property
    def raw_vector(self) -> int:
        """Vector of the trap that is about to be handed up, or -1 for another exit."""
        ...

    def lead_crossing(self, crossing: Crossing, crossed: Callable[[bool], None]) -> None:
        """How the guest's kernel is entered and left without an exit, once that is opened; `crossed` is called with
        whether it runs user code now, at an exit behind that, before the handler is."""
        ...

    @property
    def call_frame(self) -> tuple[int, int]:
        """Where the code that enters a kernel reads what the processor pushed (error code, RIP, CS, RFLAGS, RSP, SS),
        and the RIP that is there behind a SYSCALL."""
        ...

    def show_memory(self, size: int) -> int | None:
        """Where that code may read the first `size` bytes of physical memory. None for too many."""
        ...

    def show_tables(self, regions: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], memoryview] | None:
        """Where that code reads more regions of physical memory, each given by address and size: the page tables, and
        what the kernel's code knows of them and of memory; and bytes in which to say, by 4 KiB of the tables, which of
        them `Crossing.back` may store in, 1, and in which `Crossing.clear` may clear, 2. None where it cannot."""
        ...

    def lead_traps(self, places: Sequence[int]) -> None:
        """From now on traps at these addresses, and at others with the same last byte, arrive at `Crossing.trapped`."""
        ...

    def open_crossing(self, kernel: int, user: int) -> None:
        """From now on lead from one of these page tables to the other; until another is set, or all is flushed."""
        ...

    def close_crossing(self) -> None:
        """All exits."""
        ...


class AnsweringEngine(X86Engine, Protocol):
    """An engine whose capabilities say `answers_ports`."""

    def post_port(self, port: int, posted: bool) -> None:
        """Hand writes of a byte to this port up late, in order, before whatever exit comes next; or at once again.

        Only while ports are open (`open_ports`).
        """
        ...

    def answer_port(self, port: int, value: int, sought_at: int) -> None:
        """Answer reads of a byte from this port without an exit, or no more (-1), while ports are open.

        A guest that reads on and on without a posted write to `sought_at` waits for something: then reads exit.
        """
        ...


class I386Engine(AnsweringEngine, Protocol):
    """An x86 CPU that has 32-bit protected mode besides: `set_control` without EFER.LME."""

    def read_msr(self, number: int) -> int:
        """Read one of the real processor's MSRs."""
        ...

    def answer_time_stamp(self, scale: int, offset: int) -> None:
        """Answer RDTSC by progress * `scale` + `offset` from now on, or have it exit again (a scale of 0)."""
        ...

    @property
    def time_stamps_answered(self) -> int:
        """How many RDTSC were answered since the engine was opened."""
        ...
