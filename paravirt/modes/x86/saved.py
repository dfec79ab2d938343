"""The virtual processor of an x86 guest as a value, in the architecture's own terms: any engine can go on with it.

Room: `paravirt/modes/x86`, a part of the hypervisor. What the real processor must have besides is made of the value by
the same steps as when the guest is entered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from emulator.isa.x86 import registers as r
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes.x86.requests import X86Requests
from paravirt.operations.x86.model_specific import PLAIN_MSRS
from paravirt.saved import fits, one_of

Segment = tuple[int, int, int, int]
_LEVELS = {64: (0, 3), 32: (0, 1, 2, 3)}
"""The guest's privilege levels, by the width of its kernel: 64-bit kernels are offered no other rings."""
_COUNTS = (16, 8, 8)
"""General registers, segment registers, debug registers."""
_DPL3, _PRESENT, _LONG = 3 << 13, 1 << 15, 1 << 21
_HOLE = 0x8000_0000_0000


@dataclass(frozen=True, slots=True)
class X86Saved:
    """One virtual processor."""

    general: tuple[int, ...]
    """RAX RCX RDX RBX RSP RBP RSI RDI R8..R15."""
    rip: int
    rflags: int
    """The real ones: the virtual interrupt flag of the guest's kernel is in the shared page."""
    segments: tuple[Segment, ...]
    """ES CS SS DS FS GS LDTR TR as the real processor has them."""
    virtual_segments: tuple[tuple[int, tuple[int, int, int, int, int]], ...]
    level: int
    io_privilege: int
    control: tuple[int, int, int, int, int, int]
    """CR0 CR2 CR3 CR4 CR8 EFER."""
    calls: tuple[int, int, int, int, int]
    """STAR LSTAR CSTAR FMASK KERNEL_GS_BASE."""
    tables: tuple[int, int, int, int]
    """GDTR base and limit, IDTR base and limit."""
    debug: tuple[int, ...]
    msrs: tuple[tuple[int, int], ...]
    floating: bytes
    """As FXSAVE stores it."""
    vectors: bytes
    interrupt_shadow: bool
    alone: bool
    """One instruction runs by a real trap flag before a waiting interrupt may be delivered."""
    first_step: int
    """Where single steps of the guest's begin, behind a fixup, or -1."""
    switched: bool
    """TS of the real CR0: the guest may have cleared its own without an exit."""


class X86Saving(X86Requests):
    """Of the hypervisor of an x86 guest, what saves and restores its processor."""

    SAVED: ClassVar[type[X86Saved]] = X86Saved
    SHARED_BY_ALL: ClassVar[int] = 0xB0
    """Bytes of the shared page that every engine's guests use; what lies behind them an engine's hypervisor fills."""

    @property
    def processor_state(self) -> X86Saved:
        """The virtual processor between two instructions."""
        vcpu, real = self.vcpu, self._registers
        return X86Saved(
            general=tuple(vcpu.gpr),
            rip=real.rip,
            rflags=real.rflags,
            segments=tuple(real.segment(index) for index in range(8)),
            virtual_segments=tuple(sorted(vcpu.virtual_segments.items())),
            level=vcpu.level,
            io_privilege=vcpu.iopl,
            control=(vcpu.cr0, vcpu.cr2, vcpu.cr3, vcpu.cr4, vcpu.cr8, vcpu.efer),
            calls=(vcpu.star, vcpu.lstar, vcpu.cstar, vcpu.fmask, vcpu.kernel_gs_base),
            tables=(vcpu.gdt_base, vcpu.gdt_limit, vcpu.idt_base, vcpu.idt_limit),
            debug=tuple(vcpu.debug),
            msrs=tuple(sorted(vcpu.msrs.items())),
            floating=self.engine.floating(),
            vectors=self.engine.vectors(),
            interrupt_shadow=real.interrupt_shadow,
            alone=self._in_shadow,
            first_step=self._first_step,
            switched=vcpu.real_switched,
        )

    def _format_restored(self) -> None:
        """The control registers are those of the saved processor: whatever depends on them alone follows."""

    def _open_ports(self) -> None:
        """Have the engine know which accesses to ports need no exit of their own."""
        raise NotImplementedError

    def set_processor_state(self, saved: X86Saved) -> None:
        """Give the virtual processor a state; `real_state_lost` must follow once memory is in place."""
        vcpu, real = self.vcpu, self._registers
        _check(saved, vcpu.MODE_BITS)
        self._in_shadow, self._first_step = saved.alone, saved.first_step
        vcpu.forget_translations()
        for index, value in enumerate(saved.general):
            vcpu.gpr[index] = value
        vcpu.level = saved.level
        vcpu.iopl = saved.io_privilege
        vcpu.cr0, vcpu.cr2, vcpu.cr3, vcpu.cr4, vcpu.cr8, vcpu.efer = saved.control
        vcpu.star, vcpu.lstar, vcpu.cstar, vcpu.fmask, vcpu.kernel_gs_base = saved.calls
        vcpu.gdt_base, vcpu.gdt_limit, vcpu.idt_base, vcpu.idt_limit = saved.tables
        vcpu.debug[:] = saved.debug
        vcpu.msrs = dict(saved.msrs)
        vcpu.virtual_segments = dict(saved.virtual_segments)
        self._format_restored()
        self.real_controls_changed(switched=saved.switched)
        for index, segment in enumerate(saved.segments):
            real.set_segment(index, *segment)
        real.rflags, real.rip = saved.rflags, saved.rip
        real.privilege = 3
        real.interrupt_shadow = saved.interrupt_shadow
        self.engine.set_floating(saved.floating)
        self.engine.set_vectors(saved.vectors)
        if vcpu.copies_selectors:
            vcpu.copy_selectors()

    def _forget_crossings(self) -> None:
        """All is another: what was done without an exit is looked at anew."""

    def real_state_lost(self) -> None:
        """Memory, tables and the virtual processor are in place: make the real processor's state by them."""
        self._forget_crossings()
        self._open_ports()
        self.descriptors.forget()
        self.descriptors.reload(self._view_level)
        self._switch(USER_VIEW if self._view_level == self.USER_LEVEL else KERNEL_VIEW)


def _check(saved: X86Saved, bits: int) -> None:
    """Raise `ValueError` for what no processor can be that runs a deprivileged guest of so many bits."""
    if (len(saved.general), len(saved.segments), len(saved.debug)) != _COUNTS:
        raise ValueError("its processor has other registers")
    fits(bits, (*saved.general, saved.rip, saved.first_step + 1), "a register")
    fits(bits, (saved.tables[0], saved.tables[2]), "the base of a descriptor table")
    fits(16, (saved.tables[1], saved.tables[3]), "the limit of a descriptor table")
    fits(64, (*saved.control, *saved.calls, *saved.debug, *(value for _, value in saved.msrs)), "a system register")
    fits(4, (saved.control[4],), "CR8")
    one_of(_LEVELS[bits], saved.level, "the privilege level")
    one_of(range(4), saved.io_privilege, "the I/O privilege level")
    for number, _ in saved.msrs:
        one_of(PLAIN_MSRS, number, "the number of a model-specific register")
    _check_flags(saved, bits)
    for index, segment in enumerate(saved.segments):
        _check_segment(index, segment, bits)
    for index, (selector, base, limit, attributes, real) in saved.virtual_segments:
        one_of(range(8), index, "the number of a segment register")
        _check_sizes(selector, base, limit, attributes)
        fits(16, (real,), "a selector")


def _check_flags(saved: X86Saved, bits: int) -> None:
    """Those of the real processor: they must not open to a kernel what only its hypervisor may do."""
    allowed = r.FLAGS_VALID | r.FLAG_FIXED
    if saved.level != 3:
        allowed &= ~(r.FLAG_IOPL | r.FLAG_VM)
    if bits == 64:
        allowed &= ~r.FLAG_VM
    if saved.rflags & ~allowed:
        raise ValueError(f"the flags cannot be {saved.rflags:#x} at level {saved.level}")


def _check_segment(index: int, segment: Segment, bits: int) -> None:
    """One that the real processor has: no code and no stack of an inner level, no table and no task of its own."""
    selector, base, limit, attributes = segment
    _check_sizes(selector, base, limit, attributes)
    if bits == 64 and base + _HOLE >> 48 & 0xFFFF:
        raise ValueError(f"the base of a segment cannot be {base:#x}: it is no address")
    if index in (r.CS, r.SS) and attributes & _DPL3 != _DPL3:
        raise ValueError(f"a segment of the real processor cannot have the attributes {attributes:#x}")
    if index in (r.LDTR, r.TR) and (base or limit or attributes & _PRESENT):
        raise ValueError("the real processor has a descriptor table or a task of the guest's")
    if bits == 32 and (base >> 32 or attributes & _LONG):
        raise ValueError("a segment of a 32-bit guest is one of 64-bit code")


def _check_sizes(selector: int, base: int, limit: int, attributes: int) -> None:
    fits(16, (selector,), "a selector")
    fits(64, (base,), "the base of a segment")
    fits(32, (limit,), "the limit of a segment")
    fits(24, (attributes,), "the attributes of a segment")
