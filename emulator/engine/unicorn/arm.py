"""The Unicorn engine of ARMv7-A: an emulated Cortex-A7 behind the `ArmEngine` protocol.

Room: `emulator/engine/unicorn`. Exceptions arrive by two hooks, with PC exact; the handler resumes without leaving
Unicorn's own loop. Every departure of Unicorn from the architecture is mended here, or named in `arm_quirks`.
"""

from __future__ import annotations

from collections.abc import Callable

import unicorn
from unicorn import arm_const

from emulator.engine.arm import DATA_ABORT, PREFETCH_ABORT, UNDEFINED
from emulator.engine.exit import ExitKind
from emulator.engine.protocol import Capabilities
from emulator.engine.unicorn import arm_state as state
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.arm_confirm import confirm
from emulator.engine.unicorn.arm_state import UnicornArmRegisters, find_state
from emulator.engine.unicorn.core import UnicornCpu

_SWI, _PREFETCH, _DATA, _BKPT, _SMC = 2, 3, 4, 7, 13
"""QEMU's numbers of the exceptions that reach the interrupt hook."""

CAPABILITIES = Capabilities(
    name="unicorn",
    deterministic=True,
    full_privilege=True,
    coherent_code=True,
    fast_store_needs_no_execute=True,
    reports_identify=False,
    ports_exit_in_user_mode=False,
    real_interrupt_flag=False,
    execute_only=False,
    exit_cost=2.0,
    single_step=False,
)


class UnicornArmEngine(UnicornCpu):
    """One emulated CPU. Use `registers` only while no guest code runs or inside the handler."""

    def __init__(self) -> None:
        super().__init__(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_ARM, arm_const.UC_CPU_ARM_CORTEX_A7)
        assert self.handle is not None
        self.registers = UnicornArmRegisters(self.library, self.handle, find_state(self.library, self.handle))
        self.capabilities = CAPABILITIES
        self._hook(lib.HOOK_INTR, lib.FaultCallback(self._make_fault_callback()))
        self._hook(lib.HOOK_INSN_INVALID, lib.InvalidCallback(self._make_invalid_callback()))
        self._count_blocks()
        confirm(self)

    def _start_address(self) -> int:
        return self.registers.pc | self.registers.thumb

    def _address(self) -> int:
        return self.registers.pc

    def set_root(self, physical: int) -> None:
        """Switch TTBR0 to the table at `physical`, and flush."""
        self.registers.poke_root(physical)
        self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_TLB)

    def set_domains(self, value: int) -> None:
        """Load DACR, without a flush."""
        self.registers.poke_domains(value)

    def _make_fault_callback(self) -> Callable[[int, int, int], None]:
        """The hot path: a closure over everything it touches."""
        exit_, words = self._exit, self.registers.words
        syndrome, status, address, pc = state.W_SYNDROME, state.W_STATUS, state.W_FAULT_ADDRESS, state.PC
        fault, call = ExitKind.FAULT, ExitKind.SYSTEM_CALL

        def on_fault(_engine: int, number: int, _user: int) -> None:
            try:
                words[syndrome] = 0
                if number == _SWI:
                    exit_.kind = call
                else:
                    exit_.kind = fault
                    if number == _SMC:
                        # A monitor call is not offered: undefined, and PC is at the instruction then.
                        exit_.vector, exit_.error, exit_.address = UNDEFINED, 0, 0
                        words[pc] = words[pc] - 4 & 0xFFFF_FFFF
                    else:
                        exit_.vector = DATA_ABORT if number == _DATA else PREFETCH_ABORT
                        exit_.error = words[status]
                        exit_.address = words[pc] if number == _BKPT else words[address]
                self._handler(exit_)
            except BaseException as failure:
                self._fail(failure)

        return on_fault

    def _make_invalid_callback(self) -> Callable[[int, int], int]:
        """Undefined instructions. WFE and YIELD arrive here too, without a syndrome and with PC behind them: they are
        no-operations, so the guest goes on."""
        exit_, words = self._exit, self.registers.words
        syndrome, fault = state.W_SYNDROME, ExitKind.FAULT

        def on_invalid(_engine: int, _user: int) -> int:
            try:
                if words[syndrome]:
                    words[syndrome] = 0
                    exit_.kind, exit_.vector, exit_.error, exit_.address = fault, UNDEFINED, 0, 0
                    self._handler(exit_)
            except BaseException as error:
                self._fail(error)
            return 1

        return on_invalid
