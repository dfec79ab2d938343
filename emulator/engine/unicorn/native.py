"""An engine as Unicorn's C library has it: memory and devices mapped, hooks installed, whatever the instruction set.

Room: `emulator/engine/unicorn`. What is handed to C is kept alive here; what fails in a callback goes to `_fail`, since
an exception must not cross the C frames.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from emulator.engine.unicorn import library as lib
from emulator.engine.unicorn.status import Statuses


class Native(Statuses):
    """What all of Unicorn's processors share. Subclasses open one."""

    handle: int | None
    _memories: list[Any]
    """What is mapped, so that it stays."""
    _callbacks: list[Any]
    """What C calls."""

    def _fail(self, error: BaseException) -> None:
        """Keep what a callback has raised for `run`, and stop."""
        raise NotImplementedError

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

    def _hook(
        self, kind: int, callback: Any, instruction: int = 0, user: int = 0, begin: int = 1, end: int = 0
    ) -> None:
        """Call `uc_hook_add`, over the whole address space unless told, and keep the callback alive."""
        number = ctypes.c_size_t()
        status = self.library.uc_hook_add(
            ctypes.c_void_p(self.handle),
            ctypes.byref(number),
            ctypes.c_int(kind),
            callback,
            ctypes.c_void_p(user),
            ctypes.c_uint64(begin),
            ctypes.c_uint64(end),
            ctypes.c_int(instruction),
        )
        self._check(status, f"cannot install hook {kind:#x}")
        self._callbacks.append(callback)
