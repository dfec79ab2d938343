"""What the architectural semantics of x86-64 need of a processor.

Room: `emulator/isa/x86`. Delivery, far transfers and segment loads read and write a `Processor`;
the reference machine's CPU and the hypervisor's virtual CPU both are one. The semantics raise
`Fault` for an architectural exception and `TripleFault` for a shutdown; they know no engine.
"""

from typing import Protocol

from emulator.isa.exceptions import ArchitecturalException, ProcessorShutdown

MASK64 = 0xFFFF_FFFF_FFFF_FFFF
"""All bits of a 64-bit register."""

DEBUG_EXCEPTION = 1
INVALID_OPCODE = 6
DOUBLE_FAULT = 8
INVALID_TSS = 10
SEGMENT_NOT_PRESENT = 11
STACK_FAULT = 12
GENERAL_PROTECTION = 13
PAGE_FAULT = 14

ES, CS, SS, DS, FS, GS, LDTR, TR = range(8)
"""Indices of `Processor.segment`."""

TRAP_FLAG = 1 << 8
INTERRUPT_FLAG = 1 << 9
IO_PRIVILEGE = 3 << 12
NESTED_TASK = 1 << 14
RESUME_FLAG = 1 << 16
VIRTUAL_8086 = 1 << 17

EFER_SYSTEM_CALL = 1
"""EFER.SCE."""
LONG_MODE = 1 << 10
"""EFER.LMA."""


class Fault(ArchitecturalException):
    """An architectural exception raised while an operation is executed.

    `vector` is 0..31; `error` is the error code, None where the vector pushes none; `address` is
    the linear address of a page fault (what CR2 shall hold).
    """

    __slots__ = ()

    def __str__(self) -> str:
        error = "" if self.error is None else f", error code {self.error:#x}"
        where = f", address {self.address:#x}" if self.vector == PAGE_FAULT else ""
        return f"exception {self.vector}{error}{where}"


class TripleFault(ProcessorShutdown):
    """The delivery of a double fault failed: the processor shuts down."""


class Processor(Protocol):
    """An x86 processor as its own software sees it: in long mode (EFER.LMA = 1) or in 32-bit protected mode."""

    rip: int
    """Address of the instruction under way; the semantics set it to the next one to execute."""
    rflags: int
    """Complete and virtual: IF and IOPL are those the software believes in."""
    cr2: int

    @property
    def gpr(self) -> memoryview:
        """Sixteen 64-bit words ('Q') in encoding order: RAX RCX RDX RBX RSP RBP RSI RDI R8..R15."""
        ...

    @property
    def cr0(self) -> int:
        """CR0."""
        ...

    @property
    def cr4(self) -> int:
        """CR4."""
        ...

    @property
    def efer(self) -> int:
        """EFER."""
        ...

    @property
    def star(self) -> int:
        """STAR."""
        ...

    @property
    def lstar(self) -> int:
        """LSTAR."""
        ...

    @property
    def cstar(self) -> int:
        """CSTAR."""
        ...

    @property
    def fmask(self) -> int:
        """FMASK."""
        ...

    @property
    def gdt_base(self) -> int:
        """Linear address of the GDT."""
        ...

    @property
    def gdt_limit(self) -> int:
        """The last valid byte of the table, 0..65535."""
        ...

    @property
    def idt_base(self) -> int:
        """Linear address of the IDT."""
        ...

    @property
    def idt_limit(self) -> int:
        """The last valid byte of the table, 0..65535."""
        ...

    @property
    def cpl(self) -> int:
        """Current privilege level, 0..3."""
        ...

    def task_switched(self, cr3: int) -> None:
        """A task switch, in 32-bit protected mode: set CR0.TS, and with paging load CR3."""
        ...

    def set_privilege(self, cpl: int) -> None:
        """Called with the new level after each CS load that changes the CPL."""
        ...

    def segment(self, index: int) -> tuple[int, int, int, int]:
        """Selector, base, limit (in bytes), attributes of ES CS SS DS FS GS LDTR TR (0..7).

        Attributes are bits 8-23 of a descriptor's second word at their place, limit bits clear.
        """
        ...

    def set_segment(self, index: int, selector: int, base: int, limit: int, attributes: int) -> None:
        """Load a segment register, hidden part included; privilege follows by `set_privilege`."""
        ...

    def read(self, address: int, size: int) -> int:
        """`size` (1, 2, 4, 8) bytes at a canonical linear address, with supervisor right.

        Raises `Fault(14, error, address)` as the MMU would. The bytes may cross a page, and wrap
        from the last address to 0.
        """
        ...

    def write(self, address: int, size: int, value: int) -> None:
        """Store `size` bytes of `value` at a canonical linear address, with supervisor right."""
        ...

    def read_user(self, address: int, size: int) -> int:
        """As `read` with user right: IRET and far RET at CPL 3 pop their stack with it."""
        ...

    def write_user(self, address: int, size: int, value: int) -> None:
        """As `write` with user right: pushes on a stack that stays at CPL 3."""
        ...
