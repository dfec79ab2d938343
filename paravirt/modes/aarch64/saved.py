"""The virtual processor of an AArch64 guest as a value, and what of its history decides which exits come.

Room: `paravirt/modes/aarch64`, a part of the hypervisor. Registers are in the architecture's own terms. Which pages are
devices, which accesses are quiet and which walks are remembered could be learnt anew, in other exits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from emulator.engine.aarch64 import AArch64Registers, Passage, PassingAccess, QuietAccess
from emulator.isa.aarch64.access import decode
from emulator.isa.aarch64.paging import Walker
from emulator.isa.aarch64.registers import BY_NAME
from emulator.memory import PAGE_SIZE
from paravirt.abi import AARCH64_SCRATCH
from paravirt.mmu.views import KERNEL_VIEW, USER_VIEW
from paravirt.modes.aarch64.emulated import EmulatedAccesses
from paravirt.saved import fits, one_of

_SCRATCH: Final = BY_NAME[AARCH64_SCRATCH].encoding
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
Walk = tuple[int, int, int, tuple[int, ...], tuple[int, ...]]
"""As `Walker.remembered` has it."""


@dataclass(frozen=True, slots=True)
class Habits:
    """What the hypervisor has learnt of the guest's accesses."""

    devices: tuple[tuple[int, int], ...]
    """Pages of devices in the kernel's view."""
    accesses: tuple[tuple[int, int], ...]
    """Loads and stores of the kernel's that were taken apart: address and word."""
    quiet: tuple[QuietAccess, ...]
    passages: tuple[tuple[int, int, int, int], ...]
    """Pages of passage: page, generation, index of the entry in memory, and the entry."""
    passed: tuple[int, int]
    passage: tuple[Passage, ...]
    """The one that the engine knows, or none."""
    passers: tuple[PassingAccess, ...]
    clean_page: int
    invalidations: tuple[tuple[int, int], ...]
    below: tuple[int, ...]
    """Tables of the lower half in the kernel's view."""
    generation: int
    walks: tuple[tuple[Walk, ...], ...]
    """What each walker remembers of upper tables, as a processor does."""


@dataclass(frozen=True, slots=True)
class AArch64Saved:
    """One virtual processor."""

    general: tuple[int, ...]
    """X0 to X30, and the stack pointer in use."""
    pc: int
    flags: int
    masks: int
    """PSTATE.DAIF."""
    stepping: tuple[bool, bool, bool]
    """The real processor steps; PSTATE.SS; an ERET has just asked for it."""
    monitor: tuple[int, int, int]
    """The local exclusive monitor: address, and the pair of doublewords that was there."""
    vectors: tuple[int, ...]
    floating: tuple[int, int]
    """FPCR, FPSR."""
    threads: tuple[int, int, int, int, int]
    """The two real ones; TPIDR_EL0 and TPIDRRO_EL0 while the kernel runs; TPIDR_EL1 while user code does."""
    exception: tuple[int, int, int, int]
    """ELR_EL1, SPSR_EL1, ESR_EL1, FAR_EL1."""
    scratch: int
    """Of a fixup."""
    level: int
    own_stack: bool
    other_sp: int
    translation: tuple[int, int, int, int]
    """SCTLR_EL1, TCR_EL1, TTBR0_EL1, TTBR1_EL1."""
    system: tuple[tuple[int, int], ...]
    watched_page: int
    """Mapped for one instruction, or -1."""
    habits: Habits


class AArch64Saving(EmulatedAccesses):
    """Of the hypervisor of an AArch64 guest, what saves and restores its processor."""

    SAVED: ClassVar[type[AArch64Saved]] = AArch64Saved
    SHARED_BY_ALL: ClassVar[int] = PAGE_SIZE

    board: Any
    _devices: dict[int, int]
    _may: int

    @property
    def processor_state(self) -> AArch64Saved:
        """The virtual processor between two instructions."""
        vcpu, real, context = self.vcpu, self._registers, self.vcpu.context
        return AArch64Saved(
            general=tuple(vcpu.gpr),
            pc=real.pc,
            flags=real.nzcv,
            masks=real.daif,
            stepping=(real.stepping, vcpu.stepping, vcpu.step_begins),
            monitor=real.monitor,
            vectors=tuple(map(real.vector, range(32))),
            floating=(real.fpcr, real.fpsr),
            threads=(
                real.thread,
                real.thread_read_only,
                vcpu.user_thread,
                vcpu.user_thread_read_only,
                vcpu.kernel_thread,
            ),
            exception=(vcpu.elr, vcpu.spsr, vcpu.esr, vcpu.far),
            scratch=real.system(_SCRATCH),
            level=vcpu.level,
            own_stack=vcpu.own_stack,
            other_sp=vcpu.other_sp,
            translation=(context.sctlr, context.tcr, context.ttbr0, context.ttbr1),
            system=tuple(sorted(vcpu.system_registers.items())),
            watched_page=self._debug.passing,
            habits=self._habits(),
        )

    @property
    def _walkers(self) -> tuple[Walker, ...]:
        return self.vcpu.walker, self.vcpu._code_walker, self.shadow.guest.walker  # type: ignore[attr-defined]

    def _habits(self) -> Habits:
        shadow = self.shadow
        words = {id(access): word for word, access in self._accesses.items()}
        return Habits(
            devices=tuple(self._devices.items()),
            accesses=tuple((pc, words[id(access)]) for pc, access in self._access_at.items()),
            quiet=tuple(self._quiet.values()),
            passages=tuple((page, *known) for page, known in self._passages.items()),
            passed=self.engine.passing,
            passage=() if self._open_passage is None else (self._open_passage,),
            passers=tuple(self._passers.values()),
            clean_page=shadow.clean_page,
            invalidations=tuple(shadow.invalidations.items()),
            below=tuple(sorted(shadow._below)),
            generation=self.vcpu.context.generation,
            walks=tuple(walker.remembered for walker in self._walkers),
        )

    def set_processor_state(self, saved: AArch64Saved) -> None:
        """Give the virtual processor a state; `real_state_lost` must follow once memory is in place."""
        vcpu, real, context = self.vcpu, self._registers, self.vcpu.context
        _check(saved)
        _set_general(real, saved)
        vcpu.level, vcpu.own_stack, vcpu.other_sp = saved.level, saved.own_stack, saved.other_sp
        _, _, vcpu.user_thread, vcpu.user_thread_read_only, vcpu.kernel_thread = saved.threads
        vcpu.elr, vcpu.spsr, vcpu.esr, vcpu.far = saved.exception
        real.set_system(_SCRATCH, saved.scratch)
        context.sctlr, context.tcr, context.ttbr0, context.ttbr1 = saved.translation
        vcpu.system_registers = dict(saved.system)
        _, vcpu.stepping, vcpu.step_begins = saved.stepping
        vcpu.forget_writes()
        self._debug.passing = saved.watched_page
        self._debug.changed()
        self.shadow.watched = bool(self._debug.watched)
        self._real_steps = saved.stepping[0]
        self._make_ready()
        self._set_habits(saved.habits)

    def _make_ready(self) -> None:
        """Make the real processor one for deprivileged guests, and listen to the serial port."""
        raise NotImplementedError

    def _allow(self) -> None:
        """Load what the guest may do without an exit."""
        raise NotImplementedError

    def _set_habits(self, habits: Habits) -> None:
        """Raises `ValueError` for habits that no guest can have."""
        shadow, words = self.shadow, len(self._guest_words)
        accesses = {pc: decode(word) for pc, word in habits.accesses if 0 <= word >> 32 < 1}
        if len(accesses) != len(habits.accesses) or None in accesses.values():
            raise ValueError("an access that the saved machine knows is none")
        if not all(0 <= row.register <= 30 and _plain(row) for row in habits.quiet):
            raise ValueError("an access without an exit of the saved machine is none")
        if len(habits.passage) > 1 or not all(_may_pass(row) for row in habits.passers):
            raise ValueError("an access that passes by, of the saved machine, is none")
        if not all(0 <= at < words for _, _, at, _ in habits.passages) or len(habits.walks) != len(self._walkers):
            raise ValueError("a page of passage of the saved machine is outside its memory")
        self.vcpu.context.generation = habits.generation
        for walker, remembered in zip(self._walkers, habits.walks, strict=True):
            walker.remembered = remembered
        self._devices.clear()
        self._devices.update(habits.devices)
        self._accesses.update((word, accesses[pc]) for pc, word in habits.accesses)
        self._access_at.clear()
        self._access_at.update((pc, self._accesses[word]) for pc, word in habits.accesses)  # type: ignore[misc]
        self._access_pages = {pc >> 12 for pc in self._access_at}
        self._quiet.clear()
        self._quiet.update(((row.pc, row.address), row) for row in habits.quiet)
        self.engine.be_quiet(tuple(self._quiet.values()))
        self._passages.clear()
        self._passages.update((page, (generation, at, entry)) for page, generation, at, entry in habits.passages)
        self._open_passage = habits.passage[0] if habits.passage else None
        self._passers = {row.pc: row for row in habits.passers}
        self.engine.let_pass(self._open_passage, habits.passers)
        self.engine.passing = habits.passed
        shadow.clean_page = habits.clean_page
        shadow.invalidations = dict(habits.invalidations)
        shadow._below = set(habits.below)

    def real_state_lost(self) -> None:
        """Memory, tables and the virtual processor are in place: make the real processor's state by them."""
        real, steps = self._registers, self._real_steps
        real.level = 0
        self._may = -1
        self.shadow.use(USER_VIEW if self._view_level == self.USER_LEVEL else KERNEL_VIEW)
        self.engine.flush_tlb()
        self._allow()
        real.stepping = steps


def _check(saved: AArch64Saved) -> None:
    """Raise `ValueError` for what no processor can be."""
    fits(64, (*saved.general, saved.pc, saved.other_sp, saved.scratch, *saved.monitor), "a register")
    fits(64, (*saved.threads, *saved.exception, *saved.translation), "a system register")
    fits(64, (number for row in saved.system for number in row), "a system register")
    fits(32, (saved.flags, saved.masks, *saved.floating), "a part of PSTATE, or of floating point's")
    fits(128, saved.vectors, "a vector register")
    one_of((0, 1), saved.level, "the exception level")
    if (len(saved.general), len(saved.vectors)) != (32, 32):
        raise ValueError("its processor has other registers")
    habits = saved.habits
    fits(64, (number for row in habits.devices for number in row), "an address")
    fits(64, (generation for _, generation, _, _ in habits.passages), "a count")
    fits(64, (count for row in habits.invalidations for count in row), "a count")
    fits(64, (*habits.passed, habits.generation, habits.clean_page + 1, saved.watched_page + 1), "a count")


def _set_general(real: AArch64Registers, saved: AArch64Saved) -> None:
    for number, value in enumerate(saved.general):
        real.gpr[number] = value
    for number, value in enumerate(saved.vectors):
        real.set_vector(number, value)
    real.pc, real.nzcv, real.daif = saved.pc, saved.flags, saved.masks
    real.fpcr, real.fpsr = saved.floating
    real.monitor = saved.monitor
    real.thread, real.thread_read_only = saved.threads[:2]


def _plain(row: QuietAccess) -> bool:
    return 0 <= row.pc <= _MASK and 0 <= row.address <= _MASK and 0 <= row.answer <= _MASK and -1 <= row.tag < PAGE_SIZE


def _may_pass(row: PassingAccess) -> bool:
    return 0 <= row.pc <= _MASK and 0 <= row.register <= 30 and row.size in (1, 2, 4, 8)
