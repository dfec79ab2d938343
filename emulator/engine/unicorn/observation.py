"""Stopping Unicorn at an exact progress and watching what it executes, without changing what it does.

Room: `emulator/engine/unicorn`. A stop comes at the beginning of a block that was counted already: the count is taken
back, and the block counts when it begins again. Hooks are part of translated code, so that goes when they change.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from emulator.engine.pausing import Progress
from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.ports import QuietPorts

_FOREVER = 1 << 62


class Observed:
    """Of an engine, what `emulator.engine.pausing` asks for."""

    library: Any
    handle: int | None
    _remaining: memoryview
    _deadline: int
    """Progress at which the block counter stops the engine: the least of the two below."""
    _limit: memoryview
    """The same for native code, in its first word."""
    _wanted: int
    """The deadline that the driver has asked for."""
    _pause: int
    _paused_call: Callable[[], None]
    _watches: dict[int, Any]
    _ports: QuietPorts

    def _fail(self, error: BaseException) -> None:
        raise NotImplementedError

    def pause_at(self, progress: int | None, paused: Callable[[], None] = lambda: None) -> None:
        """Call `paused` once so many blocks are done, when the next one is about to begin; None: not any more."""
        now = self._deadline - self._remaining[0]
        self._paused_call = paused
        self._pause = _FOREVER if progress is None else max(progress, now) + 1
        self._deadline = self._limit[0] = min(self._wanted, self._pause)
        self._remaining[0] = self._deadline - now

    def _paused(self) -> None:
        """The block counter has stopped the engine for a pause: the block that it counted last was not begun."""
        self._remaining[0] += 1
        self.pause_at(None, self._paused_call)
        self._paused_call()

    @property
    def progress_state(self) -> Progress:
        """Blocks begun, and the deadline asked for."""
        return Progress(self._deadline - self._remaining[0], self._wanted)

    def set_progress(self, state: Progress) -> None:
        """Count on from another progress, to another deadline; a pause that was asked for is forgotten."""
        self._wanted = self._deadline = self._limit[0] = max(state.wanted, state.done)
        self._pause = _FOREVER
        self._remaining[0] = self._wanted - state.done

    @property
    def pending(self) -> tuple[int, ...]:
        """Writes to ports that are kept, behind the number of reads answered in a row."""
        return self._ports.pending

    def set_pending(self, pending: Sequence[int]) -> None:
        """Be where `pending` was."""
        if pending:
            self._ports.set_pending(pending)

    def observe_code(self, first: int, last: int, seen: Callable[[int], None]) -> int:
        """Call `seen` before every instruction at guest-virtual `first`..`last`."""

        def on_code(_engine: int, address: int, _size: int, _user: int) -> None:
            try:
                seen(address)
            except BaseException as error:
                self._fail(error)

        return self._observe(lib.HOOK_CODE, lib.CodeCallback(on_code), first, last)

    def observe_stores(self, first: int, last: int, seen: Callable[[int, int, int], None]) -> int:
        """Call `seen` before every store that begins at engine-physical `first`..`last`."""

        def on_store(_engine: int, _kind: int, address: int, size: int, value: int, _user: int) -> None:
            try:
                seen(address, size, value & (1 << 8 * size) - 1)
            except BaseException as error:
                self._fail(error)

        return self._observe(lib.HOOK_MEM_WRITE, lib.StoreCallback(on_store), first, last)

    def unobserve(self, number: int) -> None:
        """Observe no more."""
        if self._watches.pop(number, None) is not None:
            self.library.uc_hook_del(ctypes.c_void_p(self.handle), ctypes.c_size_t(number))
            self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_CODE)

    def _observe(self, kind: int, callback: Any, first: int, last: int) -> int:
        number = ctypes.c_size_t()
        self.library.uc_hook_add(
            ctypes.c_void_p(self.handle),
            ctypes.byref(number),
            ctypes.c_int(kind),
            callback,
            ctypes.c_void_p(0),
            ctypes.c_uint64(first),
            ctypes.c_uint64(last),
            ctypes.c_int(0),
        )
        self._watches[number.value] = callback
        self.library.uc_ctl(self.handle, lib.CONTROL_FLUSH_CODE)
        return number.value
