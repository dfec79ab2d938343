"""The virtual processor of an ARMv7 guest as a value, and what its shadow tables know besides what all of them do.

Room: `paravirt/modes/arm`, a part of the hypervisor. Registers are in the architecture's own terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from emulator.engine.arm import FULL, OTHER, ArmEngine, ArmRegisters
from emulator.isa.arm import exceptions as x
from emulator.isa.arm.identity import IDENTITY
from emulator.memory import PAGE_SIZE
from paravirt.hypervisor import Hypervisor
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes.arm.debug import DebugEvents
from paravirt.modes.arm.shadow import ArmShadow
from paravirt.modes.arm.single import SingleInstruction, State
from paravirt.modes.arm.vcpu import KERNEL, USER, ArmVirtualCpu
from paravirt.saved import fits, one_of

_NEEDED: Final = frozenset({*IDENTITY, "CPACR", "FPSID", "MVFR0", "MVFR1"})
"""System registers that every processor has."""
_DOUBLES: Final = 32
_MOST: Final = 1024
"""System registers."""
_REAL_STATUS: Final = x.FLAGS | x.IT | x.BIT_E | x.BIT_T


@dataclass(frozen=True, slots=True)
class ArmKnown:
    """What the shadow tables know of the guest's kernel."""

    executing: tuple[tuple[int, int, int], ...]
    """Pages that execute from copies which cannot be read: place of the entry, address, copy."""
    alone: tuple[int, ...]
    limits: tuple[tuple[int, int], ...]
    guarded: bool
    passing: tuple[int, ...]
    """Watched pages that are mapped for the instruction that runs alone."""


@dataclass(frozen=True, slots=True)
class ArmSaved:
    """One virtual processor."""

    general: tuple[int, ...]
    """R0 to R15 of the current mode."""
    status: int
    """CPSR, of which the real processor shows the guest's: flags, IT, E and T."""
    monitor: tuple[int, int]
    floating: tuple[int, ...]
    """FPSCR, and D0 to D31."""
    floating_enabled: int
    """FPEXC."""
    mode: int
    masks: int
    """CPSR.A and F."""
    banks: tuple[tuple[int, int, int, int], ...]
    """Mode, and its SP, LR and SPSR, while it is not the current one."""
    fast: tuple[int, ...]
    translation: tuple[int, int, int, int, int]
    """SCTLR, TTBR0, TTBR1, TTBCR, DACR."""
    vbar: int
    system: tuple[tuple[str, int], ...]
    threads: tuple[tuple[int, int], tuple[int, int]]
    """TPIDRURW and TPIDRURO of both worlds."""
    step: State | None
    """One instruction runs alone."""
    known: ArmKnown


class ArmSaving(Hypervisor):
    """Of the hypervisor of an ARMv7 guest, what saves and restores its processor."""

    SAVED: ClassVar[type[ArmSaved]] = ArmSaved
    SHARED_BY_ALL: ClassVar[int] = PAGE_SIZE

    engine: ArmEngine
    vcpu: ArmVirtualCpu
    shadow: ArmShadow
    _registers: ArmRegisters
    _debug: DebugEvents
    _single: SingleInstruction

    def _make_ready(self) -> None:
        """Make the real processor one for deprivileged guests."""
        raise NotImplementedError

    def _watch(self) -> None:
        """Other pages are watched than before."""
        raise NotImplementedError

    def floating_point_changed(self) -> None:
        """CPACR or FPEXC were written."""
        raise NotImplementedError

    @property
    def processor_state(self) -> ArmSaved:
        """The virtual processor between two instructions."""
        vcpu, real, context = self.vcpu, self._registers, self.vcpu.context
        return ArmSaved(
            general=tuple(vcpu.gpr),
            status=real.cpsr,
            monitor=real.monitor,
            floating=real.floating,
            floating_enabled=vcpu.fpexc,
            mode=vcpu.mode,
            masks=vcpu._masks,
            banks=tuple((mode, *bank) for mode, bank in sorted(vcpu._banks.items())),  # type: ignore[misc]
            fast=tuple(vcpu._fast),
            translation=(context.sctlr, context.ttbr0, context.ttbr1, context.ttbcr, context.dacr),
            vbar=vcpu.vbar,
            system=tuple(sorted(vcpu.system_registers.items())),
            threads=(self.engine.threads(FULL), self.engine.threads(OTHER)),
            step=self._single.state,
            known=self._known(),
        )

    def _known(self) -> ArmKnown:
        shadow = self.shadow
        return ArmKnown(
            executing=tuple((at, *known) for at, known in shadow._executing.items()),
            alone=tuple(sorted(shadow._alone)),
            limits=tuple(shadow._limits.items()),
            guarded=shadow.guarded,
            passing=tuple(sorted(shadow.passing)),
        )

    def set_processor_state(self, saved: ArmSaved) -> None:
        """Give the virtual processor a state; `real_state_lost` must follow once memory is in place."""
        self._check(saved)
        vcpu, real, context = self.vcpu, self._registers, self.vcpu.context
        self._make_ready()
        real.cpsr = saved.status & _REAL_STATUS | x.USR  # first: another mode has other registers
        for number, value in enumerate(saved.general):
            vcpu.gpr[number] = value
        real.monitor, real.floating, vcpu.fpexc = saved.monitor, saved.floating, saved.floating_enabled
        vcpu.mode, vcpu.level, vcpu._masks = saved.mode, USER if saved.mode == x.USR else KERNEL, saved.masks
        vcpu._banks = {mode: list(bank) for mode, *bank in saved.banks}
        vcpu._fast = list(saved.fast)
        context.sctlr, context.ttbr0, context.ttbr1, context.ttbcr, context.dacr = saved.translation
        vcpu.vbar = saved.vbar
        vcpu.system = dict(saved.system)
        vcpu.cpacr = vcpu.system["CPACR"]
        for world, registers in zip((FULL, OTHER), saved.threads, strict=True):
            self.engine.set_threads(world, *registers)
        self._single.end()
        if saved.step is not None:
            self._single.restore(saved.step)
        vcpu.forget_writes()
        self._debug.changed()
        self._watch()
        self.floating_point_changed()
        shadow, known = self.shadow, saved.known
        shadow._shape = shadow._shape_now()
        shadow.set_executing({at: (address, copy) for at, address, copy in known.executing})
        shadow._alone, shadow._limits, shadow._guarded = set(known.alone), dict(known.limits), known.guarded
        shadow.passing = set(known.passing)

    def _check(self, saved: ArmSaved) -> None:
        """Raise `ValueError` for what no processor can be."""
        fits(32, (*saved.general, saved.status, *saved.translation, saved.vbar, *saved.fast), "a register")
        fits(32, (value for _, value in saved.system), "a system register")
        fits(32, (number for bank in saved.banks for number in bank), "a banked register")
        fits(32, (number for pair in saved.threads for number in pair), "a thread register")
        fits(64, (*saved.monitor, *saved.floating), "a register")
        one_of(x.MODES, saved.mode, "the mode")
        one_of(range(x.MASKS + 1), saved.masks, "the masks")
        if {mode for mode, *_ in saved.banks} != self.vcpu._banks.keys() or len(saved.system) > _MOST:
            raise ValueError("its processor has other registers")
        if (len(saved.general), len(saved.fast), len(saved.floating)) != (16, 5, 1 + _DOUBLES):
            raise ValueError("its processor has other registers")
        if not dict(saved.system).keys() >= _NEEDED:
            raise ValueError("its processor lacks system registers")
        if saved.step is not None:
            behind, view, pages = saved.step
            fits(32, (behind, *(page for page, _ in pages)), "an address")
            one_of((KERNEL_VIEW, USER_VIEW), view, "the view")
            if not 1 <= len(pages) <= 2 or any(len(contents) != PAGE_SIZE for _, contents in pages):
                raise ValueError("the instruction that runs alone is not in one page or two")
        words, copies = len(self.shadow.pool.words), self.LAYOUT.code_count << 12
        for at, address, copy in saved.known.executing:
            fits(32, (address,), "an address")
            if not (0 <= at < words and 0 <= copy - self.LAYOUT.code < copies):
                raise ValueError(f"a page of code at {address:#x} executes from {copy:#x}")
        fits(32, (limit for _, limit in saved.known.limits), "an address")
        fits(20, saved.known.passing, "a page")

    def real_state_lost(self) -> None:
        """Memory, tables and the virtual processor are in place: make the real processor's state by them."""
        shadow = self.shadow
        shadow._entered, shadow._split, shadow._domains = [(), ()], [1, 1], [-1, -1]  # whatever the real ones are
        shadow._unflushed = 1
        shadow.use(USER_VIEW if self._view_level == self.USER_LEVEL else KERNEL_VIEW)
