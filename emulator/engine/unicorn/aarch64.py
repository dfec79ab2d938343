"""The Unicorn engine of AArch64: an emulated Cortex-A53 behind the `AArch64Engine` protocol.

Room: `emulator/engine/unicorn`. Every exception arrives by one hook, and the handler resumes without leaving Unicorn's
own loop. Every departure of Unicorn from the architecture is mended here, or named in `aarch64_quirks`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence

import unicorn
from unicorn import arm64_const

from emulator.engine.aarch64 import Passage, PassingAccess, QuietAccess
from emulator.engine.exit import ExitKind
from emulator.engine.protocol import Capabilities
from emulator.engine.unicorn import aarch64_state as state
from emulator.engine.unicorn import floating_access
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.aarch64_confirm import confirm
from emulator.engine.unicorn.aarch64_state import UnicornAArch64Registers, find_state, processor_of
from emulator.engine.unicorn.arm_registers import AARCH64, AARCH64_TABLE, show
from emulator.engine.unicorn.arm_timer import WithheldTimer
from emulator.engine.unicorn.core import UnicornCpu
from emulator.engine.unicorn.counter_reads import CounterReads
from emulator.engine.unicorn.load_checks import not_behind_loads
from emulator.engine.unicorn.passages import Passages
from emulator.engine.unicorn.quiet import QuietAccesses
from emulator.errors import EngineMissing
from emulator.isa.aarch64.encoding import fields
from emulator.isa.aarch64.registers import BY_NAME

_SCTLR, _TCR, _MAIR, _CPACR = (BY_NAME[name].encoding for name in ("SCTLR_EL1", "TCR_EL1", "MAIR_EL1", "CPACR_EL1"))
_SMC = 13
_PC_ALIGNMENT = 0x22
_MISALIGNED = _PC_ALIGNMENT << 26 | 1 << 25
_BEYOND_MEMORY, _LAST = 1 << 44, (1 << 64) - 1
"""Guest-virtual addresses that are higher than any engine-physical one."""
_UNKNOWN = 1 << 25
"""The syndrome of an undefined instruction (EC 0, IL)."""

CAPABILITIES = Capabilities(
    name="unicorn",
    watches=True,
    pauses_exactly=True,
    deterministic=True,
    full_privilege=True,
    coherent_code=False,
    fast_store_needs_no_execute=True,
    reports_identify=False,
    ports_exit_in_user_mode=False,
    real_interrupt_flag=False,
    execute_only=True,
    exit_cost=2.0,
)


class UnicornAArch64Engine(UnicornCpu):
    """One emulated CPU. Use `registers` only while no guest code runs or inside the handler."""

    nowhere = 0x8000_0000_0000_0002
    """Neither half of the address space has it, and no instruction begins there."""

    def __init__(self) -> None:
        super().__init__(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM, arm64_const.UC_CPU_ARM64_A53, page_size=4096)
        assert self.handle is not None
        self.registers = UnicornAArch64Registers(self.library, self.handle, find_state(self.library, self.handle))
        self.capabilities = CAPABILITIES
        self._late: Callable[[int, bytes], None] = _nobody
        callback = lib.FaultCallback(self._make_fault_callback())
        self._quiet = QuietAccesses(callback, self.registers.address, state.GENERAL)
        self._control = self._quiet.control
        self._keeper = self._quiet
        self._trusts = False
        following = self._quiet.on_exception, self._quiet.argument
        self._passages = Passages(self.registers.address, state.GENERAL, *following)
        following = self._passages.on_exception, self._passages.argument
        self._limit[0] = self._deadline
        self._reads = CounterReads(self.registers.address, self._remaining, self._limit, *following)
        self._hook(lib.HOOK_INTR, ctypes.c_void_p(self._reads.on_exception), user=self._reads.argument)
        self._count_blocks()
        not_behind_loads(self.library, "aarch64")
        floating_access.ask(self.library, "aarch64")
        self.registers.ask_floating_point(None)
        self.registers.set_public(_CPACR, floating_access.ENABLED)
        self.registers.learn_modes()
        self._roots = [(0, 0), (0, 0)]
        self._processor = processor_of(self.registers.address)
        self._flush_page = lib.page_flush(self.library, "aarch64")
        self._trusted = False
        confirm(self)

    def _start_address(self) -> int:
        return self.registers.pc

    def withhold_timer(self) -> None:
        """Make accesses to the generic timer undefined; raises `EngineMissing` where that does not work."""
        self._timer = WithheldTimer(self._processor, AARCH64_TABLE)

    def show_identity(self, values: Mapping[int, int]) -> None:
        """Have registers read as `values` says, by their 16-bit names."""
        places: dict[tuple[int, ...], int] = {}
        for name, value in values.items():
            op0, op1, crn, crm, op2 = fields(name)
            places[AARCH64, crn, crm, op0, op1, op2] = value
        show(self._processor, AARCH64_TABLE, places)
        wrong = [name for name, value in values.items() if self.registers.public(name) != value]
        if wrong:
            raise EngineMissing(f"the unicorn engine shows register {wrong[0]:#x} as ever: install unicorn==2.1.4")

    def see_all_stores(self) -> None:
        """Have code that is written through another mapping forgotten: a hook of stores makes all of them take the way
        on which QEMU looks for code, which is slow."""
        self._hook(lib.HOOK_MEM_INVALID, lib.MemoryCallback(lambda *_arguments: 0))

    def trust_mappings(self) -> None:
        """Stores into code are never seen, but by a hook of accesses: Unicorn looks through its whole TLB after each
        block that it translates, to have them seen, unless such a hook is there for the block's address. This one is
        for addresses that only code has: none of memory or devices is as high."""
        if not self._trusts:
            self._trusts = True
            callback = lib.MemoryCallback(lambda *_arguments: 0)
            self._hook(lib.HOOK_MEM_WRITE_UNMAPPED, callback, begin=_BEYOND_MEMORY, end=_LAST)

    def forget_page(self, address: int) -> None:
        """Forget what is cached of one page of 4 KiB, in both views."""
        self._flush_page(self._processor, address)

    def set_roots(self, lower: int, upper: int, view: int = 0) -> None:
        """Run in a view, with these tables; flush where they are not the ones it had."""
        registers = self.registers
        registers.poke_roots(lower, upper)
        if registers.world != view:
            registers.world = view
        if self._roots[view] != (lower, upper):
            self._roots[view] = lower, upper
            self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_TLB)

    def set_control(self, sctlr: int, tcr: int, mair: int) -> None:
        """Load SCTLR_EL1, TCR_EL1 and MAIR_EL1, and flush."""
        registers = self.registers
        registers.set_public(_MAIR, mair)
        registers.set_public(_TCR, tcr)
        registers.set_public(_SCTLR, sctlr)
        registers.learn_modes()
        self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_TLB)

    def allow_user(self, allowed: int, counters: bool = False) -> None:
        """The bits `USER_MAY` of SCTLR_EL1, and the performance monitors."""
        self.registers.poke_user_rights(allowed, counters)

    def ask_floating_point(self, rights: memoryview) -> None:
        """By these words, in the place of CPACR_EL1."""
        self.registers.ask_floating_point(rights)

    def floating_point_changed(self) -> None:
        """Whoever drives the CPU has changed the word."""
        self.registers.floating_point_changed()

    def be_quiet(self, accesses: Sequence[QuietAccess]) -> None:
        """These accesses are done by native code."""
        self._quiet.set(accesses)

    def answer_counter(self, scale: int, offset: int, shift: int) -> None:
        """Reads of the counter need no exit, or do again."""
        self._reads.answer(scale, offset, shift)

    def take_answered(self) -> int:
        """Reads of the counter that were answered since this was asked last."""
        return self._reads.take()

    def prepare_passages(self, base: int, memory: memoryview, kinds: memoryview, word: memoryview) -> None:
        """Where accesses that pass by lead, and what opens a page."""
        self._passages.prepare(base, memory, kinds, word)

    def let_pass(self, passage: Passage | None, accesses: Sequence[PassingAccess] = ()) -> None:
        """These accesses are done by native code."""
        self._passages.set(passage, accesses)

    @property
    def passing(self) -> tuple[int, int]:
        """The last entry, and how many accesses more there were by it in a row."""
        return self._passages.passing

    @passing.setter
    def passing(self, value: tuple[int, int]) -> None:
        self._passages.passing = value

    def take_passed(self) -> int:
        """Accesses done since this was asked last."""
        return self._passages.take()

    def hand_up_stores(self, late: Callable[[int, bytes], None]) -> None:
        """Who gets the stores that were kept."""
        self._late = late

    def _settle(self) -> None:
        if self._control[1]:
            self._hand_up()

    def _hand_up(self) -> None:
        for tag, data in self._quiet.take():
            self._late(tag, data)

    def _make_fault_callback(self) -> Callable[[int, int, int], None]:
        """The hot path: a closure over everything it touches."""
        exit_, words, halves = self._exit, self.registers.words, self.registers.halves
        syndrome, address, pc = state.H_SYNDROME, state.W_FAULT_ADDRESS, state.W_PC
        fault = ExitKind.FAULT

        def on_fault(_engine: int, number: int, _user: int) -> None:
            try:
                if self._control[1]:
                    self._hand_up()
                exit_.kind = fault
                if number == _SMC:
                    # There is no secure monitor: undefined, and PC is at the instruction then.
                    halves[syndrome] = _UNKNOWN
                    words[pc] = words[pc] - 4 & 0xFFFF_FFFF_FFFF_FFFF
                exit_.error = found = halves[syndrome]
                exit_.vector = found >> 26
                exit_.address = words[address]
                if words[pc] & 3:
                    exit_.error, exit_.vector, exit_.address = _MISALIGNED, _PC_ALIGNMENT, words[pc]
                self._handler(exit_)
            except BaseException as failure:
                self._fail(failure)

        return on_fault


def _nobody(_tag: int, _data: bytes) -> None:
    raise RuntimeError("nobody takes the stores that were kept")
