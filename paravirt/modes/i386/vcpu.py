"""The virtual CPU of a 32-bit guest: protected mode and virtual-8086 mode, with legacy, PAE or no paging.

Room: `paravirt/modes/i386`. As `paravirt.modes.x86.vcpu`, with words of 32 bits in the shared page, segments that have
bases, and task switches. The real processor is in compatibility mode, so no segment may have the bit that would
lead from there to 64-bit mode.
"""

from collections.abc import Callable

from emulator.engine.x86 import X86Registers
from emulator.isa.x86 import registers as r
from emulator.isa.x86.descriptors import DEFAULT_BIG, LONG
from emulator.isa.x86.identity import identify_32
from emulator.isa.x86.walk32 import LegacyWalker, PaeWalker, Unpaged
from paravirt import abi
from paravirt.modes.x86.vcpu import X86VirtualCpu

MASK = 0xFFFF_FFFF
_CS = 1
_DISABLED = abi.I386.disabled & MASK
_DELTA = abi.I386.interrupt_state // 4
_PRIVILEGE = abi.IO_PRIVILEGE // 4
_CONTROL = abi.I386.registers // 4
_GS = 5
_HIDDEN = r.FLAG_IF | r.FLAG_IOPL | r.FLAG_VM | r.FLAG_VIF | r.FLAG_VIP


class I386VirtualCpu(X86VirtualCpu):
    """One virtual 32-bit processor. `shared` is the shared page as 32-bit words."""

    IDENTIFY = staticmethod(identify_32)
    MODE_BITS = 32
    CR0_WORD, SWITCHED_WORD = abi.I386.registers // 4, abi.TASK_SWITCHED // 4

    def __init__(self, registers: X86Registers, memory: memoryview, shared: memoryview) -> None:
        super().__init__(registers, memory, shared)
        self._cr0, self._cr4, self._efer = r.CR0_PE | r.CR0_ET, 0, 0
        self.unpaged = Unpaged()
        self.legacy = LegacyWalker(memory, self.context)
        self.pae = PaeWalker(memory, self.context)
        self.walker: LegacyWalker | PaeWalker | Unpaged = self.unpaged
        """The walk of the mode that the guest has chosen."""
        self.use_walker(self.unpaged)
        self.on_task_switch: Callable[[], None] = lambda: None
        """Called when a task switch has loaded CR3 and set CR0.TS."""
        self.publish()

    @property
    def kernel_gs_base(self) -> int:
        """32-bit code has no SWAPGS."""
        return 0

    @kernel_gs_base.setter
    def kernel_gs_base(self, value: int) -> None:
        pass

    @property
    def linear(self) -> int:
        """Linear address of the instruction under way."""
        return self.registers.rip + self.registers.segment_base(_CS) & MASK

    @property
    def code_bits(self) -> int:
        """Width of the code under way: 32 or 16."""
        return 32 if self.registers.segment(_CS)[3] & DEFAULT_BIG else 16

    @property
    def virtual_8086(self) -> bool:
        """Whether user code runs in virtual-8086 mode."""
        return self.level == 3 and self.registers.rflags & r.FLAG_VM != 0

    # -- flags ----------------------------------------------------------------------------------

    @property
    def iopl(self) -> int:
        """The guest's I/O privilege level, 0..3."""
        return self._iopl

    @iopl.setter
    def iopl(self, value: int) -> None:
        if value != self._iopl:
            self._iopl = value
            self.shared[_PRIVILEGE] = value << 12

    @property
    def interrupts_enabled(self) -> bool:
        """The guest's interrupt flag. Whatever else a guest put into the shared word means disabled."""
        if self.level == 3:
            return self.registers.rflags & r.FLAG_IF != 0
        return self.shared[_DELTA] == 0

    @interrupts_enabled.setter
    def interrupts_enabled(self, value: bool) -> None:
        if self.level == 3:
            flags = self.registers.rflags
            self.registers.rflags = flags | r.FLAG_IF if value else flags & ~r.FLAG_IF
        else:
            self.shared[_DELTA] = 0 if value else _DISABLED

    @property
    def rflags(self) -> int:
        """EFLAGS as the guest must see it."""
        flags = self.registers.rflags
        if self.level == 3:
            return flags
        flags = flags & ~_HIDDEN | self._iopl << 12
        return flags | r.FLAG_IF if self.shared[_DELTA] == 0 else flags

    @rflags.setter
    def rflags(self, value: int) -> None:
        self.iopl = value >> 12 & 3
        real = value & ~_HIDDEN
        if self.level == 3:
            self.registers.rflags = real | value & (r.FLAG_IF | r.FLAG_IOPL | r.FLAG_VM)
        else:
            self.shared[_DELTA] = 0 if value & r.FLAG_IF else _DISABLED
            self.registers.rflags = real | r.FLAG_IF

    # -- segments and tasks ---------------------------------------------------------------------

    def set_segment(self, index: int, selector: int, base: int, limit: int, attributes: int) -> None:
        """Load a segment register; see the base class. In virtual-8086 mode a selector has no ring."""
        if index <= _GS and self.virtual_8086:
            self.virtual_segments.pop(index, None)
            self.registers.set_segment(index, selector, base, limit, attributes)
            return
        super().set_segment(index, selector, base, limit, attributes & ~LONG)

    def task_switched(self, cr3: int) -> None:
        """CR0.TS, and with paging the new root."""
        self.cr0 = self._cr0 | r.CR0_TS
        if self._cr0 & r.CR0_PG:
            self.cr3 = cr3
        self.on_task_switch()

    # -- control registers ----------------------------------------------------------------------

    @property
    def cr2(self) -> int:
        """The page-fault address the guest sees."""
        return self._cr2

    @cr2.setter
    def cr2(self, value: int) -> None:
        self._cr2 = value & MASK
        self.shared[_CONTROL + 2] = self._cr2

    @property
    def cr3(self) -> int:
        """CR3 as the guest wrote it."""
        return self._cr3

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._cr3 = value & MASK
        self.context.root = self._cr3
        self.shared[_CONTROL + 3] = self._cr3
        self.forget_translations()

    @property
    def efer(self) -> int:
        """EFER as the guest wrote it: NXE, and nothing of long mode."""
        return self._efer

    @efer.setter
    def efer(self, value: int) -> None:
        self._efer = value & r.EFER_NXE
        self.context.no_execute = value & r.EFER_NXE != 0
        self.forget_translations()

    def choose_walker(self) -> None:
        """Take the format of tables that CR0 and CR4 say."""
        if not self._cr0 & r.CR0_PG:
            self.walker = self.unpaged
        elif self._cr4 & r.CR4_PAE:
            self.walker = self.pae
        else:
            self.legacy.large_pages = self._cr4 & r.CR4_PSE != 0
            self.walker = self.legacy
        self.use_walker(self.walker)

    def publish(self) -> None:
        """Copy the control registers into the shared page."""
        shared = self.shared
        cr0 = self.cr0
        self._publish_switched(cr0 & ~r.CR0_TS, MASK)
        for number, value in ((0, cr0), (2, self._cr2), (3, self._cr3), (4, self._cr4)):
            shared[_CONTROL + number] = value & MASK

    def fetch(self, address: int, size: int = 15) -> bytes:
        """Up to `size` bytes of the guest's own code at offset `address` of its code segment."""
        linear = address + self.registers.segment_base(_CS) & MASK
        return self.fetch_bytes(linear, size, self.level == 3)
