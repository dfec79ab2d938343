"""The Unicorn engine for MIPS32r2, of either byte order, behind the `MipsEngine` protocol.

Room: `emulator/engine/unicorn`. Translations come from flat tables that native code looks up; what is not there is
asked of the handler. Exceptions arrive with an exact PC, since a function of ours sits where Unicorn asks whether an
event is an invalid instruction. Every departure of Unicorn from the architecture is mended here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, Literal

import unicorn

from emulator.engine.exit import Exit, ExitKind, describe
from emulator.engine.mips import FETCH
from emulator.engine.protocol import Capabilities, Handler
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn import mips_state as state
from emulator.engine.unicorn import mips_timer
from emulator.engine.unicorn.counter import BlockCounter
from emulator.engine.unicorn.crash import Guarded
from emulator.engine.unicorn.load_checks import not_behind_loads
from emulator.engine.unicorn.mips_blocks import limit_blocks
from emulator.engine.unicorn.mips_native import CALLBACK, CPU, FILLS, HFLAGS, LOOP_EXIT, NativeCode
from emulator.engine.unicorn.mips_state import UnicornMipsRegisters, find_cpu
from emulator.engine.unicorn.native import Native
from emulator.engine.unicorn.observation import FOREVER, Observed
from emulator.engine.unicorn.status import no_handler
from emulator.errors import EngineCrashed, EngineMissing, GuestFault

_ARCH_MIPS, _MODE_32, _BIG_ENDIAN = 3, 4, 1 << 30
_GPR_0 = 2
_CPU_MODEL = 7
_24KF = 8
_TLB_TYPE = 12
_TLB_OF_24KF = 16
_NOWHERE = 0xFFFF_F001
"""The `until` that no guest reaches: odd. Unicorn looks up its page when a run ends."""
_NOWHERE_IN_MEMORY = 0x8000_0FF1
"""The same at full privilege, where what the lookup finds is taken for the end of the run."""
_LAST_PAGE = 0xFFFF_F000
_NO_MEMORY = frozenset({6, 7, 8, 12, 13, 14})
"""UC_ERR_READ_UNMAPPED and its like: physical memory that nothing backs."""
EXCEPTIONS = {12: 4, 13: 5, 15: 6, 16: 0x20, 17: 8, 18: 9, 19: 11, 20: 10, 21: 12, 22: 13, 23: 15, 24: 23} | {
    25: 1,
    26: 2,
    27: 3,
    28: 7,
    30: 22,
    31: 18,
    33: 26,
    34: 21,
    36: 20,
    37: 19,
}
"""QEMU's number of an exception -> its code in Cause (PRA, table 9.52)."""
_NUMBERS = {code: number for number, code in EXCEPTIONS.items()}
_WITH_ADDRESS = frozenset({1, 2, 3, 4, 5})
_COPROCESSOR = 11

FillCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p
)

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
    real_interrupt_flag=True,
    execute_only=True,
    exit_cost=1.5,
)


class UnicornMipsEngine(Observed, Native):
    """One emulated MIPS32 CPU. Use `registers` only while no guest code runs or inside the handler."""

    capabilities = CAPABILITIES

    def __init__(self, byte_order: str = "little") -> None:
        self.byte_order = byte_order
        self.order: Literal["little", "big"] = "big" if byte_order == "big" else "little"
        """`byte_order` for `int.from_bytes`."""
        self.library = lib.load()
        handle = ctypes.c_void_p()
        mode = _MODE_32 | (_BIG_ENDIAN if byte_order == "big" else 0)
        status = self.library.uc_open(_ARCH_MIPS, mode, ctypes.byref(handle))
        if status or handle.value is None:
            raise EngineMissing(f"the unicorn engine does not open for MIPS: {self._message(status)}")
        self.handle: int | None = handle.value
        self.library.uc_ctl(self.handle, lib.control_write(_CPU_MODEL, 1), ctypes.c_int(_24KF))
        cpu = self._find_cpu()
        self.registers = UnicornMipsRegisters(cpu + state.STATE)
        self._exception = memoryview((ctypes.c_char * 4).from_address(cpu + state.EXCEPTION_INDEX)).cast("B").cast("i")
        self._exit = Exit()
        self._handler: Handler = no_handler
        self._failure: BaseException | None = None
        self._stopped = False
        self._until = _NOWHERE_IN_MEMORY
        self._running = False
        """Unicorn looks up pages on its own account when it does not run; nothing is there."""
        self._callbacks: list[Any] = []
        self._watches = {}
        self._memories: list[tuple[int, memoryview, Any, int]] = []
        self._counter = BlockCounter(self.library)
        self._guarded = Guarded(self.library)
        self._remaining = self._counter.remaining
        self._deadline = self._wanted = self._pause = FOREVER
        self._limit = memoryview(bytearray(8)).cast("q")
        self._remaining[0] = FOREVER
        self._native = NativeCode()
        self._cpu = ctypes.c_void_p(cpu)
        suffix = "mips" if byte_order == "big" else "mipsel"
        limit_blocks(self.library, suffix)
        not_behind_loads(self.library, suffix)
        self._flush_page = self._function(f"tlb_flush_page_{suffix}", ctypes.c_void_p, ctypes.c_uint32)
        self._invalidate = self._function(
            f"tb_invalidate_phys_range_{suffix}", ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64
        )
        self._ram_address = self._function(f"qemu_ram_addr_from_host_{suffix}", ctypes.c_void_p, ctypes.c_void_p)
        self._ram_address.restype = ctypes.c_uint64
        loop_exit = self._function(f"cpu_loop_exit_{suffix}", ctypes.c_void_p)
        self._install_hooks(cpu, ctypes.cast(loop_exit, ctypes.c_void_p).value or 0)
        from emulator.engine.unicorn.mips_confirm import confirm

        confirm(self)

    def _find_cpu(self) -> int:
        """The CPU's address, found by what the public interface wrote into its registers."""
        values = [0] + [0x5E77_1A90 + number * 0x0103_0307 & 0xFFFF_FFFF for number in range(1, 32)]
        for number, value in enumerate(values):
            self.library.uc_reg_write(self.handle, _GPR_0 + number, ctypes.byref(ctypes.c_uint64(value)))
        return find_cpu(self.handle or 0, values)

    def _function(self, name: str, *arguments: Any) -> Any:
        function = getattr(self.library, name, None)
        if function is None:
            raise EngineMissing(f"the unicorn engine has no function {name}: install unicorn==2.1.4")
        function.argtypes = arguments
        function.restype = None
        return function

    # -- memory ---------------------------------------------------------------------------------

    def map_memory(self, physical: int, memory: memoryview) -> None:
        """Back physical addresses from `physical` on by `memory` (page-aligned, writable)."""
        pinned = (ctypes.c_char * memory.nbytes).from_buffer(memory)
        host = ctypes.addressof(pinned)
        status = self.library.uc_mem_map_ptr(self.handle, physical, memory.nbytes, lib.PROT_ALL, host)
        self._check(status, f"cannot map {memory.nbytes} bytes of memory at {physical:#x}")
        self._memories.append((physical, memory.cast("B"), pinned, self._ram_address(self.handle, host)))

    def unmap_memory(self, physical: int, memory: memoryview) -> None:
        """Take back a `map_memory`."""
        status = self.library.uc_mem_unmap(self.handle, physical, memory.nbytes)
        self._check(status, f"cannot unmap {memory.nbytes} bytes of memory at {physical:#x}")
        self._memories = [known for known in self._memories if known[0] != physical]

    def frame_at(self, physical: int) -> memoryview:
        """The 4096 bytes of memory around a physical address. Raises ValueError where there is none."""
        frame = self._frame(physical)
        if frame is None:
            raise ValueError(f"there is no memory at {physical:#x}")
        return frame

    def _frame(self, physical: int) -> memoryview | None:
        """The 4096 bytes of memory around a physical address."""
        for start, memory, _pinned, _ram in self._memories:
            offset = (physical & ~0xFFF) - start
            if 0 <= offset < memory.nbytes:
                return memory[offset : offset + 4096]
        return None

    # -- views ----------------------------------------------------------------------------------

    def use_views(self, enabled: bool) -> None:
        """Translate by the views, or by the processor's own segments and TLB."""
        self.library.uc_ctl(self.handle, lib.control_write(_TLB_TYPE, 1), ctypes.c_int(int(enabled)))
        self._until = _NOWHERE if enabled else _NOWHERE_IN_MEMORY
        # LL asks the processor's own segments for its address, whatever translates it: none of them is mapped now.
        for name, own in (("SegCtl0", 0x0020_0010), ("SegCtl1", 0x0003_0002), ("SegCtl2", 0x003A_043A)):
            self.registers.set_cp0(name, 0x0070_0070 if enabled else own)
        self.flush_tlb()

    def map_page(self, view: int, address: int, physical: int, rights: int) -> None:
        """Enter the page at `address` into a view."""
        self._native.tables[view][address >> 12] = physical | rights

    def unmap_page(self, view: int, address: int) -> None:
        """Take a page out of a view."""
        table = self._native.tables[view]
        if table[address >> 12]:
            table[address >> 12] = 0
            self._flush_page(self._cpu, address & ~0xFFF)

    def mapped(self, view: int, address: int) -> int:
        """Physical address and rights of a page, or 0."""
        return self._native.tables[view][address >> 12]

    def view_memory(self, view: int) -> memoryview:
        """A view as memory: a word a page."""
        return self._native.tables[view]

    def clear_view(self, view: int, first: int = 0, end: int = 1 << 32) -> None:
        """Take all pages from `first` up to `end` out of a view."""
        self._native.clear(view, first >> 12, end >> 12)
        self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_TLB)

    @property
    def fills(self) -> int:
        """Misses of the emulated TLB that the tables answered, since the engine was opened."""
        return self._native.words[FILLS]

    # -- running --------------------------------------------------------------------------------

    def run(self, handler: Handler) -> None:
        """Run until the handler calls `stop`. An exception raised by the handler propagates."""
        self._handler = handler
        self._stopped = False
        exit_, registers = self._exit, self.registers
        start, handle, slot = self._guarded.start, self.handle, self._guarded.slot
        while not self._stopped:
            self._running = True
            status = start(handle, registers.pc, self._until, 0, 0, slot)
            self._running = False
            if status < 0:
                raise EngineCrashed.by(self._guarded.note(status), registers.pc, describe(exit_))
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self._stopped:
                return
            if self._remaining[0] <= 0:
                if self._deadline == self._pause:
                    self._paused()  # with a branch under way it stays so
                    continue
                if registers.in_delay_slot:
                    registers.jump(registers.restart_address)
                exit_.kind = ExitKind.BUDGET
            elif status in _NO_MEMORY:
                exit_.kind, exit_.address = ExitKind.UNBACKED, registers.pc
            elif status:
                raise GuestFault(f"the engine lost the guest at {registers.pc:#x}: {self._message(status)}")
            else:
                exit_.kind = ExitKind.HALT
            handler(exit_)

    def stop(self) -> None:
        """End `run` after the handler returns."""
        self._stopped = True
        if self._running:
            self.library.uc_emu_stop(self.handle)

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None:
        """Forget what the emulated TLB holds; there are no page tables to tell the `changes` of."""
        self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_TLB)

    def frame_changed(self, physical: int, size: int) -> None:
        """Forget code made of `size` bytes at a physical address."""
        for start, memory, _pinned, ram in self._memories:
            offset = physical - start
            if 0 <= offset < memory.nbytes:
                self._invalidate(self.handle, ram + offset, ram + offset + size)

    def code_changed(self, address: int, size: int) -> None:
        """The host changed bytes that may have been executed at an address mapped in the view under way."""
        view = self.registers.mode
        for page in range(address & ~0xFFF, address + size, 4096):
            entry = self.mapped(view, page)
            if entry:
                self.frame_changed(entry & ~0xFFF, 4096)

    def flush_code(self) -> None:
        """Forget all translated code. Not within a block."""
        self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_CODE)

    def withhold_counters(
        self,
        read_count: Callable[[], int],
        write_count: Callable[[int], None],
        write_compare: Callable[[int], None],
        random: Callable[[bool], int],
        tlb_size: int,
    ) -> None:
        """Leave Count, Compare and Random to the caller (`emulator.engine.mips`)."""
        suffix = "mips" if self.byte_order == "big" else "mipsel"
        counters = mips_timer.Counters(read_count, write_count, write_compare, random, self._fail)
        mips_timer.attach(self.library, suffix, self.registers.address, counters)
        mips_timer.set_tlb_size(self.registers.address, _TLB_OF_24KF, tlb_size)
        self._interrupt_watch = mips_timer.InterruptWatch(self._come_back)
        self._hook(lib.HOOK_BLOCK, ctypes.c_void_p(self._interrupt_watch.callback), user=self.registers.address)

    def _come_back(self, *_: int) -> None:
        """A BUDGET exit before the block that begins."""
        self._deadline = self.progress
        self._remaining[0] = 0
        self.library.uc_emu_stop(self.handle)

    def close(self) -> None:
        """Release the CPU. Idempotent."""
        if self.handle is not None:
            mips_timer.detach(self.registers.address)
            self._guarded.close()
            if not self._guarded.crashed:
                self.library.uc_close(self.handle)
            self.handle = None

    # -- hooks ----------------------------------------------------------------------------------

    def _install_hooks(self, cpu: int, loop_exit: int) -> None:
        """Native code for translation, preemption and exceptions, and the two callbacks behind it."""
        fill = FillCallback(self._make_fill_callback())
        self._callbacks.append(fill)
        words = self._native.words
        words[HFLAGS] = self.registers.hflags_address
        words[CALLBACK] = ctypes.cast(fill, ctypes.c_void_p).value or 0
        words[CPU], words[LOOP_EXIT] = cpu, loop_exit
        slot = ctypes.c_uint64.from_address((self.handle or 0) + state.STOP_INTERRUPT)
        slot.value = self._native.stop_interrupt
        self._hook(lib.HOOK_INSN_INVALID, lib.InvalidCallback(self._make_fault_callback()))
        self._hook(unicorn.UC_HOOK_TLB_FILL, ctypes.c_void_p(self._native.fill), user=self._native.argument)
        self._hook(lib.HOOK_BLOCK, ctypes.c_void_p(self._counter.callback), user=self._counter.argument)

    def _make_fault_callback(self) -> Callable[[int, int], int]:
        """The hot path: a closure over everything it touches."""
        exit_, registers, number, words = self._exit, self.registers, self._exception, self.registers.words
        error_at, bad_address = state._ERROR_CODE, state.CP0["BadVAddr"] // 4
        fault, codes, with_address = ExitKind.FAULT, EXCEPTIONS, _WITH_ADDRESS
        at = (self.handle or 0) + state.INVALID_ERROR
        ending = memoryview((ctypes.c_char * 4).from_address(at)).cast("B").cast("I")

        def on_fault(_engine: int, _user: int) -> int:
            try:
                code = codes.get(number[0])
                if code is None or self._failure is not None:
                    return 0
                if code in with_address:
                    ending[0] = 0  # a miss of the processor's own TLB is noted as an error of the run, and is none
                exit_.kind = fault
                exit_.vector = code
                exit_.error = words[error_at]
                exit_.address = 0  # an exit is used again: the last exception's is still in it
                if code in with_address:
                    exit_.error &= 1
                    exit_.address = words[bad_address]
                self._handler(exit_)
            except BaseException as failure:
                self._fail(failure)
                return 0
            return 1

        del registers
        return on_fault

    def _make_fill_callback(self) -> Callable[[int, int, int, int, int], int]:
        """A page that the view under way does not have, or not with this right."""
        exit_, registers, words, tables = self._exit, self.registers, self.registers.words, self._native.tables
        bad_address, error_at = state.CP0["BadVAddr"] // 4, state._ERROR_CODE
        miss = ExitKind.MISS

        def on_fill(_engine: int, address: int, kind: int, result: int, _user: int) -> int:
            try:
                address &= 0xFFFF_FFFF
                access = kind - 16
                if not self._running or (address == _LAST_PAGE and access == FETCH):
                    exit_.vector, exit_.error, exit_.refused = 4, 0, True
                else:
                    exit_.kind, exit_.address, exit_.error, exit_.refused = miss, address, access, False
                    self._handler(exit_)
                entry = tables[registers.mode][address >> 12]
                if not exit_.refused and entry >> access & 1:
                    target = ctypes.cast(result, ctypes.POINTER(ctypes.c_uint64))
                    target[0] = entry & ~0xFFF
                    ctypes.cast(result + 8, ctypes.POINTER(ctypes.c_uint32))[0] = entry & 7
                    if access != FETCH:
                        registers.words[_FLAGS] &= _NO_BRANCH
                    return 1
                if not exit_.refused:
                    raise GuestFault(f"the page at {address:#x} was neither mapped nor refused")
                words[bad_address] = self._exact(address, access)
                words[error_at] = exit_.error
                self._exception[0] = _NUMBERS[exit_.vector]
            except BaseException as failure:
                self._fail(failure)
                self._exception[0] = _NUMBERS[4]
            return 0

        return on_fill

    def _exact(self, page: int, access: int) -> int:
        """The address within `page` that the instruction at PC accesses; Unicorn tells only the page."""
        registers = self.registers
        pc = registers.pc
        if access == FETCH:
            return pc
        entry = self._native.tables[registers.mode][pc >> 12]
        frame = self._frame(entry & ~0xFFF) if entry else None
        if frame is None:
            return page
        word = int.from_bytes(frame[pc & 0xFFC : (pc & 0xFFC) + 4], self.order)
        base = registers.gpr[word >> 21 & 31]
        indexed = word >> 26 == _COP1X
        offset = registers.gpr[word >> 16 & 31] if indexed else (word & 0xFFFF) - ((word & 0x8000) << 1)
        exact = base + offset & 0xFFFF_FFFF
        return exact if exact & ~0xFFF == page else page

    # -- failures -------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """An exception must not cross the C frames: keep it for `run`, and stop."""
        if self._failure is None:
            self._failure = error
        self.library.uc_emu_stop(self.handle)


_COP1X = 0x13
_FLAGS = 0x2B94 // 4
_NO_BRANCH = ~state.BRANCH & 0xFFFF_FFFF
