"""A guest of a few bytes under the hypervisor, run to its end.

Room: `tests`. What is in its memory is `tests.emulator.guest_image`; the virtual CPU is entered at CPL 0 in the state
that a kernel has after its set-up, interrupts off.
"""

from __future__ import annotations

from emulator.engine.exit import Exit, ExitKind
from emulator.isa.x86 import descriptors as d
from emulator.machine import Limits, Machine, Outcome
from paravirt.modes.x86.hypervisor import X86Hypervisor
from paravirt.translator import Translator, Untouched
from tests.emulator.guest_image import ENTRY, IDT, MEMORY, STUBS, TASK, TSS, GuestImage


class TinyGuest(GuestImage):
    """One guest and its hypervisor."""

    def __init__(
        self, kernel: str, program: str = "", translator: Translator | None = None, guest_seconds: float = 0.01
    ) -> None:
        self.machine = Machine(MEMORY, lambda _: None, limits=Limits(guest_seconds=guest_seconds, host_seconds=20))
        super().__init__(self.machine.memory.view, kernel, program)
        self.hypervisor = X86Hypervisor(self.machine, translator or Untouched())
        self.vcpu = self.hypervisor.vcpu
        self.kinds: list[ExitKind] = []
        self.levels: set[int] = set()
        self.events: list[tuple[str, int, int, int]] = []
        self.hypervisor.observe = lambda *event: self.events.append(event[:4])
        self.hypervisor.enter(ENTRY)
        vcpu = self.vcpu
        vcpu.efer |= 0x801
        vcpu.cr0 |= 0x1_0000
        vcpu.idt_base, vcpu.idt_limit = IDT, 0xFFF
        vcpu.set_segment(7, TASK, TSS, 0x67 + 0x100, d.PRESENT | d.TYPE_TSS_BUSY << 8)
        self.hypervisor.translations_changed()
        self.hypervisor.descriptors_changed()

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

        for kind in range(len(dispatch)):
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
