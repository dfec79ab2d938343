"""A guest of a few bytes at full privilege on the reference, run to its end.

Room: `tests`. What is in its memory is `tests.emulator.guest_image`; the processor is entered as
`tests.paravirt.tiny_guest` enters the virtual one, so that the two can be compared.
"""

from __future__ import annotations

from emulator.isa.x86 import descriptors as d
from emulator.machine import Limits, Machine, Outcome
from emulator.native.x86 import X86NativeCpu
from tests.emulator.guest_image import ENTRY, IDT, MEMORY, STUBS, TASK, TSS, GuestImage


class NativeGuest(GuestImage):
    """One guest on the reference."""

    def __init__(self, kernel: str, program: str = "", guest_seconds: float = 0.01) -> None:
        self.machine = Machine(MEMORY, lambda _: None, limits=Limits(guest_seconds=guest_seconds, host_seconds=20))
        super().__init__(self.machine.memory.view, kernel, program)
        self.cpu = X86NativeCpu(self.machine)
        self.events: list[tuple[str, int, int, int]] = []
        self.cpu.observe = lambda *event: self.events.append(event[:4])
        self.cpu.enter(ENTRY)
        self.machine.engine.set_control(ENTRY.cr0 | 0x1_0000, ENTRY.cr4, 0xD01)
        registers = self.machine.engine.registers
        registers.set_table(1, IDT, 0xFFF)
        registers.set_segment(7, TASK, TSS, 0x67 + 0x100, d.PRESENT | d.TYPE_TSS_BUSY << 8)

    def run(self) -> Outcome:
        """Run to the end."""
        return self.cpu.run()

    @property
    def halted_in(self) -> int:
        """The vector in whose stub the run ended, -1 when it ended elsewhere."""
        vector, offset = divmod(self.cpu.rip - STUBS, 4)
        return vector if 0 <= vector < 256 and offset == 2 else -1

    def close(self) -> None:
        """Release the machine."""
        self.machine.close()
