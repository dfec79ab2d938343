"""The virtual CPU: the processor that the guest believes in, on top of a deprivileged real one.

Room: `paravirt/modes/x86`. It is a `Processor` of the architectural semantics: privilege level, control and
descriptor registers, MSRs and flags are virtual; general registers are the engine's own. While the
guest kernel runs, its interrupt flag is in the shared page and the real one is 1; while guest user
code runs, the real flags are the virtual ones.
"""

from emulator.engine.x86 import X86Registers
from emulator.isa.x86 import registers as r
from emulator.isa.x86 import walk as w
from emulator.isa.x86.identity import identify
from emulator.isa.x86.walk import GuestContext, LinearMemory
from paravirt import abi

_FLAG_IF = r.FLAG_IF
_IOPL = 3 << 12
_HIDDEN = _FLAG_IF | _IOPL | r.FLAG_VM | r.FLAG_VIF | r.FLAG_VIP
"""Flags whose real value is not the guest kernel's."""
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_HOLE = 0x8000_0000_0000
_DISABLED = abi.INTERRUPTS_DISABLED & _MASK
_DELTA = abi.INTERRUPT_DELTA >> 3
_PRIVILEGE = abi.IO_PRIVILEGE >> 3
_CONTROL = abi.CONTROL_REGISTERS >> 3
_SWITCHED = abi.TASK_SWITCHED >> 3
_KERNEL_GS = abi.KERNEL_GS_BASE >> 3
_SELECTORS = abi.SELECTORS >> 3
_DPL3 = 3 << 13
_DATA_SEGMENTS = frozenset({0, 2, 3, 4, 5})
_PRESENT = 1 << 15


class X86VirtualCpu(LinearMemory):
    """One virtual x86-64 processor. See `emulator.isa.x86.processor.Processor` for the shared names."""

    IDENTIFY = staticmethod(identify)
    """What CPUID shows."""
    MODE_BITS = 64
    """Width of an address of the guest's kernel."""
    CR0_WORD, SWITCHED_WORD = _CONTROL, _SWITCHED
    """Words of the shared page: CR0's copy, and by which fixups write TS into it."""

    def __init__(self, registers: X86Registers, memory: memoryview, shared: memoryview) -> None:
        self.registers = registers
        self.gpr = registers.gpr
        self.advance = registers.advance
        self.context = GuestContext()
        super().__init__(memory, self.context)
        self.shared = shared
        self.level = 0
        self.copies_selectors = False
        """Fixups read the guest's selectors from the shared page."""
        self._iopl = 0
        self.virtual_segments: dict[int, tuple[int, int, int, int, int]] = {}
        """Segments whose guest-visible selector or attributes differ from the real ones, with the
        real selector under which that holds."""
        self._cr0 = r.CR0_PE | r.CR0_PG | r.CR0_ET
        self._real_switched = False
        self._cr2 = 0
        self._cr3 = 0
        self._cr4 = r.CR4_PAE
        self.cr8 = 0
        self._efer = r.EFER_LME | r.EFER_LMA
        self.star = self.lstar = self.cstar = self.fmask = 0
        self.kernel_gs_base = 0
        self.gdt_base = self.gdt_limit = self.idt_base = 0
        self.idt_limit = 0xFFFF
        self.debug = [0, 0, 0, 0, 0, 0, 0xFFFF_0FF0, 0x400]
        self.msrs: dict[int, int] = {}
        self.publish()

    # -- flags and privilege --------------------------------------------------------------------

    @property
    def rip(self) -> int:
        """The instruction pointer."""
        return self.registers.rip

    @rip.setter
    def rip(self, value: int) -> None:
        self.registers.rip = value & _MASK

    @property
    def pc(self) -> int:
        """RIP."""
        return self.registers.rip

    @pc.setter
    def pc(self, value: int) -> None:
        self.registers.rip = value & _MASK

    @property
    def cpl(self) -> int:
        """The guest's privilege level; the real one is always 3."""
        return self.level

    def set_privilege(self, cpl: int) -> None:
        """Change the guest's privilege level, keeping its flags."""
        flags = self.rflags
        self.level = cpl
        self.rflags = flags

    def task_switched(self, cr3: int) -> None:
        """Long mode switches no tasks."""
        raise NotImplementedError

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
            return self.registers.rflags & _FLAG_IF != 0
        return self.shared[_DELTA] == 0

    @interrupts_enabled.setter
    def interrupts_enabled(self, value: bool) -> None:
        if self.level == 3:
            flags = self.registers.rflags
            self.registers.rflags = flags | _FLAG_IF if value else flags & ~_FLAG_IF
        else:
            self.shared[_DELTA] = 0 if value else _DISABLED

    @property
    def kernel_gs_base(self) -> int:
        """The base that SWAPGS exchanges; a canonical address, whatever the guest put into the shared word."""
        value = self.shared[_KERNEL_GS]
        return value if not value + _HOLE >> 48 & 0xFFFF else 0

    @kernel_gs_base.setter
    def kernel_gs_base(self, value: int) -> None:
        self.shared[_KERNEL_GS] = value

    @property
    def rflags(self) -> int:
        """RFLAGS as the guest must see it."""
        flags = self.registers.rflags
        if self.level == 3:
            return flags
        flags = flags & ~_HIDDEN | self._iopl << 12
        return flags | _FLAG_IF if self.shared[_DELTA] == 0 else flags

    @rflags.setter
    def rflags(self, value: int) -> None:
        self.iopl = value >> 12 & 3
        real = value & ~_HIDDEN
        if self.level == 3:
            self.registers.rflags = real | value & (_FLAG_IF | _IOPL)
        else:
            self.shared[_DELTA] = 0 if value & _FLAG_IF else _DISABLED
            self.registers.rflags = real | _FLAG_IF

    # -- segments -------------------------------------------------------------------------------

    def segment(self, index: int) -> tuple[int, int, int, int]:
        """Selector, base, limit, attributes as the guest loaded them."""
        virtual = self.virtual_segments.get(index)
        real = self.registers.segment(index)
        if virtual is None or virtual[4] != real[0]:
            return real
        if index > 5:
            return virtual[:4]
        return virtual[0], real[1], virtual[2], virtual[3]

    def set_segment(self, index: int, selector: int, base: int, limit: int, attributes: int) -> None:
        """Load a segment register. The real one gets ring 3 in place of the guest kernel's ring."""
        if index in _DATA_SEGMENTS or index == 1:
            if self.copies_selectors:
                self.shared[_SELECTORS + index] = selector
            real = selector | 3 if index in (1, 2) else selector  # only CS and SS show the real ring
            real_attributes = attributes | _DPL3
            if real != selector or real_attributes != attributes:
                self.virtual_segments[index] = (selector, base, limit, attributes, real)
            else:
                self.virtual_segments.pop(index, None)
            self.registers.set_segment(index, real, base, limit, real_attributes)
            return
        # LDTR and TR: the real ones show the guest's selector to user code and reach nothing.
        self.virtual_segments[index] = (selector, base, limit, attributes, selector)
        self.registers.set_segment(index, selector, 0, 0, attributes & ~_PRESENT)

    def copy_selectors(self) -> None:
        """Have the guest's selectors where fixups read them, of segments that were loaded in another way."""
        for index in range(6):
            self.shared[_SELECTORS + index] = self.segment(index)[0]

    # -- control registers ----------------------------------------------------------------------

    @property
    def cr0(self) -> int:
        """CR0 as the guest wrote it: TS perhaps by a fixup, into the shared page."""
        if (self.shared[self.CR0_WORD] ^ self._cr0) & r.CR0_TS:
            self._cr0 ^= r.CR0_TS
        return self._cr0

    @cr0.setter
    def cr0(self, value: int) -> None:
        self._cr0 = value
        self.shared[self.CR0_WORD] = value
        self.context.write_protect = value & r.CR0_WP != 0
        self.publish()

    @property
    def cr2(self) -> int:
        """The page-fault address the guest sees: perhaps written without an exit."""
        return self.shared[_CONTROL + 2]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self.shared[_CONTROL + 2] = value

    @property
    def cr3(self) -> int:
        """CR3 as the guest wrote it."""
        return self._cr3

    @cr3.setter
    def cr3(self, value: int) -> None:
        self._cr3 = value
        self.context.root = value & w.FRAME_MASK
        self.shared[_CONTROL + 3] = value
        self.forget_translations()

    @property
    def cr4(self) -> int:
        """CR4 as the guest wrote it."""
        return self._cr4

    @cr4.setter
    def cr4(self, value: int) -> None:
        self._cr4 = value
        self.publish()

    @property
    def efer(self) -> int:
        """EFER as the guest wrote it; LMA is always set."""
        return self._efer

    @efer.setter
    def efer(self, value: int) -> None:
        self._efer = value | r.EFER_LMA
        self.context.no_execute = value & r.EFER_NXE != 0
        self.forget_translations()

    @property
    def real_switched(self) -> bool:
        """Whether the real processor's CR0.TS is set, so that floating point faults: then the guest may set its own
        without an exit, and clear it; that the real one follows when the guest uses floating point."""
        return self._real_switched

    @real_switched.setter
    def real_switched(self, value: bool) -> None:
        if self._real_switched != value:
            self._real_switched = value
            self.publish()

    def publish(self) -> None:
        """Copy the control registers into the shared page."""
        shared, cr0 = self.shared, self.cr0
        self._publish_switched(cr0 & ~r.CR0_TS, _MASK)
        shared[_CONTROL] = cr0
        shared[_CONTROL + 3] = self._cr3
        shared[_CONTROL + 4] = self._cr4

    def _publish_switched(self, clear: int, mask: int) -> None:
        """CR0 without TS, in words of so many bits."""
        at, other = self.SWITCHED_WORD, clear | r.CR0_TS if self._real_switched else clear
        for index, value in enumerate((clear, -clear & mask, -other & mask)):
            self.shared[at + index] = value

    def fetch(self, address: int, size: int = 15) -> bytes:
        """Up to `size` bytes of the guest's own code at `address`."""
        return self.fetch_bytes(address, size, self.level == 3)

    # -- state ----------------------------------------------------------------------------------

    @property
    def state(self) -> tuple[object, ...]:
        """Everything the guest can see of its processor, as a plain value."""
        return (
            tuple(self.gpr),
            self.rip,
            self.rflags,
            self.level,
            (self.cr0, self.cr2, self._cr3, self._cr4, self.cr8, self._efer),
            (self.star, self.lstar, self.cstar, self.fmask, self.kernel_gs_base),
            (self.gdt_base, self.gdt_limit, self.idt_base, self.idt_limit),
            tuple(self.segment(index) for index in range(8)),
            tuple(self.debug),
            tuple(sorted(self.msrs.items())),
        )
