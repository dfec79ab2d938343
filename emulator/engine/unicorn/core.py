"""What the Unicorn engines of several instruction sets share: opening, memory, hooks, slices, failures, the run loop.

Room: `emulator/engine/unicorn`. A subclass says which processor, installs its hooks and says what an end of the
emulation means. Progress is counted in basic blocks by native code (`counter`), never by `count=`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import unicorn

from emulator.engine.exit import Exit, ExitKind, describe
from emulator.engine.protocol import Handler
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.breakpoints import Breakpoints
from emulator.engine.unicorn.counter import BlockCounter
from emulator.engine.unicorn.crash import Guarded
from emulator.engine.unicorn.native import Native
from emulator.engine.unicorn.observation import FOREVER, Observed
from emulator.engine.unicorn.status import ignore, no_handler
from emulator.errors import EngineCrashed, EngineMissing, GuestFault

CONTROL_CPU_MODEL = lib.control_write(unicorn.UC_CTL_CPU_MODEL, 1)
CONTROL_PAGE_SIZE = lib.control_write(unicorn.UC_CTL_UC_PAGE_SIZE, 1)
NO_CODE = frozenset({8, 14})
"""UC_ERR_FETCH_UNMAPPED and UC_ERR_FETCH_PROT: there is no memory, or a device, where it would fetch."""


class UnicornCpu(Observed, Native):
    """One emulated CPU of any instruction set. Subclasses set `nowhere` and `_start_address`."""

    nowhere = (1 << 64) - 2
    """The `until` that no guest reaches."""

    def __init__(self, architecture: int, mode: int, model: int | None = None, page_size: int = 0) -> None:
        self.library = lib.load()
        handle = ctypes.c_void_p()
        status = self.library.uc_open(architecture, mode, ctypes.byref(handle))
        if status or handle.value is None:
            raise EngineMissing(f"the unicorn engine does not open: {self._message(status)}")
        self.handle: int | None = handle.value
        if model is not None:
            self._check(self.library.uc_ctl(self.handle, CONTROL_CPU_MODEL, ctypes.c_int(model)), "lacks the CPU model")
        if page_size:
            # Before anything else: where pages may be smaller, Unicorn caches translations in the smallest pieces.
            status = self.library.uc_ctl(self.handle, CONTROL_PAGE_SIZE, ctypes.c_int(page_size))
            self._check(status, f"does not take pages of {page_size} bytes")
        self._exit = Exit()
        self._handler: Handler = no_handler
        self._failure: BaseException | None = None
        self._stopped = False
        self._memories = []
        self._callbacks = []
        self._watches = {}
        self._counter = BlockCounter(self.library)
        self._guarded = Guarded(self.library)
        self._breakpoints = Breakpoints(self.library, self.handle, self._fail)
        self._remaining = self._counter.remaining
        self._deadline = self._wanted = self._pause = FOREVER
        self._limit = memoryview(bytearray(8)).cast("q")
        self._remaining[0] = FOREVER
        self._inside = False
        """Unicorn runs: only then is it told to stop, since it would take that for a stop of its next run."""

    # -- running --------------------------------------------------------------------------------

    def _start_address(self) -> int:
        """Where the emulation begins, as `uc_emu_start` wants it."""
        raise NotImplementedError

    def _address(self) -> int:
        """Address of the next instruction, for `Exit.address` and messages."""
        return self._start_address()

    def _settle(self) -> None:
        """Called whenever the emulation has come back, before anything else."""

    def run(self, handler: Handler) -> None:
        """Run until the handler calls `stop`. An exception raised by the handler propagates."""
        self._handler = handler
        self._stopped = False
        exit_ = self._exit
        start, handle, nowhere, slot = self._guarded.start, self.handle, self.nowhere, self._guarded.slot
        while not self._stopped:
            self._inside = True
            status = start(handle, self._start_address(), nowhere, 0, 0, slot)
            self._inside = False
            if status < 0:
                raise EngineCrashed.by(self._guarded.note(status), self._address(), describe(exit_))
            if self._paused_here():
                continue
            self._settle()
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self._stopped:
                return
            if self._breakpoints.hit >= 0:
                exit_.kind, exit_.address = ExitKind.BREAKPOINT, self._breakpoints.hit
                self._breakpoints.hit = -1
            elif self._remaining[0] <= 0:
                exit_.kind = ExitKind.BUDGET
            elif status in NO_CODE:
                exit_.kind, exit_.address = ExitKind.UNBACKED, self._address()
            elif status:
                raise GuestFault(f"the engine lost the guest at {self._address():#x}: {self._message(status)}")
            else:
                exit_.kind = ExitKind.HALT
            handler(exit_)

    def _paused_here(self) -> bool:
        """Whether the engine came back for a pause and nothing else: whoever asked for it is called then."""
        if self._remaining[0] > 0 or self._deadline != self._pause or self._failure is not None or self._stopped:
            return False
        if self._breakpoints.hit >= 0:
            return False
        self._paused()
        return True

    def stop(self) -> None:
        """End `run` after the handler returns."""
        self._stopped = True
        self._stop()

    def _stop(self) -> None:
        if self._inside:
            self.library.uc_emu_stop(self.handle)

    def break_at(self, addresses: Sequence[int], asked: Callable[[int], bool], everywhere: bool = False) -> None:
        """From now on call `asked` before an instruction at one of `addresses`, or before every one; True ends in a
        BREAKPOINT exit."""
        self._breakpoints.choose(addresses, asked, everywhere)

    # -- translation state ----------------------------------------------------------------------

    def flush_tlb(self, changes: Sequence[tuple[int, int]] | None = None) -> None:
        """Forget all cached translations of addresses."""
        self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_TLB)

    def code_changed(self, address: int, size: int) -> None:
        """The host changed bytes that may have been executed at mapped guest-virtual `address`."""
        self.library.uc_ctl(
            self.handle, lib.CONTROL_REMOVE_CODE, ctypes.c_uint64(address), ctypes.c_uint64(address + size)
        )

    def flush_code(self) -> None:
        """Forget all translated code."""
        self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_CODE)

    def close(self) -> None:
        """Release the CPU. Idempotent."""
        if self.handle is not None:
            self._guarded.close()
            if not self._guarded.crashed:
                self.library.uc_close(self.handle)
            self.handle = None

    # -- hooks and failures ---------------------------------------------------------------------

    def _count_blocks(self) -> None:
        """Install the native block counter."""
        self._hook(lib.HOOK_BLOCK, ctypes.c_void_p(self._counter.callback), user=self._counter.argument)

    def _fail(self, error: BaseException) -> None:
        """An exception must not cross the C frames: keep it for `run`, and stop."""
        if self._failure is None:
            self._failure = error
        self._handler = ignore
        self._stop()
