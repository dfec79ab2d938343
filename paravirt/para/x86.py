"""Para-virtual guests of x86-64 and i386: registers, exceptions, page tables and floating point.

Room: `paravirt/para`. Segments stay as they were at the start, flat; there are no descriptor tables, so no load of a
selector but null succeeds. System calls are SYSCALL on x86-64, INT 80H and SYSENTER on i386; i386 guests use PAE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from emulator.board.linux_boot import EntryState
from emulator.engine.exit import Exit
from emulator.isa.exceptions import ArchitecturalException
from emulator.isa.x86 import registers as r
from emulator.isa.x86 import walk as w
from emulator.isa.x86.descriptors import FLAT_DATA, FLAT_LIMIT
from emulator.isa.x86.processor import INVALID_OPCODE, Fault
from emulator.isa.x86.walk import AnyWalker
from paravirt.abi.calls import Status
from paravirt.abi.guests import (
    ACCESS_EXECUTE,
    ACCESS_PRESENT,
    ACCESS_READ,
    ACCESS_WRITE,
    CONVENTIONS,
    Convention,
    Trap,
)
from paravirt.mmu.direct_views import DirectViews
from paravirt.mmu.views import USER_VIEW
from paravirt.modes.i386.hypervisor import I386Hypervisor
from paravirt.modes.x86.hypervisor import X86Hypervisor
from paravirt.para.calls import Refused
from paravirt.para.guest import ParaGuest

if TYPE_CHECKING:
    from paravirt.modes.x86.shadow import X86Shadow

_DE, _DB, _BP, _UD, _NM, _GP, _PF = 0, 1, 3, 6, 7, 13, 14
_SYSTEM_CALL: Final = 0x80
_SIMPLE: Final = {_BP: Trap.BREAKPOINT, _UD: Trap.UNDEFINED, _NM: Trap.FLOATING_POINT, _GP: Trap.PRIVILEGED}
_FLAGS: Final = r.FLAGS_STATUS | r.FLAG_DF | r.FLAG_AC | r.FLAG_ID
"""What a frame may change besides the state: nothing that has to do with privilege."""
_NAMES: Final = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
_INDEX: Final = {
    **{"r" + name: number for number, name in enumerate(_NAMES)},
    **{"e" + name: number for number, name in enumerate(_NAMES)},
    **{f"r{number}": number for number in range(8, 16)},
}
_GS: Final = 5
_THREAD_SELECTOR: Final = 0x3B
_HOLE: Final = 0x8000_0000_0000
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_LARGE: Final = 0x80


class _X86Para(ParaGuest, X86Hypervisor):
    """What both have in common."""

    KERNEL_LEVEL: ClassVar[int] = 0
    SHIFTS: ClassVar[tuple[int, ...]]
    """Of the guest's tables, from the root on to the level above the last."""

    def enter(self, state: EntryState) -> None:
        """As the boot protocol says, with what a kernel would set up for itself."""
        super().enter(state)
        vcpu = self.vcpu
        vcpu.gdt_base = vcpu.gdt_limit = vcpu.idt_base = vcpu.idt_limit = 0
        vcpu.efer |= r.EFER_NXE | r.EFER_SCE
        vcpu.cr0 |= r.CR0_WP | r.CR0_MP | r.CR0_NE
        vcpu.cr4 |= r.CR4_OSFXSR | r.CR4_OSXMMEXCPT
        self.real_controls_changed()
        self.descriptors_changed()
        self.shadow.use(self.shadow.view)  # a root is for one CR0.WP

    def _switch(self, view: int) -> None:
        """No ports for user code, and no descriptors at all."""
        if self._guarded:
            self.engine.guard_code(view != USER_VIEW)
        self.engine.open_ports(view != USER_VIEW)
        if view == USER_VIEW and self._vectors is not None:
            self._vectors.enter((self.vcpu.cr3, self._registers.segment_base(r.FS)))
        self.shadow.use(view)

    # -- registers ------------------------------------------------------------------------------

    def _get(self, register: str) -> int:
        return self.vcpu.gpr[_INDEX[register]] & self._mask_of_word

    def _set(self, register: str, value: int) -> None:
        self.vcpu.gpr[_INDEX[register]] = value

    def _registers_out(self) -> tuple[int, ...]:
        vcpu = self.vcpu
        return (*vcpu.gpr[: len(self.CONVENTION.frame)], self._registers.rflags & _FLAGS)

    def _registers_in(self, values: tuple[int, ...], flags: int) -> None:
        gpr = self.vcpu.gpr
        for number, value in enumerate(values):
            gpr[number] = value
        self.vcpu.rflags = flags & _FLAGS | r.FLAG_FIXED

    def _at_level(self, user: bool) -> None:
        self.vcpu.level = 3 if user else 0

    def _enter_handler(self, handler: int, frame: int) -> None:
        vcpu = self.vcpu
        vcpu.rflags = r.FLAG_FIXED
        vcpu.rip = handler

    def _open(self) -> bool:
        """In the shared page for the kernel, and in the real flags for user code."""
        return self.vcpu.interrupts_enabled

    def _set_open(self, enabled: bool) -> None:
        self.vcpu.interrupts_enabled = enabled

    def _floating_point(self, enabled: bool) -> None:
        vcpu = self.vcpu
        if bool(vcpu.cr0 & r.CR0_TS) == enabled:
            vcpu.cr0 ^= r.CR0_TS
            self.real_controls_changed()

    # -- memory ---------------------------------------------------------------------------------

    def _reach(self, address: int, write: bool) -> int:
        at = self.vcpu.reach(address, write)
        if at >= self.machine.memory.size:
            raise Refused(Status.BAD_ADDRESS)
        return at

    def entry_address(self, address: int) -> int | None:
        """By the guest's tables as they are now."""
        memory, table = self.machine.memory, self._root_table()
        for number, shift in enumerate(self.SHIFTS):
            index = address >> shift & 511
            if not self.is_memory(table + index * 8, 8):
                return None
            entry = memory.words[table + index * 8 >> 3]
            if not entry & w.PRESENT or (number and entry & _LARGE):
                return None
            table = entry & _ADDRESS
        at = table + (address >> 12 & 511) * 8
        return at if self.is_memory(at, 8) else None

    def _root_table(self) -> int:
        return self.vcpu.cr3 & _ADDRESS

    def load_root(self, value: int) -> None:
        """CR3."""
        self.vcpu.cr3 = value
        self.root_loaded()

    def forget_page(self, address: int) -> None:
        """INVLPG."""
        self.invalidate(address)

    def forget_all(self) -> None:
        """CR3 loaded anew: no translation is global."""
        self.load_root(self.vcpu.cr3)

    first_roots = ()
    """There is one root."""

    def root_taken(self, root: int, _part: int) -> None:
        """CR3 has it."""
        self.vcpu.cr3 = root

    def go_direct(self, views: DirectViews, walker: AnyWalker) -> None:
        """From now on the processor walks the guest's own tables: code runs from the guest's frames, too."""
        self._before, self._walked = self.vcpu._walker, True
        self._look_through(views, walker)
        if self._guarded:
            self._guarded = False
            self.engine.guard_code(False)

    def go_shadowed(self, shadow: X86Shadow) -> None:
        """Back to shadow tables, of which the processor's state, put in its place next, is."""
        assert self._before is not None
        self._walked, self._guarded = False, self.engine.capabilities.execute_only
        self._look_through(shadow, self._before)

    _walked = False
    """Whether the guest's own tables are."""
    _before: AnyWalker | None = None
    """The walk under shadow tables."""

    def _look_through(self, views: Any, walker: AnyWalker) -> None:
        self.shadow = views
        self.code.attach(views)
        self.vcpu.use_walker(walker)
        self.vcpu.before_write = views.written

    def _identify(self, exit_: Exit) -> None:
        """CPUID serialises: where code runs from the guest's own frames, what the engine made of it is forgotten."""
        written = getattr(self.shadow, "code_written", None)
        if written is not None:
            written()
        super()._identify(exit_)

    # -- exceptions -----------------------------------------------------------------------------

    def _explain(self, fault: ArchitecturalException) -> tuple[Trap, int, int]:
        error = fault.error or 0
        if fault.vector == _PF:
            access = ACCESS_EXECUTE if error & w.ERROR_FETCH else ACCESS_WRITE if error & w.ERROR_WRITE else ACCESS_READ
            return Trap.PAGE_FAULT, access | (ACCESS_PRESENT if error & w.ERROR_PRESENT else 0), fault.address
        trap = _SIMPLE.get(fault.vector)
        return (Trap.OTHER, fault.vector, error) if trap is None else (trap, error, 0)

    def _single_stepped(self) -> None:
        """Nothing steps that a frame could ask for."""
        self._registers.rflags &= ~r.FLAG_TF

    def _software_interrupt(self, exit_: Exit) -> None:
        if exit_.vector == _BP:
            self._refuse(Fault(_BP))
        elif exit_.vector == _SYSTEM_CALL and self.vcpu.level == 3 and not self.FLAT:
            self.vcpu.rip += exit_.length
            self._called_by_user(self.vcpu.gpr[0])
        else:
            self._refuse(Fault(_GP, exit_.vector << 3 | 2))

    def _system_call(self, exit_: Exit) -> None:
        if self.vcpu.level != 3:
            self._refuse(Fault(INVALID_OPCODE))
            return
        self.vcpu.rip += exit_.length
        self._called_by_user(self.vcpu.gpr[0])

    def _perform_for_user(self, pc: int) -> bool:
        """User code has no privileges."""
        return False


class X86Para(_X86Para):
    """One para-virtual x86-64 guest."""

    CONVENTION: ClassVar[Convention] = CONVENTIONS["x86-64"]
    SHIFTS = (39, 30, 21)
    entry_bytes = 8
    levels = 4

    def _reach(self, address: int, write: bool) -> int:
        if (address + _HOLE) >> 48 & 0xFFFF:
            raise Refused(Status.BAD_ADDRESS)
        return super()._reach(address, write)

    def entry_address(self, address: int) -> int | None:
        """Only canonical addresses have one."""
        return None if (address + _HOLE) >> 48 & 0xFFFF else super().entry_address(address)

    def _thread_register(self, value: int) -> int:
        """FS base."""
        if (value + _HOLE) >> 48 & 0xFFFF:
            raise Refused(Status.INVALID)
        self._registers.set_segment_base(r.FS, value)
        return 0

    def _return(self, frame: int) -> int | None:
        """Only to a canonical address."""
        tail = self._frame.unpack(self._peek(frame, self._frame.size))[len(self.CONVENTION.frame) :]
        if (tail[0] + _HOLE) >> 48 & 0xFFFF:
            raise Refused(Status.INVALID)
        return super()._return(frame)


class I386Para(_X86Para, I386Hypervisor):
    """One para-virtual i386 guest: PAE from its first NEW_BASE on, before that no paging."""

    CONVENTION: ClassVar[Convention] = CONVENTIONS["i386"]
    SHIFTS = (30, 21)
    entry_bytes = 8
    levels = 3

    def _root_table(self) -> int:
        return self.vcpu.cr3 & 0xFFFF_FFE0

    def is_root(self, value: int) -> bool:
        """Four entries, 32 bytes aligned."""
        return not value & 0x1F and self.is_memory(value, 32)

    def load_root(self, value: int) -> None:
        """CR3, and paging begins."""
        vcpu = self.vcpu
        vcpu.cr3 = value
        if not vcpu.cr0 & r.CR0_PG:
            vcpu.cr4 |= r.CR4_PAE
            vcpu.cr0 |= r.CR0_PG
            self.paging_changed()
        self.root_loaded()

    def root_taken(self, root: int, part: int) -> None:
        """CR3 has it, and paging is on."""
        super().root_taken(root, part)
        vcpu = self.vcpu
        vcpu.cr4 |= r.CR4_PAE
        vcpu.cr0 |= r.CR0_PG

    def _format_restored(self) -> None:
        if not self._walked:
            super()._format_restored()

    def _thread_register(self, value: int) -> int:
        """GS, as a segment with this base."""
        self.vcpu.set_segment(_GS, _THREAD_SELECTOR, value, FLAT_LIMIT, FLAT_DATA)
        return 0
