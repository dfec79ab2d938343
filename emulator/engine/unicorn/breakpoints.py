"""Breakpoints of the processor: an exit before an instruction at one of some addresses, wherever else it costs nothing.

Room: `emulator/engine/unicorn`. For deprivileged guests, whose debug registers are not the processor's own. A hook of
single instructions is part of the translated code of its address alone, and stops the emulation exactly before it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from emulator.engine.unicorn import library as lib


class Breakpoints:
    """Those of one engine."""

    def __init__(self, library: Any, handle: int, fail: Callable[[BaseException], None]) -> None:
        self._library, self._handle, self._fail = library, handle, fail
        self._hooks: list[int] = []
        self._asked: Callable[[int], bool] = lambda _address: False
        self._callback = lib.CodeCallback(self._reached)
        self.hit = -1
        """Address of the instruction that the emulation was stopped before; -1: none."""

    def _reached(self, _engine: int, address: int, _size: int, _user: int) -> None:
        try:
            if self._asked(address):
                self.hit = address
                self._library.uc_emu_stop(self._handle)
        except BaseException as error:
            self._fail(error)

    def choose(self, addresses: Sequence[int], asked: Callable[[int], bool], everywhere: bool) -> None:
        """Have these addresses, and no others; `everywhere`: all there are."""
        self._asked = asked
        for number in self._hooks:
            self._library.uc_hook_del(ctypes.c_void_p(self._handle), ctypes.c_size_t(number))
        self._hooks.clear()
        for first, last in [(1, 0)] if everywhere else [(address, address) for address in addresses]:
            hook = ctypes.c_size_t()
            self._library.uc_hook_add(
                ctypes.c_void_p(self._handle),
                ctypes.byref(hook),
                ctypes.c_int(lib.HOOK_CODE),
                self._callback,
                None,
                ctypes.c_uint64(first),
                ctypes.c_uint64(last),
                ctypes.c_int(0),
            )
            self._hooks.append(hook.value)
        self._library.uc_ctl(self._handle, lib.CONTROL_FLUSH_CODE)  # hooks are part of translated code
