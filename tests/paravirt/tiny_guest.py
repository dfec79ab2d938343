"""A guest of a few bytes under the hypervisor: page tables, descriptors, gates and code, run to its end.

Room: `tests`. The kernel is at CPL 0 of the virtual CPU at `KERNEL`, the program at CPL 3 at `PROGRAM`; both are
identity-mapped. Every vector leads to a stub that halts with interrupts off unless `handler` says otherwise, which
ends the run: `outcome` and the virtual CPU then tell what happened.
"""

from __future__ import annotations

from emulator.board.linux_boot import EntryState
from emulator.engine.exit import Exit, ExitKind
from emulator.isa.x86 import descriptors as d
from emulator.isa.x86 import walk as w
from emulator.machine import Limits, Machine, Outcome
from paravirt.hypervisor import Hypervisor
from paravirt.translator import Translator, Untouched
from tests.paravirt.model_mmu import GuestTables

MEMORY = 4 << 20
TABLES, GDT, IDT, TSS = 0x10_0000, 0x6_0000, 0x6_1000, 0x6_2000
KERNEL, PROGRAM, DATA = 0x4_0000, 0x5_0000, 0x7_0000
KERNEL_STACK, USER_STACK, STUBS = 0x8_1000, 0x9_0000, 0xA_0000
KERNEL_CODE, KERNEL_DATA, USER_DATA, USER_CODE, TASK = 0x10, 0x18, 0x2B, 0x33, 0x38
USER_ENTRY = w.PRESENT | w.WRITABLE | w.USER
HALT = "fa f4"
"""cli; hlt: the end of a run, at CPL 0."""
TO_USER = "48cf"
"""iretq, with the frame that `TinyGuest` has put on the stack."""


class TinyGuest:
    """One guest and its hypervisor."""

    def __init__(
        self, kernel: str, program: str = "", translator: Translator | None = None, guest_seconds: float = 0.01
    ) -> None:
        self.machine = Machine(MEMORY, lambda _: None, limits=Limits(guest_seconds=guest_seconds, host_seconds=20))
        self.memory = self.machine.memory.view
        self.words = self.memory.cast("Q")
        self.tables = GuestTables(self.memory, TABLES)
        for page in range(0, 0x10_0000, 4096):
            self.tables.map(page, page | USER_ENTRY)
        self._describe()
        self.put(KERNEL, kernel)
        self.put(PROGRAM, program)
        self.hypervisor = Hypervisor(self.machine, translator or Untouched())
        self.vcpu = self.hypervisor.vcpu
        self.kinds: list[ExitKind] = []
        self.levels: set[int] = set()
        self.events: list[tuple[str, int, int, int]] = []
        self.hypervisor.observe = lambda *event: self.events.append(event)
        self.hypervisor.enter(
            EntryState(rip=KERNEL, rsi=0, rsp=KERNEL_STACK - 0x100, cr3=self.tables.root, gdt_base=GDT, gdt_limit=0xFF)
        )
        vcpu = self.vcpu
        vcpu.efer |= 0x801
        vcpu.cr0 |= 0x1_0000
        vcpu.idt_base, vcpu.idt_limit = IDT, 0xFFF
        vcpu.set_segment(7, TASK, TSS, 0x67 + 0x100, d.PRESENT | d.TYPE_TSS_BUSY << 8)
        self.hypervisor.translations_changed()
        self.hypervisor.descriptors_changed()

    def _describe(self) -> None:
        for selector, descriptor in (
            (KERNEL_CODE, 0x00AF_9B00_0000_FFFF),
            (KERNEL_DATA, 0x00CF_9300_0000_FFFF),
            (USER_DATA & ~7, 0x00CF_F300_0000_FFFF),
            (USER_CODE & ~7, 0x00AF_FB00_0000_FFFF),
        ):
            self.words[GDT + selector >> 3] = descriptor
        for vector in range(256):
            self.put(STUBS + 4 * vector, HALT)
            self.gate(vector, STUBS + 4 * vector)
        self.words[TSS + 4 >> 3] = 0
        self.memory[TSS + 4 : TSS + 12] = KERNEL_STACK.to_bytes(8, "little")
        self.memory[TSS + 0x66 : TSS + 0x68] = (0x68).to_bytes(2, "little")
        self.memory[TSS + 0x68 : TSS + 0x168] = b"\xff" * 0x100
        for index, word in enumerate((PROGRAM, USER_CODE, 0x202, USER_STACK, USER_DATA)):
            self.words[(KERNEL_STACK - 0x100 >> 3) + index] = word

    def put(self, address: int, code: str) -> None:
        """Write bytes given in hexadecimal."""
        raw = bytes.fromhex(code)
        self.memory[address : address + len(raw)] = raw

    def gate(self, vector: int, handler: int, level: int = 0, trap: bool = False) -> None:
        """Set the gate of a vector."""
        kind = (0x8F if trap else 0x8E) | level << 5
        self.words[(IDT >> 3) + 2 * vector] = handler & 0xFFFF | KERNEL_CODE << 16 | kind << 40 | (handler >> 16) << 48
        self.words[(IDT >> 3) + 2 * vector + 1] = handler >> 32

    def allow_port(self, port: int) -> None:
        """Open a port in the I/O permission bitmap."""
        self.memory[TSS + 0x68 + (port >> 3)] &= ~(1 << (port & 7))

    def run(self) -> Outcome:
        """Run to the end, looking at the real privilege level at every exit."""
        dispatch = self.hypervisor._dispatch
        registers = self.machine.engine.registers

        def watched(kind: int) -> None:
            handler = dispatch[kind]

            def handle(exit_: Exit) -> None:
                self.kinds.append(ExitKind(exit_.kind))
                self.levels.add(registers.privilege)
                handler(exit_)
                self.levels.add(registers.privilege)

            dispatch[kind] = handle

        for kind in list(dispatch):
            watched(kind)
        return self.hypervisor.run()

    @property
    def halted_in(self) -> int:
        """The vector in whose stub the run ended, -1 when it ended elsewhere."""
        vector, offset = divmod(self.vcpu.rip - STUBS, 4)
        return vector if 0 <= vector < 256 and offset == 2 else -1

    def pushed(self) -> tuple[int, int, int, int, int]:
        """RIP, CS, RFLAGS, RSP, SS of the frame on top of the stack."""
        at = self.vcpu.gpr[4] >> 3
        return tuple(self.words[at : at + 5])  # type: ignore[return-value]

    def close(self) -> None:
        """Release the machine."""
        self.machine.close()
