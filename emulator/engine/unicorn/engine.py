"""The Unicorn engine: an emulated x86-64 CPU behind the `Engine` protocol.

Room: `emulator/engine/unicorn`. It turns Unicorn's hooks into `Exit` values and lets the handler
resume without leaving Unicorn's own loop. It knows nothing of a hypervisor: the same object runs
a kernel at full privilege. Every departure of Unicorn from the architecture is mended here.
"""

import ctypes
import mmap
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from emulator.engine.exit import SYSCALL, SYSENTER, Exit, ExitKind, describe
from emulator.engine.protocol import Capabilities, Handler
from emulator.engine.unicorn import floating, state
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.breakpoints import Breakpoints
from emulator.engine.unicorn.confirm import confirm, probe_execute_only
from emulator.engine.unicorn.counter import BlockCounter
from emulator.engine.unicorn.crash import Guarded
from emulator.engine.unicorn.data_breakpoints import DataBreakpoints
from emulator.engine.unicorn.observation import Observed
from emulator.engine.unicorn.ports import QuietPorts
from emulator.engine.unicorn.state import UnicornRegisters, find_state
from emulator.engine.unicorn.timestamp import TimeStamp
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
_NO_MEMORY = 1 << 51
"""Physical address of a page table of the engine's own that maps nothing: no entry of a table can point to it."""
_BREAKPOINT, _OVERFLOW = 3, 4
_CS = 1
_DB, _UD, _GP = 1, 6, 13
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


class UnicornEngine(Observed):
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
        self._handler: Handler = _no_handler
        self._failure: BaseException | None = None
        self._stopped = False
        self._refused: int | None = None
        """Vector of the exception by which the instruction under way is refused."""
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
        """The handler is called from within a basic block, which goes on afterwards."""
        self._flush_before: int | None = None
        """The deadline asked for, while the next block waits for all code to be forgotten."""
        self._check(self.library.uc_context_alloc(self.handle, ctypes.byref(self._context)), "cannot save its state")
        self.map_memory(_NO_MEMORY, memoryview(mmap.mmap(-1, mmap.PAGESIZE)))
        self._install_hooks()
        confirm(self)
        self.capabilities = replace(CAPABILITIES, execute_only=probe_execute_only(self))

    # -- memory ---------------------------------------------------------------------------------

    def map_memory(self, physical: int, memory: memoryview) -> None:
        """Back physical addresses from `physical` on by `memory` (page-aligned, writable)."""
        pinned = (ctypes.c_char * memory.nbytes).from_buffer(memory)
        status = self.library.uc_mem_map_ptr(
            self.handle, physical, memory.nbytes, lib.PROT_ALL, ctypes.addressof(pinned)
        )
        self._check(status, f"cannot map {memory.nbytes} bytes of memory at {physical:#x}")
        self._memories.append(pinned)

    def map_mmio(
        self, physical: int, size: int, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        """Route accesses to `size` bytes at `physical` to `read(offset, size)` and `write(offset, size, value)`."""

        def on_read(_engine: int, offset: int, width: int, _user: int) -> int:
            try:
                return read(offset, width) & ((1 << (8 * width)) - 1)
            except BaseException as error:
                self._fail(error)
                return 0

        def on_write(_engine: int, offset: int, width: int, value: int, _user: int) -> None:
            try:
                write(offset, width, value)
            except BaseException as error:
                self._fail(error)

        reader, writer = lib.DeviceReadCallback(on_read), lib.DeviceWriteCallback(on_write)
        self._callbacks += (reader, writer)
        status = self.library.uc_mmio_map(self.handle, physical, size, reader, None, writer, None)
        self._check(status, f"cannot map {size} bytes of device memory at {physical:#x}")

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

    def post_ports(self, ports: Sequence[tuple[int, int]]) -> None:
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

    # -- hooks ----------------------------------------------------------------------------------

    def _install_hooks(self) -> None:
        """Register one callback for each way an event can arrive."""
        self._hook(lib.HOOK_INTR, lib.FaultCallback(self._make_fault_callback()))
        self._hook(lib.HOOK_INSN_INVALID, lib.InvalidCallback(self._on_invalid))
        ports = self._ports
        self._hook(lib.HOOK_INSN, ctypes.c_void_p(ports.on_read), lib.INS_IN, ports.argument)
        self._hook(lib.HOOK_INSN, ctypes.c_void_p(ports.on_write), lib.INS_OUT, ports.argument)
        self._hook(lib.HOOK_INSN, lib.SystemCallCallback(self._on_system_call), lib.INS_SYSCALL)
        self._hook(lib.HOOK_INSN, lib.SystemCallCallback(self._on_system_enter), lib.INS_SYSENTER)
        self._hook(lib.HOOK_INSN, lib.SkipCallback(self._on_identify), lib.INS_CPUID)
        self._hook(lib.HOOK_INSN, ctypes.c_void_p(self._stamps.callback), lib.INS_RDTSC, self._stamps.argument)
        self._hook(lib.HOOK_INSN, lib.SkipCallback(self._on_time_stamp_and_processor), lib.INS_RDTSCP)
        self._hook(lib.HOOK_BLOCK, ctypes.c_void_p(self._counter.callback), user=self._counter.argument)

    def _hook(self, kind: int, callback: Any, instruction: int = 0, user: int = 0) -> None:
        """Call `uc_hook_add` over the whole address space and keep the callback alive."""
        number = ctypes.c_size_t()
        status = self.library.uc_hook_add(
            ctypes.c_void_p(self.handle),
            ctypes.byref(number),
            ctypes.c_int(kind),
            callback,
            ctypes.c_void_p(user),
            ctypes.c_uint64(1),
            ctypes.c_uint64(0),
            ctypes.c_int(instruction),
        )
        self._check(status, f"cannot install hook {kind:#x} for instruction {instruction}")
        self._callbacks.append(callback)

    def _make_fault_callback(self) -> Callable[[int, int, int], None]:
        """The hot path: a closure over everything it touches."""
        exit_, registers = self._exit, self.registers
        words, signed = registers.words, registers.signed
        old, event, rip, behind, cr2 = state.I_OLD, state.W_EVENT, state.W_RIP, state.W_NEXT_RIP, state.W_CR2
        fault, software = ExitKind.FAULT, ExitKind.SOFTWARE_INTERRUPT

        def on_fault(_engine: int, vector: int, _user: int) -> None:
            try:
                signed[old] = -1
                error = words[event]
                if error >> 32:
                    exit_.kind = software
                    exit_.vector = vector
                    exit_.length = length = self._interrupt_length(vector)
                    words[rip] = (words[behind] - length) & 0xFFFF_FFFF_FFFF_FFFF
                else:
                    exit_.kind = fault
                    exit_.vector = vector
                    exit_.error = error
                    if vector == 14:
                        exit_.address = words[cr2]
                self._handler(exit_)
            except BaseException as failure:
                self._fail(failure)

        return on_fault

    def _interrupt_length(self, vector: int) -> int:
        """Length of the INT that was just executed: INT3 and INTO have an opcode of one byte. RIP is behind it
        already, and prefixes in front of it are not to be told from other instructions."""
        if vector not in (_BREAKPOINT, _OVERFLOW):
            return 2
        registers = self.registers
        last = (registers.segment_base(_CS) + registers.next_rip - 1) & 0xFFFF_FFFF_FFFF_FFFF
        status = self.library.uc_vmem_read(self.handle, last, lib.PROT_EXEC, self._byte, 1)
        return 2 if status == 0 and self._byte[0] == vector else 1

    def _on_invalid(self, _engine: int, _user: int) -> int:
        try:
            self.registers.forget_exception()
            exit_ = self._exit
            exit_.kind, exit_.vector, exit_.error = ExitKind.FAULT, _UD, 0
            self._handler(exit_)
        except BaseException as error:
            self._fail(error)
        return 1

    def _on_port_read(self, _engine: int, port: int, size: int, _user: int) -> int:
        exit_ = self._exit
        try:
            exit_.kind, exit_.port, exit_.size, exit_.value = ExitKind.PORT_READ, port, size, 0
            self._port(exit_)
        except BaseException as error:
            self._fail(error)
        return exit_.value & 0xFFFF_FFFF

    def _on_port_write(self, _engine: int, port: int, size: int, value: int, _user: int) -> None:
        exit_ = self._exit
        try:
            exit_.kind, exit_.port, exit_.size, exit_.value = ExitKind.PORT_WRITE, port, size, value
            self._port(exit_)
        except BaseException as error:
            self._fail(error)

    def _port(self, exit_: Exit) -> None:
        """Hand up a port access; when the handler refuses it, the instruction shall fault."""
        exit_.refused = False
        self._inside = True
        self._handler(exit_)
        self._inside = False
        if exit_.refused:
            self._refuse(_GP)

    def _refuse(self, vector: int) -> None:
        """Have the instruction under way raise an exception instead.

        Unicorn goes on to the end of the basic block, whatever a hook wants: the registers are put back afterwards,
        and until then no address is mapped, so that no store is done.
        """
        library, handle = self.library, self.handle
        self._refused, self._handler = vector, _ignore
        self._ports_enabled = self._ports.enable(False)
        library.uc_context_save(handle, self._context)
        self.registers.poke_root(_NO_MEMORY)
        library.uc_ctl(handle, lib.CONTROL_FLUSH_TLB)
        library.uc_emu_stop(handle)

    def _on_system_call(self, _engine: int, _user: int) -> None:
        """RIP is at SYSCALL and Unicorn adds 2 to whatever the handler leaves."""
        registers = self.registers
        try:
            exit_ = self._exit
            exit_.kind, exit_.length, exit_.vector = ExitKind.SYSTEM_CALL, 2, SYSCALL
            self._handler(exit_)
        except BaseException as error:
            self._fail(error)
        registers.rip = (registers.rip - 2) & 0xFFFF_FFFF_FFFF_FFFF

    def _on_system_enter(self, _engine: int, _user: int) -> None:
        """In 64-bit mode SYSENTER is no instruction of the processor shown to guests: #UD."""
        registers = self.registers
        try:
            exit_ = self._exit
            if registers.in_64_bit_mode:
                exit_.kind, exit_.vector, exit_.error = ExitKind.FAULT, _UD, 0
            else:
                exit_.kind, exit_.length, exit_.vector = ExitKind.SYSTEM_CALL, 2, SYSENTER
            self._handler(exit_)
        except BaseException as error:
            self._fail(error)
        registers.rip = (registers.rip - 2) & 0xFFFF_FFFF_FFFF_FFFF

    def _on_identify(self, _engine: int, _user: int) -> int:
        exit_ = self._exit
        exit_.refused = False
        skipped = self._skip(ExitKind.IDENTIFY)
        if exit_.refused:
            exit_.refused = False
            self._refuse(_GP)
        return skipped

    def _on_time_stamp(self, _engine: int, _user: int) -> int:
        return self._skip(ExitKind.TIME_STAMP)

    def _on_time_stamp_and_processor(self, _engine: int, _user: int) -> int:
        """RDTSCP is no instruction of the processor shown to guests, as CPUID says: #UD."""
        if self._handler is not _ignore:
            self._refuse(_UD)
        return 1

    def _skip(self, kind: ExitKind) -> int:
        """Hand up an instruction that the engine steps over afterwards."""
        try:
            self._exit.kind, self._exit.length = kind, 2
            self._inside = True
            self._handler(self._exit)
            self._inside = False
        except BaseException as error:
            self._fail(error)
        return 1

    # -- failures -------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """An exception must not cross the C frames: keep it for `run`, and stop."""
        self._inside = False
        if self._failure is None:
            self._failure = error
        self._handler = _ignore
        self.library.uc_emu_stop(self.handle)

    def _message(self, status: int) -> str:
        return str(self.library.uc_strerror(status).decode())

    def _check(self, status: int, what: str) -> None:
        if status:
            raise EngineMissing(f"the unicorn engine {what}: {self._message(status)}")


def _ignore(_exit: Exit) -> None:
    """The handler for what is left of a block whose end is of no interest any more."""


def _no_handler(_exit: Exit) -> None:
    raise RuntimeError("the engine runs without a handler")
