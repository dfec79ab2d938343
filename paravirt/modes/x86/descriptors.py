"""The descriptor tables the real processor uses for a deprivileged guest.

Room: `paravirt/modes/x86`. In the kernel view the real GDT is empty: every load but of a null selector traps
and is done from the guest's own table. In the user view the real GDTR shows the guest's base and
limit, as SGDT in user mode must, and at that address the processor alone (not user code) sees a copy
of the guest's table reduced to what ring 3 may load. Gates and system descriptors never reach it: where user code
can reach the page itself, the processor is shown no table. An engine that keeps the real GDT to itself is given the
reduced table instead, and nothing at the guest's address matters. Where the kernel reads selectors from the shared
page, 64-bit user code finds no data segments: its loads fault, and are done from the guest's table, and so seen.
"""

from collections.abc import Callable

from emulator.isa.x86.processor import CS, Fault
from paravirt import layout
from paravirt.modes.x86.shadow import X86Shadow
from paravirt.modes.x86.vcpu import X86VirtualCpu

_SEGMENT = 1 << 44
_RING3 = 3 << 45
_CONFORMING_CODE = 3 << 42
_EXECUTABLE = 1 << 43
_LONG_CODE = 1 << 21
_MASK = 0xFFFF_FFFF_FFFF_FFFF


class DescriptorCopy:
    """The sanitised copy of one guest's GDT."""

    def __init__(
        self,
        vcpu: X86VirtualCpu,
        memory: memoryview,
        shadow: X86Shadow,
        show: Callable[[bytes], None] | None = None,
    ) -> None:
        """`show` is `X86Engine.show_segments`, of an engine that needs it."""
        self._show = show
        self._shown = self._code = b""
        self._vcpu = vcpu
        self._memory = memory
        self._shadow = shadow
        self._source = b""
        self._place = (-1, -1)
        self.keeps = False
        """The kernel view has the table of user code: nothing in it loads a selector without the hypervisor."""
        self.shown = False
        """The engine has the table of user code, in whichever view."""
        self.loads = True
        """User code loads data segments without the hypervisor."""

    def reload(self, view_level: int) -> None:
        """A descriptor-table register changed: show the new values to user code."""
        vcpu = self._vcpu
        vcpu.registers.set_table(1, vcpu.idt_base, vcpu.idt_limit)
        if view_level == 3:
            self.enter_user()
        else:
            self.enter_kernel()

    def forget(self) -> None:
        """The guest's memory is another: look at its table anew."""
        self._source = self._shown = self._code = b""
        self._place = (-1, -1)

    def enter_kernel(self) -> None:
        """The kernel view: no descriptor can be loaded without the hypervisor."""
        self._vcpu.registers.set_table(0, 0, 0)
        if self._show is not None and not self.keeps:
            self._show(b"")
            self.shown = False
        if self.loads and self._vcpu.copies_selectors:
            self._vcpu.copy_selectors()

    def enter_user(self) -> None:
        """The user view: refresh the copy if the guest changed its table."""
        vcpu = self._vcpu
        base, limit = vcpu.gdt_base, vcpu.gdt_limit
        vcpu.registers.set_table(0, base, limit)
        source = vcpu.fetch_bytes(base, limit + 1, False)
        if len(source) <= limit:
            source = self._read(base, limit + 1)
        if self._show is not None:
            if source != self._source:
                self._source, self._shown = source, self._clean(source)
                self._code = only_code(self._shown)
            # What of 32-bit code the hypervisor would have to do in such code's terms, the processor does.
            self.loads = not vcpu.copies_selectors or not vcpu.registers.segment(CS)[3] & _LONG_CODE
            self._show(self._shown if self.loads else self._code)
            self.shown = True
            return
        if (base, limit) != self._place:
            self._place = (base, limit)
            first, last = base >> 12, base + limit >> 12
            self._shadow.descriptor_pages = {
                page & (_MASK >> 12): layout.DESCRIPTORS_BASE + (page - first << 12) for page in range(first, last + 1)
            }
            self._source = b""
            self._memory[:] = bytes(layout.DESCRIPTORS_SIZE)
        if source != self._source:
            self._source = source
            offset = base & 0xFFF
            clean = self._clean(source)
            self._memory[offset : offset + len(clean)] = clean

    def reveal(self) -> bool:
        """User code faulted: whether it has become 32-bit code, whose loads do not fault from now on."""
        if self.loads or not self.shown or self._vcpu.registers.segment(CS)[3] & _LONG_CODE:
            return False
        self.enter_user()
        return True

    def withhold(self) -> None:
        """Where user code can reach the table's page the processor would read that page as it is, gates included: show
        it no table then. Loads fault and are done from the guest's own table; SGDT, LAR and LSL see an empty one."""
        if any(self._shadow.user_reaches(page << 12) for page in self._shadow.descriptor_pages):
            self._vcpu.registers.set_table(0, 0, 0)

    def _clean(self, source: bytes) -> bytes:
        """What user code may load of the guest's table."""
        return sanitise(source)

    def _read(self, base: int, size: int) -> bytes:
        """The guest's table; what it does not map reads as zero."""
        vcpu = self._vcpu
        parts = []
        while size > 0:
            step = min(size, 4096 - (base & 0xFFF))
            try:
                page = vcpu.read_page(base & ~0xFFF & _MASK)
                parts.append(page[base & 0xFFF : (base & 0xFFF) + step])
            except Fault:
                parts.append(bytes(step))
            size -= step
            base = base + step & _MASK
        return b"".join(parts)


def only_code(table: bytes) -> bytes:
    """The code segments of a sanitised table."""
    return b"".join(
        table[at : at + 8] if int.from_bytes(table[at : at + 8], "little") & _EXECUTABLE else bytes(8)
        for at in range(0, len(table), 8)
    )


def sanitise(table: bytes) -> bytes:
    """Keep the code and data segments of ring 3; everything else becomes a null descriptor."""
    out = bytearray(len(table))
    for at in range(8, len(table) - 7, 8):
        descriptor = int.from_bytes(table[at : at + 8], "little")
        if (
            descriptor & _SEGMENT
            and descriptor & _RING3 == _RING3
            and descriptor & _CONFORMING_CODE != _CONFORMING_CODE
        ):
            out[at : at + 8] = table[at : at + 8]
    return bytes(out)
