"""Para-virtual guests of AArch64: registers, exceptions, two roots, floating point by the shared page.

Room: `paravirt/para`. Tables are of 4 KiB pages and 48-bit addresses. Kernel and user code share one stack pointer:
frames have the other's. THREAD_REGISTER is TPIDRRO_EL0; TPIDR_EL0 is user code's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from emulator.board.arm_boot import ArmEntry
from emulator.engine.aarch64 import MAY_CACHE, MAY_TYPE, MAY_ZERO, SP
from emulator.engine.exit import Exit
from emulator.isa.aarch64 import exceptions as x
from emulator.isa.aarch64.exceptions import AArch64Exception
from emulator.isa.aarch64.paging import FRAME_MASK, SCTLR_M
from emulator.isa.exceptions import ArchitecturalException
from paravirt.abi import AARCH64_FLOATING_POINT_BITS
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
from paravirt.mmu.direct_aarch64 import AArch64DirectViews, AArch64DirectWalker
from paravirt.modes.aarch64.hypervisor import AArch64Hypervisor
from paravirt.para.calls import Refused
from paravirt.para.guest import ParaGuest

if TYPE_CHECKING:
    from emulator.isa.aarch64.paging import Walker
    from paravirt.modes.aarch64.shadow import AArch64Shadow

_TCR: Final = 16 | 16 << 16 | 2 << 30 | 1 << 32
"""Both halves of 48 bits by 4 KiB pages."""
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_TABLE: Final = 3
_MAY_DIRECT: Final = MAY_TYPE | MAY_ZERO
"""What a guest may do without an exit whose own tables are walked: no maintenance of caches."""
_BY_ADDRESS: Final = 0xFFFF_F000, 0xD50B_7000
"""(mask, value) of SYS #3, C7, whose register is an address."""
_FOR_CODE: Final = 5 << 3 | 1
_MAINTENANCE: Final = frozenset({_FOR_CODE, *(line << 3 | 1 for line in (10, 11, 14))})
"""CRm and op2 of IC IVAU, DC CVAC, DC CVAU, DC CIVAC (DDI 0487, C5.3)."""
_FETCHES: Final = frozenset({x.FETCH_LOWER, x.FETCH_SAME})
_DATA: Final = frozenset({x.DATA_LOWER, x.DATA_SAME})
_SIMPLE: Final = {
    x.UNKNOWN: Trap.UNDEFINED,
    x.SYSTEM_REGISTER: Trap.UNDEFINED,
    x.WAITING: Trap.UNDEFINED,
    x.BREAKPOINT: Trap.BREAKPOINT,
    x.FLOATING_POINT: Trap.FLOATING_POINT,
}
_INDEX: Final = {**{f"x{number}": number for number in range(31)}, "sp": SP}


class AArch64Para(ParaGuest, AArch64Hypervisor):
    """One para-virtual AArch64 guest."""

    CONVENTION: ClassVar[Convention] = CONVENTIONS["aarch64"]
    KERNEL_LEVEL: ClassVar[int] = 1
    entry_bytes = 8
    levels = 4

    def enter(self, state: ArmEntry) -> None:
        """As the boot protocol says; user code may maintain caches, as it may on Linux."""
        super().enter(state)
        self.vcpu.context.sctlr |= MAY_CACHE | MAY_TYPE | MAY_ZERO
        self._allow()

    # -- registers ------------------------------------------------------------------------------

    def _get(self, register: str) -> int:
        return self.vcpu.gpr[_INDEX[register]]

    def _set(self, register: str, value: int) -> None:
        self.vcpu.gpr[_INDEX[register]] = value

    def _registers_out(self) -> tuple[int, ...]:
        return (*self.vcpu.gpr[:32], self._registers.nzcv)

    def _registers_in(self, values: tuple[int, ...], flags: int) -> None:
        gpr = self.vcpu.gpr
        for number, value in enumerate(values):
            gpr[number] = value
        self._registers.nzcv = flags & x.FLAGS
        self._registers.clear_exclusive()

    def _at_level(self, user: bool) -> None:
        self.vcpu.level = 0 if user else 1

    def _enter_handler(self, handler: int, frame: int) -> None:
        self._registers.clear_exclusive()
        self.vcpu.pc = handler

    def _floating_point(self, enabled: bool) -> None:
        wanted = AARCH64_FLOATING_POINT_BITS if enabled else 0
        if self.vcpu.cpacr != wanted:
            self.vcpu.cpacr = wanted
            self.floating_point_changed()

    def _thread_register(self, value: int) -> int:
        self._registers.thread_read_only = value
        return 0

    # -- memory ---------------------------------------------------------------------------------

    def _reach(self, address: int, write: bool) -> int:
        physical = self.vcpu.translate(address, write, False)
        if not self.vcpu.is_memory(physical):
            raise Refused(Status.BAD_ADDRESS)
        return physical - self.machine.memory.base

    def entry_address(self, address: int) -> int | None:
        """By the guest's tables as they are now."""
        context, memory = self.vcpu.context, self.machine.memory
        if not context.sctlr & SCTLR_M or address >> 48 not in (0, 0xFFFF):
            return None
        table = (context.ttbr1 if address >> 63 else context.ttbr0) & FRAME_MASK
        for shift in (39, 30, 21):
            at = table + (address >> shift & 511) * 8
            if not self.is_memory(at, 8):
                return None
            entry = memory.words[at - memory.base >> 3]
            if entry & 3 != _TABLE:
                return None
            table = entry & FRAME_MASK
        at = table + (address >> 12 & 511) * 8
        return at if self.is_memory(at, 8) else None

    def load_root(self, value: int) -> None:
        """TTBR0_EL1."""
        context = self.vcpu.context
        context.ttbr0 = value
        if context.sctlr & SCTLR_M:
            self.address_space_changed()

    def load_kernel_root(self, root: int, part: int) -> int:
        """TTBR1_EL1, and translation is on."""
        if part != 1 or not self.is_root(root):
            raise Refused(Status.INVALID)
        self._translate(root)
        self.translation_changed()
        return 0

    def _translate(self, root: int) -> None:
        context = self.vcpu.context
        context.ttbr1, context.tcr = root, _TCR
        context.sctlr |= SCTLR_M

    # -- where the guest's own tables are walked -------------------------------------------------

    @property
    def first_roots(self) -> tuple[int]:
        """What TTBR0_EL1 has before that begins."""
        return (self.vcpu.context.ttbr0 & FRAME_MASK,)

    def root_taken(self, root: int, part: int) -> None:
        """A root of the guest's is what the processor walks."""
        if part:
            self._translate(root)
        else:
            self.vcpu.context.ttbr0 = root

    def go_direct(self, views: AArch64DirectViews, walker: AArch64DirectWalker) -> None:
        """From now on the processor walks the guest's own tables: code runs from the guest's frames, too, and what the
        engine made of it is forgotten where caches are maintained by address."""
        self._forget_devices()
        self._before = self._walkers
        self._walked = views
        self._look_through(views, walker, AArch64DirectWalker(views.tables, walker.roots))

    def go_shadowed(self, shadow: AArch64Shadow) -> None:
        """Back to shadow tables, of which the processor's state, put in its place next, is."""
        self._walked = None
        self._look_through(shadow, *self._before[:2])

    _walked: AArch64DirectViews | None = None
    _before: tuple[Any, ...] = ()
    """The walks under shadow tables."""

    def _look_through(self, views: Any, walker: Any, code_walker: Any) -> None:
        self.shadow = views
        self.code.attach(views)
        self.vcpu.use_walkers(walker, code_walker)
        self.vcpu.before_write = views.written
        self._may = -1
        self._allow()

    @property
    def _walkers(self) -> tuple[Walker, ...]:
        """Those of direct paging remember nothing."""
        return super()._walkers if self._walked is None else ()

    def _allow(self) -> None:
        if self._walked is None:
            super()._allow()
            return
        state = (_MAY_DIRECT & self.vcpu.context.sctlr if self.vcpu.level == 0 else _MAY_DIRECT) | self.vcpu.level
        if state != self._may:
            self._may = state
            self.engine.allow_user(state & ~1, self.vcpu.level == 1)

    def _undefined(self, kind: int) -> None:
        """Maintenance of caches by address says where code was written."""
        views = self._walked
        if views is not None and kind == x.SYSTEM_REGISTER and self._maintain(views):
            return
        super()._undefined(kind)

    def _maintain(self, views: AArch64DirectViews) -> bool:
        """Do what DC and IC by address do, where the instruction is one. False for others."""
        word = int.from_bytes(self._fetch(self._registers.pc), "little")
        if word & _BY_ADDRESS[0] != _BY_ADDRESS[1] or word >> 5 & 0x7F not in _MAINTENANCE:
            return False
        self.exits.count("cache maintenance", "trap")
        address = self.vcpu.gpr[word & 31] if word & 31 != 31 else 0
        try:
            self.vcpu.translate(address, False, self.vcpu.level == 0)
            if word >> 5 & 0x7F == _FOR_CODE:
                views.code_written(address & -64, 64)
        except ArchitecturalException as fault:
            self._refuse(fault, "page fault to the guest")
            return True
        self.vcpu.advance()
        return True

    def _data_abort(self, address: int, syndrome: int) -> None:
        """Where tables are walked, every abort is the guest's but the window's."""
        if self._walked is None:
            super()._data_abort(address, syndrome)
        elif syndrome & 0x3F == x.ALIGNMENT_FAULT:
            self._refuse(AArch64Exception(x.DATA_SAME, syndrome & 0x1FF_FFFF, address))
        elif not (self.vcpu.level and syndrome & 0x3C == x.TRANSLATION_FAULT and self._fill_window(address)):
            self._fill(address, bool(syndrome & x.WNR), False)

    def forget_page(self, address: int) -> None:
        """TLBI by address, of all address spaces."""
        self.invalidate(address, False)

    def forget_all(self) -> None:
        """TLBI of everything."""
        self.invalidate_all()

    def store(self, physical: int, data: bytes) -> None:
        """Tables above the last level may be remembered."""
        super().store(physical, data)
        self.vcpu.context.generation += 1

    # -- exceptions -----------------------------------------------------------------------------

    def _explain(self, fault: ArchitecturalException) -> tuple[Trap, int, int]:
        kind, error = fault.vector, fault.error or 0
        status = error & 0x3C
        if (kind in _FETCHES or kind in _DATA) and status in (x.TRANSLATION_FAULT, x.PERMISSION_FAULT):
            access = ACCESS_EXECUTE if kind in _FETCHES else ACCESS_WRITE if error & x.WNR else ACCESS_READ
            return Trap.PAGE_FAULT, access | (ACCESS_PRESENT if status == x.PERMISSION_FAULT else 0), fault.address
        trap = _SIMPLE.get(kind)
        return (Trap.OTHER, kind, error) if trap is None else (trap, error, 0)

    def _system_call(self, exit_: Exit) -> None:
        if self.vcpu.level:
            self.vcpu.pc -= 4
            self._refuse(x.undefined())
            return
        self._registers.clear_exclusive()
        self._called_by_user(self.vcpu.gpr[8])

    def _perform_for_user(self, pc: int) -> bool:
        """User code has no privileges."""
        return False

    def _return(self, frame: int) -> int | None:
        """Only to where an instruction can be."""
        tail = self._frame.unpack(self._peek(frame, self._frame.size))[len(self.CONVENTION.frame) :]
        if tail[0] & 3:
            raise Refused(Status.INVALID)
        return super()._return(frame)
