"""The Unicorn engine: an emulated x86-64 CPU behind the `Engine` protocol.

Room: `emulator/engine/unicorn`. It runs Unicorn, says why Unicorn came back, and loads the real processor's state; what
Unicorn calls back for is in `x86_hooks`. It knows nothing of a hypervisor: the same object runs a kernel at full
privilege. Every departure of Unicorn from the architecture is mended in this package.
"""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from emulator.engine.exit import Exit, ExitKind, describe
from emulator.engine.protocol import Capabilities, Handler
from emulator.engine.unicorn import floating, state
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.breakpoints import Breakpoints
from emulator.engine.unicorn.confirm import confirm, probe_execute_only
from emulator.engine.unicorn.counter import BlockCounter
from emulator.engine.unicorn.crash import Guarded
from emulator.engine.unicorn.data_breakpoints import DataBreakpoints
from emulator.engine.unicorn.load_checks import not_behind_loads
from emulator.engine.unicorn.ports import QuietPorts
from emulator.engine.unicorn.state import UnicornRegisters, find_state
from emulator.engine.unicorn.status import no_handler
from emulator.engine.unicorn.timestamp import TimeStamp
from emulator.engine.unicorn.x86_hooks import NO_MEMORY, X86Hooks
from emulator.engine.x86 import Burst
from emulator.errors import EngineCrashed, EngineMissing, GuestFault

_ARCH_X86, _MODE_64 = 4, 8
_NOWHERE = 0x8000_0000_0000_0000
"""A non-canonical address: the `until` that no guest reaches."""
_NO_CODE = frozenset({8, 14})
"""UC_ERR_FETCH_UNMAPPED and UC_ERR_FETCH_PROT: there is no memory, or a device, where it would fetch."""
_NO_READ, _NO_WRITE = 6, 7
"""UC_ERR_READ_UNMAPPED and UC_ERR_WRITE_UNMAPPED: neither memory nor a device is where it would read or write."""
_FETCH = 2
_FOREVER = 1 << 62
_DB = 1
_LME = 1 << 8

CAPABILITIES = Capabilities(
    name="unicorn",
    deterministic=True,
    full_privilege=True,
    coherent_code=True,
    fast_store_needs_no_execute=True,
    reports_identify=True,
    ports_exit_in_user_mode=True,
    answers_ports=True,
    real_interrupt_flag=True,
    execute_only=False,
    exit_cost=1.5,
    pauses_exactly=True,
    data_breakpoints=True,
)


class UnicornEngine(X86Hooks):
    """One emulated CPU. Use `registers` only while no guest code runs or inside the handler."""

    def __init__(self) -> None:
        self.library = lib.load()
        handle = ctypes.c_void_p()
        status = self.library.uc_open(_ARCH_X86, _MODE_64, ctypes.byref(handle))
        if status or handle.value is None:
            raise EngineMissing(f"the unicorn engine does not open: {self._message(status)}")
        self.handle: int | None = handle.value
        self.registers = UnicornRegisters(self.library, handle.value, find_state(self.library, handle.value))
        self._flush_tlb = partial(self.library.uc_ctl, handle.value, lib.CONTROL_FLUSH_TLB)
        self._exit = Exit()
        self._handler: Handler = no_handler
        self._failure: BaseException | None = None
        self._stopped = False
        self._refused: int | None = None
        self._context = ctypes.c_void_p()
        self._byte = (ctypes.c_ubyte * 1)()
        self._memories: list[Any] = []
        self._callbacks: list[Any] = []
        self._watches = {}
        self._ports = QuietPorts(lib.PortReadCallback(self._on_port_read), lib.PortWriteCallback(self._on_port_write))
        self._keeper = self._ports
        self._late = Exit()
        self._counter = BlockCounter(self.library)
        self._guarded = Guarded(self.library)
        not_behind_loads(self.library, "x86_64")
        self._remaining = self._counter.remaining
        self._deadline = self._wanted = self._pause = _FOREVER
        self._remaining[0] = _FOREVER
        self._stamps = TimeStamp(self._remaining, self.registers.gpr, lib.SkipCallback(self._on_time_stamp))
        self._limit = self._stamps.deadline
        """The deadline once more, for native code."""
        self._limit[0] = _FOREVER
        self._data = DataBreakpoints(self.library, handle.value, self._stop_before, self._fail)
        self._data_watch: int | None = None
        self._breakpoints = Breakpoints(self.library, handle.value, self._fail)
        self._ports_enabled = False
        self._inside = False
        self._flush_before: int | None = None
        """The deadline asked for, while the next block waits for all code to be forgotten."""
        self._check(self.library.uc_context_alloc(self.handle, ctypes.byref(self._context)), "cannot save its state")
        self.map_memory(NO_MEMORY, memoryview(mmap.mmap(-1, mmap.PAGESIZE)))
        self._install_hooks()
        confirm(self)
        self.capabilities = replace(CAPABILITIES, execute_only=probe_execute_only(self))

    # -- running --------------------------------------------------------------------------------

    def run(self, handler: Handler) -> None:
        """Run until the handler calls `stop`. An exception raised by the handler propagates."""
        if self._ports.used:
            handler = self._after_posted(handler)
        self._handler = handler
        self._stopped = False
        exit_ = self._exit
        start, handle, registers, slot = self._guarded.start, self.handle, self.registers, self._guarded.slot
        registers.forget_exception()  # what is observed no more was looked up, and a fault of that is left behind
        while not self._stopped:
            registers.join_flags()
            left, begin = self._remaining[0], registers.rip
            status = start(handle, begin, _NOWHERE, 0, 0, slot)
            if status < 0:
                raise EngineCrashed.by(self._guarded.note(status), registers.rip, describe(exit_))
            registers.forget_exception()  # a stop leaves one behind as well
            if self._flush_before is not None and self._flush_waiting():
                continue
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self._refused is not None:
                self.library.uc_context_restore(handle, self._context)
                self.library.uc_ctl(handle, lib.CONTROL_FLUSH_TLB)
                registers.forget_exception()
                exit_.kind, exit_.vector, exit_.error = ExitKind.FAULT, self._refused, 0
                self._refused, self._handler = None, handler
                self._ports.enable(self._ports_enabled)
            elif self._stopped:
                return
            elif self._data.hit:
                exit_.kind, exit_.vector, exit_.error = ExitKind.FAULT, _DB, self._data.hit
                self._data.hit = 0
                self.count_again()
            elif self._breakpoints.hit >= 0:
                exit_.kind, exit_.address = ExitKind.BREAKPOINT, self._breakpoints.hit
                self._breakpoints.hit = -1
                self.count_again()
            elif self._remaining[0] <= 0:
                if self._deadline == self._pause:
                    self._paused()
                    continue
                exit_.kind = ExitKind.BUDGET
            elif status in _NO_CODE:
                exit_.kind, exit_.address, exit_.error = ExitKind.UNBACKED, registers.rip, _FETCH
            elif status in (_NO_READ, _NO_WRITE):
                exit_.kind, exit_.error = ExitKind.UNBACKED, status - _NO_READ
            elif status:
                raise GuestFault(f"the engine lost the guest at {registers.rip:#x}: {self._message(status)}")
            elif self._remaining[0] == left and registers.rip == begin:
                continue  # two stops at once, of which Unicorn takes the second for one of the next start
            else:
                exit_.kind = ExitKind.HALT
            handler(exit_)

    def _after_posted(self, handler: Handler) -> Handler:
        """Hand up posted writes before whatever comes behind them."""
        ports, late = self._ports, self._late
        control = ports.control
        late.kind, late.size, late.late = ExitKind.PORT_WRITE, 1, True

        def handle(exit_: Exit) -> None:
            if control[1]:
                for late.port, late.value in ports.take():
                    handler(late)
            handler(exit_)

        return handle

    def stop(self) -> None:
        """End `run` after the handler returns."""
        self._stopped = True
        self.library.uc_emu_stop(self.handle)

    def set_deadline(self, progress: int) -> None:
        """Ask for a BUDGET exit when `progress` blocks are reached; the past means: at the next block."""
        if self._flush_before is not None:
            self._flush_before = progress
            return
        super().set_deadline(progress)

    # -- translation state ----------------------------------------------------------------------

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None:
        """Forget all cached translations of addresses."""
        self._flush_tlb()

    def set_root(self, physical: int) -> None:
        """Switch CR3 to the page table at `physical`, and flush."""
        self.registers.words[state.W_ROOT] = physical
        self._flush_tlb()

    def set_control(self, cr0: int, cr4: int, efer: int) -> None:
        """Load the real control registers; paging must already have a root when CR0.PG is set.

        EFER.LME chooses between long mode and 32-bit protected mode; segments are loaded afterwards.
        """
        self.write_msr(0xC000_0080, efer)
        self.registers.long_mode = efer & _LME != 0
        if not efer & _LME:  # no address is non-canonical: `_NOWHERE` would be looked up in the guest's tables
            self.library.uc_ctl(self.handle, lib.CONTROL_ENDS, ctypes.c_int(1))
        for register, value in ((lib.REG_CR4, cr4), (lib.REG_CR0, cr0)):
            self.library.uc_reg_write(self.handle, register, ctypes.byref(ctypes.c_uint64(value)))

    def guard_code(self, enabled: bool = True) -> None:
        """From now on pages of protection key 1 are execute-only in user mode, or not. `set_control` takes it back."""
        self.registers.protect_keys(4, enabled)

    def open_ports(self, enabled: bool = True) -> None:
        """Ports exit in user mode anyhow; but only open ones are posted and answered without an exit."""
        self._ports.enable(enabled)

    def post_ports(self, ports: Sequence[tuple[int, int]], _burst: Burst | None = None) -> None:
        """Nothing: every write to a port exits by itself."""

    def post_port(self, port: int, posted: bool) -> None:
        """Hand writes of a byte to this port up late, in order, before whatever exit comes next; or at once again."""
        self._ports.post(port, posted)

    def answer_port(self, port: int, value: int, sought_at: int) -> None:
        """Answer reads of a byte from this port without an exit, or no more (-1).

        After some reads without a posted write to `sought_at` a read exits: the guest waits for something.
        """
        self._ports.answer(port, value, sought_at)

    def answer_time_stamp(self, scale: int, offset: int) -> None:
        """Answer RDTSC by progress * `scale` + `offset` from now on, or hand it up again (a scale of 0)."""
        self._stamps.answer(scale, offset)

    @property
    def time_stamps_answered(self) -> int:
        """How many RDTSC were answered."""
        return self._stamps.answered

    def vectors(self) -> bytes:
        """None: CPUID shows no AVX, and CR4.OSXSAVE is clear."""
        return b""

    def set_vectors(self, state: bytes) -> None:
        """Nothing."""

    def floating(self) -> bytes:
        """x87 and SSE state, as FXSAVE stores it."""
        return floating.read(self.library, self.handle or 0)

    def set_floating(self, image: bytes) -> None:
        """Put a state back that `floating` gave. Raises `ValueError` for another size."""
        floating.write(self.library, self.handle or 0, image)

    def break_on_data(self, places: Sequence[tuple[int, int, bool]]) -> None:
        """Watch accesses to these places, and no others."""
        if self._data_watch is not None:
            self.unobserve(self._data_watch)
            self._data_watch = None
        self._data.choose(places)
        if places:
            self._data_watch = self.observe_change(self._data.word[:8], self._look, exactly=True)

    def break_at(self, addresses: Sequence[int], asked: Callable[[int], bool], everywhere: bool = False) -> None:
        """From now on call `asked` before an instruction at one of `addresses`; True ends in a BREAKPOINT exit."""
        self._breakpoints.choose(addresses, asked, everywhere)

    def _look(self) -> None:
        self._data.look(self.registers.interrupt_shadow)

    def _stop_before(self) -> None:
        self.library.uc_emu_stop(self.handle)

    def forget_accesses(self) -> None:
        """Tell of the access under way no more."""
        self._data.forget()

    def show_segments(self, table: bytes) -> None:
        """Nothing: segments come from the table in GDTR."""

    def code_changed(self, address: int, size: int) -> None:
        """The host changed bytes that may have been executed at mapped guest-virtual `address`."""
        self.library.uc_ctl(
            self.handle, lib.CONTROL_REMOVE_CODE, ctypes.c_uint64(address), ctypes.c_uint64(address + size)
        )

    def flush_code(self) -> None:
        """Forget all translated code: within a block before the next one, since Unicorn finds by the code it runs where
        that code's faults are."""
        if not self._inside:
            self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_CODE)
        elif self._flush_before is None:
            wanted = self._wanted
            self.set_deadline(0)
            self._flush_before = wanted

    def _flush_waiting(self) -> bool:
        """Forget all code as `flush_code` was asked to; whether this alone was why the engine came back."""
        self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_CODE)
        came = self._remaining[0] <= 0
        now = self.progress
        self._wanted, self._flush_before = max(now, self._flush_before or 0), None
        self._deadline = self._limit[0] = min(self._wanted, self._pause)
        self._remaining[0] = self._deadline - now
        return came and self._remaining[0] > 0 and not self._stopped and self._refused is None and not self._failure

    def counter(self) -> tuple[int, float]:
        """Not to be had: RDTSC is no counter of the host's here."""
        raise NotImplementedError

    def write_msr(self, number: int, value: int) -> None:
        """Write one of the real processor's MSRs."""
        access = lib.MsrAccess(number, value)
        status = self.library.uc_reg_write(self.handle, lib.REG_MSR, ctypes.byref(access))
        self._check(status, f"cannot write MSR {number:#x}")

    def read_msr(self, number: int) -> int:
        """Read one of the real processor's MSRs."""
        access = lib.MsrAccess(number, 0)
        status = self.library.uc_reg_read(self.handle, lib.REG_MSR, ctypes.byref(access))
        self._check(status, f"cannot read MSR {number:#x}")
        return int(access.value)

    def close(self) -> None:
        """Release the CPU. Idempotent."""
        if self.handle is not None:
            self._guarded.close()
            if not self._guarded.crashed:
                self.library.uc_context_free(self._context)
                self.library.uc_close(self.handle)
            self.handle = None
