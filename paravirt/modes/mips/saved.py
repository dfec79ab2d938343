"""The virtual processor of a MIPS32 guest as a value, in the architecture's own terms.

Room: `paravirt/modes/mips`, a part of the hypervisor. What the views have mapped is theirs (`views`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from emulator.engine.mips import SUPERVISOR, MipsRegisters
from emulator.isa.mips import identity as i
from emulator.isa.mips import registers as r
from emulator.isa.mips.tlb import Tlb, TlbState
from emulator.memory import PAGE_SIZE
from paravirt.hypervisor import Hypervisor
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes.mips.vcpu import KERNEL_LEVEL, USER_LEVEL, MipsVirtualCpu
from paravirt.modes.mips.views import MipsViews
from paravirt.saved import fits, one_of

_FIELDS = (
    "_fixed_status", "_cause", "error_epc", "_bad_v_addr", "_context", "_entry_hi", "int_ctl", "_index", "_page_mask",
    "wired", "hwrena", "ebase", "config", "_replaced",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MipsSaved:
    """One virtual processor."""

    general: tuple[int, ...]
    """The general registers, PC, HI, LO and UserLocal."""
    branch: tuple[int, int, int]
    """The branch under way, as the engine has it."""
    monitor: tuple[int, int]
    floating: tuple[int, ...]
    fcsr: int
    level: int
    coprocessor: tuple[int, ...]
    """Of coprocessor 0 what is not in the shared pages: Status, Cause, ErrorEPC, BadVAddr, Context, EntryHi, IntCtl,
    Index, PageMask, Wired, HWREna, EBase, Config; and how many entries TLBWR has replaced."""
    plain: tuple[tuple[str, int], ...]
    """Registers that are only kept."""
    moved: tuple[tuple[int, int, int], ...]
    tlb: TlbState
    page: bytes
    """The page of registers that the guest's kernel reads and writes."""


class MipsSaving(Hypervisor):
    """Of the hypervisor of a MIPS32 guest, what saves and restores its processor."""

    SAVED: ClassVar[type[MipsSaved]] = MipsSaved
    SHARED_BY_ALL: ClassVar[int] = PAGE_SIZE

    engine: Any
    vcpu: MipsVirtualCpu
    shadow: MipsViews
    _registers: MipsRegisters
    _pages: dict[int, memoryview]

    @property
    def processor_state(self) -> MipsSaved:
        """The virtual processor between two instructions."""
        vcpu, real = self.vcpu, self._registers
        return MipsSaved(
            general=(*real.gpr, real.pc, real.hi, real.lo, real.user_local),
            branch=real.branch,
            monitor=real.monitor,
            floating=tuple(real.fpr),
            fcsr=real.fcsr,
            level=vcpu.level,
            coprocessor=tuple(getattr(vcpu, name) for name in _FIELDS),
            plain=tuple(vcpu._plain.items()),
            moved=vcpu.moved,
            tlb=vcpu.tlb.saved,
            page=bytes(self._pages[self.LAYOUT.tables]),
        )

    def set_processor_state(self, saved: MipsSaved) -> None:
        """Give the virtual processor a state; `real_state_lost` must follow once memory is in place."""
        vcpu, real = self.vcpu, self._registers
        _check(saved, vcpu.tlb)
        *general, real.pc, real.hi, real.lo, real.user_local = saved.general
        for number, value in enumerate(general):
            real.gpr[number] = value
        for number, value in enumerate(saved.floating):
            real.fpr[number] = value
        real.branch, real.monitor = saved.branch, saved.monitor
        real.load_fcsr(saved.fcsr)
        vcpu.level = saved.level
        for name, value in zip(_FIELDS, saved.coprocessor, strict=True):
            setattr(vcpu, name, value)
        vcpu._plain.update(saved.plain)
        vcpu.moved = saved.moved
        vcpu.tlb.restore(saved.tlb)
        self._pages[self.LAYOUT.tables].cast("B")[:] = saved.page
        status = vcpu._fixed_status
        real.set_coprocessor(bool(status & r.STATUS_CU1), bool(status & r.STATUS_FR))
        real.set_user_local_readable(bool(vcpu.hwrena & i.USER_LOCAL_READABLE))

    def real_state_lost(self) -> None:
        """Memory, views and the virtual processor are in place: make the real processor's state by them."""
        self.engine.flush_tlb()
        self.shadow.use(USER_VIEW if self._view_level == self.USER_LEVEL else KERNEL_VIEW)
        if not self.engine.mapped(SUPERVISOR, self.WINDOW.shared_page):
            self.shadow.install_window()


def _check(saved: MipsSaved, tlb: Tlb) -> None:
    """Raise `ValueError` for what no processor can be."""
    fits(32, (*saved.general, saved.fcsr, *saved.monitor, *saved.branch), "a register")
    fits(32, (value for _, value in saved.plain), "a register")
    *registers, replaced = saved.coprocessor
    fits(32, registers, "a register of coprocessor 0")
    fits(64, (*saved.floating, replaced), "a number")
    fits(33, (abs(number) for row in saved.moved for number in row), "an address")
    one_of((KERNEL_LEVEL, USER_LEVEL), saved.level, "the privilege level")
    counts = len(saved.general), len(saved.floating), len(saved.coprocessor), len(saved.page)
    if counts != (36, 64, len(_FIELDS), PAGE_SIZE) or not dict(saved.plain).keys() <= MipsVirtualCpu.PLAIN:
        raise ValueError("its processor has other registers")
    tlb.check(saved.tlb)
