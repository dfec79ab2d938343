"""The Unicorn engine of ARMv7-A: an emulated Cortex-A7 behind the `ArmEngine` protocol.

Room: `emulator/engine/unicorn`. Exceptions arrive by two hooks, with PC exact; the handler resumes without leaving
Unicorn's own loop. Every departure of Unicorn from the architecture is mended here, or named in `arm_quirks`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

import unicorn
from unicorn import arm_const

from emulator.engine.arm import DATA_ABORT, FULL, OTHER, PREFETCH_ABORT, UNDEFINED, CopiedPages
from emulator.engine.exit import ExitKind
from emulator.engine.protocol import Capabilities
from emulator.engine.unicorn import arm_state as state
from emulator.engine.unicorn import floating_access
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.arm_confirm import confirm, confirm_timer
from emulator.engine.unicorn.arm_copies import CopiedCode
from emulator.engine.unicorn.arm_registers import ARM_TABLE, show
from emulator.engine.unicorn.arm_state import UnicornArmRegisters, access, find_cpu, find_state
from emulator.engine.unicorn.arm_timer import WithheldTimer
from emulator.engine.unicorn.core import UnicornCpu
from emulator.engine.unicorn.load_checks import not_behind_loads
from emulator.errors import EngineMissing
from emulator.isa.arm.system_registers import REGISTER_OF_NAME

_SWI, _PREFETCH, _DATA, _BKPT, _SMC = 2, 3, 4, 7, 13
"""QEMU's numbers of the exceptions that reach the interrupt hook."""

_WORLD_INDICES = (0x00D, 0x480)
"""QEMU's MMU indices of each world, as masks: E10_0, E10_1 and E10_1_PAN; SE10_0 and SE3."""

_USER_INDEX = (0, 7)
"""User mode's MMU index in each world: E10_0 and SE10_0."""
_EXECUTE = 4
"""QEMU's PAGE_EXEC."""

_OF_BOTH_STATES, _ALL_ACCESS = 3 << 10, 15 << 20
"""NSACR and CPACR: coprocessors 10 and 11."""

CAPABILITIES = Capabilities(
    name="unicorn",
    watches=True,
    pauses_exactly=True,
    deterministic=True,
    full_privilege=True,
    coherent_code=True,
    fast_store_needs_no_execute=True,
    reports_identify=False,
    ports_exit_in_user_mode=False,
    real_interrupt_flag=False,
    execute_only=True,
    exit_cost=2.0,
    single_step=False,
)


class UnicornArmEngine(UnicornCpu):
    """One emulated CPU. Use `registers` only while no guest code runs or inside the handler."""

    def __init__(self) -> None:
        super().__init__(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_ARM, arm_const.UC_CPU_ARM_CORTEX_A7, 4096)
        assert self.handle is not None
        self.registers = UnicornArmRegisters(self.library, self.handle, find_state(self.library, self.handle))
        self._cpu = find_cpu(self.handle, self.registers.address)
        self._find_functions()
        self.capabilities = CAPABILITIES
        callback = lib.FaultCallback(self._make_fault_callback())
        self._copied = CopiedCode(callback, self.registers.address, self._cpu, self._set_page)
        self._hook(lib.HOOK_INTR, ctypes.c_void_p(self._copied.on_exception), user=self._copied.argument)
        self._hook(lib.HOOK_INSN_INVALID, lib.InvalidCallback(self._make_invalid_callback()))
        self._count_blocks()
        not_behind_loads(self.library, "arm")
        floating_access.ask(self.library, "arm")
        self.registers.set_system("NSACR", _OF_BOTH_STATES)  # else CPACR reads as 0 where the security extensions are
        self.registers.set_system("CPACR", _ALL_ACCESS)
        self.registers.ask_floating_point(None)
        confirm(self)

    def _start_address(self) -> int:
        return self.registers.pc | self.registers.thumb

    def _address(self) -> int:
        return self.registers.pc

    def use_world(self, world: int) -> None:
        """Go on in another world: Secure or Non-secure state, which QEMU gives TLBs of their own."""
        self.library.uc_reg_write(self.handle, arm_const.UC_ARM_REG_CP_REG, self._worlds[world])

    def enable_translation(self, world: int, sctlr: int) -> None:
        """Load a world's SCTLR, TTBCR cleared."""
        self.registers.set_system("TTBCR", 0, secure=world == OTHER)
        self.registers.set_system("SCTLR", sctlr, secure=world == OTHER)

    def set_root(self, physical: int, world: int = FULL) -> None:
        """Switch TTBR0 to the table at `physical`, and flush that world."""
        self.registers.poke_root(physical, world)
        self._flush(self._cpu, _WORLD_INDICES[world])

    def split_roots(self, bits: int, upper: int, world: int) -> None:
        """Load TTBCR.N and TTBR1, which `confirm` leaves as they are at reset."""
        self.registers.set_system("TTBR1", upper, secure=world == OTHER)
        self.registers.set_system("TTBCR", bits, secure=world == OTHER)

    def set_domains(self, value: int, world: int = FULL) -> None:
        """Load DACR, without a flush."""
        self.registers.poke_domains(value, world)

    def threads(self, world: int) -> tuple[int, int]:
        """TPIDRURW and TPIDRURO of a world."""
        return self.registers.threads(world)

    def set_threads(self, world: int, writable: int, readonly: int) -> None:
        """Load TPIDRURW and TPIDRURO of a world."""
        self.registers.set_threads(world, writable, readonly)

    def ask_floating_point(self, rights: memoryview) -> None:
        """By these words, besides FPEXC."""
        self.registers.ask_floating_point(rights)

    def floating_point_changed(self) -> None:
        """Whoever drives the CPU has changed the words."""
        self.registers.floating_point_changed()

    def flush_world(self, world: int) -> None:
        """Forget what is cached of the translations of one world."""
        self._flush(self._cpu, _WORLD_INDICES[world])

    def flush_page(self, world: int, address: int) -> None:
        """Forget what is cached of one page's translation in one world."""
        self._flush_page(self._cpu, address & 0xFFFF_F000, _WORLD_INDICES[world])

    def map_execute_only(self, world: int, address: int, physical: int) -> None:
        """Enter a page into the TLB with the right to execute alone, which no table entry could give."""
        self._set_page(self._cpu, address & 0xFFFF_F000, physical, _EXECUTE, _USER_INDEX[world], 4096)

    def keep_copies(self, pages: CopiedPages) -> None:
        """They are entered without a handler."""
        self._copied.keep(pages)

    def execute_copies(self, root: int, upper: int = -1, split: int = 0) -> None:
        """Where the lookup begins."""
        self._copied.look(root, upper, split)

    def frame_changed(self, physical: int, size: int) -> None:
        """Forget what was made of the code in some physical memory."""
        self._forget_range(self.handle, physical, physical + size)

    def withhold_timer(self) -> None:
        """Make accesses to the generic timer undefined; raises `EngineMissing` where that does not work."""
        self._timer = WithheldTimer(self._cpu)
        confirm_timer(self)

    def show_identity(self, values: Mapping[str, int]) -> None:
        """Have registers read as `values` says, by name."""
        places: dict[tuple[int, ...], int] = {}
        for name, value in values.items():
            one = REGISTER_OF_NAME[name]
            places[one.coprocessor, one.crn, one.crm, 0, one.opc1, one.opc2] = value
        show(self._cpu, ARM_TABLE, places)
        wrong = [name for name, value in values.items() if self.registers.system(name) != value]
        if wrong:
            raise EngineMissing(f"the unicorn engine shows {wrong[0]} as ever: install unicorn==2.1.4")

    def see_all_stores(self) -> None:
        """Have code that is written through another mapping forgotten: a hook of stores makes all of them take the way
        on which QEMU looks for code, which is slow."""
        self._hook(lib.HOOK_MEM_INVALID, lib.MemoryCallback(lambda *_arguments: 0))

    def _find_functions(self) -> None:
        """The functions of QEMU's that flush a part of the TLB: the wheel exports them, and Unicorn does not."""
        found = []
        for name, kinds in (
            ("tlb_flush_by_mmuidx_arm", (ctypes.c_void_p, ctypes.c_uint16)),
            ("tlb_flush_page_by_mmuidx_arm", (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint16)),
            ("tb_invalidate_phys_range_arm", (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)),
            (
                "tlb_set_page_arm",
                (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_uint32),
            ),
        ):
            function = getattr(self.library, name, None)
            if function is None:
                raise EngineMissing(f"the unicorn engine does not export {name}: install unicorn==2.1.4")
            function.argtypes, function.restype = kinds, None
            found.append(function)
        self._flush, self._flush_page, self._forget_range, self._set_page = found
        self._worlds = [ctypes.byref(access(REGISTER_OF_NAME["SCR"], not_secure, secure=True)) for not_secure in (1, 0)]

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
