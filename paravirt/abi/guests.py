"""The para-virtual interface beside the calls: entry points, registers, frames, events and the shared page.

Room: `paravirt/abi`, data only: one `Convention` for each instruction set. With `calls` it is the whole of what a
para-virtual kernel must know, and everything that is printed of it comes from here.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from paravirt.abi import AARCH64, ARMV7, I386, MIPS32, X86_64, Window

NOTE_NAME: Final = "retrap"
NOTE_VERSION: Final = 1
"""ELF note by which a para-virtual kernel is known: this name, this type, and as its description the version of the
interface that it was built for, 32 bits."""


class Trap(IntEnum):
    """Why the guest's kernel is entered: index into the trap table, and a frame's `trap`."""

    PAGE_FAULT = 0
    """`address` was not to be had; `detail` says for what (`ACCESS_...`) and, with `ACCESS_PRESENT`, that there is an
    entry which forbids it."""
    UNDEFINED = 1
    """An undefined instruction; on Arm also one that only a kernel may use."""
    PRIVILEGED = 2
    """An instruction that only a kernel may use, or another protection fault; `detail` is the processor's error."""
    BREAKPOINT = 3
    """A breakpoint instruction, at `pc`."""
    FLOATING_POINT = 4
    """A floating-point instruction while the shared word `fpu` is 0."""
    SYSTEM_CALL = 5
    """User code called; `pc` is behind the instruction."""
    EVENT = 6
    """Events: `detail` has a bit for each port, and they are no longer pending."""
    OTHER = 7
    """Any other exception; `detail` is the processor's own number of it, `address` its error."""


class Port(IntEnum):
    """Ports whose events the hypervisor sends."""

    TIMER = 0
    """The virtual timer."""
    CONSOLE = 1
    """Something was typed (CONSOLE_READ)."""


FIRST_OWN_PORT: Final = 8
"""The first port that a guest may send events to by EVENT_SEND."""
PORTS: Final = 32

ACCESS_READ: Final = 0
ACCESS_WRITE: Final = 1
ACCESS_EXECUTE: Final = 2
ACCESS_PRESENT: Final = 4

STATE_USER: Final = 1
"""A frame's `state`: user code was interrupted, or is to be entered."""
STATE_INTERRUPTS: Final = 2
"""A frame's `state`: events may be delivered."""

TAIL: Final = ("pc", "flags", "state", "trap", "detail", "address")
"""Words of a frame behind its registers. `flags` are the arithmetic flags as the instruction set has them (RFLAGS,
NZCV, CPSR; 0 on MIPS), `state` is one of STATE_...; `trap`, `detail` and `address` are not read by RETURN."""

MASK_OFFSET: Final = 0x400
"""Shared page, a word that the guest writes: ports whose events are not delivered."""
FPU_OFFSET: Final = 0x408
"""Shared page, a word that the guest writes: not 0 while floating point is enabled. What the processor has follows at
the next entry to the hypervisor that needs it."""
VERSION_OFFSET: Final = 0x410
"""Shared page: the version, as the call VERSION gives it."""
MACHINE_OFFSET: Final = 0xC00
"""Shared page, up to E00H: what a technique of memory virtualisation tells its guest of machine frames."""

CALL_ENTRY: Final = 0x00
"""Offset in the hypervisor's window: a call here, with registers as the convention says, calls the hypervisor."""
RETURN_ENTRY: Final = 0x20
"""Offset in the hypervisor's window: a jump here is RETURN of the frame on top of the stack. A handler that returns as
a function does comes here."""


@dataclass(frozen=True, slots=True)
class Convention:
    """How one instruction set's guests call and are entered."""

    window: Window
    frame: tuple[str, ...]
    """Registers in a frame, in order; `TAIL` follows. Each is a word."""
    stack: str
    """The stack pointer's name among them."""
    number: str
    """Register of a call's number."""
    arguments: tuple[str, ...]
    """Registers of its arguments."""
    result: str
    """Register of its result; every other register is kept."""
    handler: str
    """Register that has the frame's address when a handler is entered."""
    link: str
    """Register of a return address; empty where it is on the stack."""
    room: int
    """Bytes between the stack pointer and the frame when a handler is entered."""
    trap: bytes
    """The instruction at the entry points."""
    macro: str
    """The compiler's macro that is defined for this instruction set alone."""
    call: str
    """Calls the address in an assembler's operand %0, as GNU as has it."""

    @property
    def isa(self) -> str:
        """Name of the instruction set."""
        return self.window.isa

    @property
    def word(self) -> int:
        """Bytes of a word."""
        return self.window.word

    @property
    def frame_bytes(self) -> int:
        """Of a whole frame."""
        return (len(self.frame) + len(TAIL)) * self.word

    @property
    def call_entry(self) -> int:
        """Guest-virtual address that is called."""
        return self.window.base + CALL_ENTRY

    @property
    def return_entry(self) -> int:
        """Guest-virtual address that is jumped to."""
        return self.window.base + RETURN_ENTRY

    def offset(self, name: str) -> int:
        """Of a word of the frame."""
        return (*self.frame, *TAIL).index(name) * self.word


_X86 = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")

CONVENTIONS: Final[dict[str, Convention]] = {
    convention.isa: convention
    for convention in (
        Convention(
            window=X86_64,
            frame=(*("r" + name for name in _X86), *(f"r{number}" for number in range(8, 16))),
            stack="rsp",
            number="rax",
            arguments=("rdi", "rsi", "rdx", "r10"),
            result="rax",
            handler="rdi",
            link="",
            room=8,
            trap=b"\xf4",
            macro="__x86_64__",
            call="call *%0",
        ),
        Convention(
            window=I386,
            frame=tuple("e" + name for name in _X86),
            stack="esp",
            number="eax",
            arguments=("ebx", "ecx", "edx", "esi"),
            result="eax",
            handler="eax",
            link="",
            room=4,
            trap=b"\xf4",
            macro="__i386__",
            call="call *%0",
        ),
        Convention(
            window=AARCH64,
            frame=(*(f"x{number}" for number in range(31)), "sp"),
            stack="sp",
            number="x8",
            arguments=("x0", "x1", "x2", "x3"),
            result="x0",
            handler="x0",
            link="x30",
            room=0,
            trap=(0xD400_0002 | 0x7E74 << 5).to_bytes(4, "little"),
            macro="__aarch64__",
            call="blr %0",
        ),
        Convention(
            window=ARMV7,
            frame=tuple(f"r{number}" for number in range(15)),
            stack="r13",
            number="r12",
            arguments=("r0", "r1", "r2", "r3"),
            result="r0",
            handler="r0",
            link="r14",
            room=0,
            trap=b"\xf0\x00\xf0\xe7",
            macro="__arm__",
            call="blx %0",
        ),
        Convention(
            window=MIPS32,
            frame=(*(f"r{number}" for number in range(1, 32)), "hi", "lo"),
            stack="r29",
            number="r2",
            arguments=("r4", "r5", "r6", "r7"),
            result="r2",
            handler="r4",
            link="r31",
            room=16,
            trap=0x4200_003F.to_bytes(4, "little"),
            macro="__mips__",
            call=".set push; .set noreorder; jalr %0; nop; .set pop",
        ),
    )
}
"""By name of the instruction set."""
