"""Data breakpoints: an exit behind the instruction that accesses one of a few places in memory.

Room: `emulator/engine/unicorn`. Unicorn's processor has debug registers and no data breakpoints. While there are places
to watch, a hook of memory accesses notes those that meet one, and native code looks before every instruction whether
one was noted. What loads SS holds a debug exception back for one instruction (SDM 3A, 6.8.3).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from emulator.engine.unicorn import library as lib

_WIDEST = 64
"""Bytes of the widest access."""


class DataBreakpoints:
    """Those of one engine."""

    def __init__(
        self, library: Any, handle: int, stop: Callable[[], None], fail: Callable[[BaseException], None]
    ) -> None:
        """`stop` ends the emulation before the instruction that is about to begin."""
        self._library, self._handle, self._stop, self._fail = library, handle, stop, fail
        self.places: tuple[tuple[int, int, bool], ...] = ()
        self.word = memoryview(bytearray(16))
        """Changes whenever an access was noted, and stands still otherwise."""
        self._met = 0
        self._held = False
        self.hit = 0
        """Bits of the places for which the emulation was stopped."""
        self._hooks: list[int] = []
        self._callback = lib.MemoryCallback(self._accessed)

    def choose(self, places: Sequence[tuple[int, int, bool]]) -> None:
        """Have these places, and no others. Translated code is the caller's to forget."""
        for number in self._hooks:
            self._library.uc_hook_del(ctypes.c_void_p(self._handle), ctypes.c_size_t(number))
        self._hooks.clear()
        self.places = tuple(places)
        self.forget()
        for address, size, _reads in places:
            if not size:
                continue
            hook = ctypes.c_size_t()
            self._library.uc_hook_add(
                ctypes.c_void_p(self._handle),
                ctypes.byref(hook),
                ctypes.c_int(lib.HOOK_MEMORY),
                self._callback,
                None,
                ctypes.c_uint64(max(0, address - _WIDEST + 1)),
                ctypes.c_uint64(address + size - 1),
                ctypes.c_int(0),
            )
            self._hooks.append(hook.value)

    def _accessed(self, _engine: int, kind: int, address: int, size: int, _value: int, _user: int) -> int:
        """An access to engine-physical `address`."""
        try:
            for number, (first, length, reads) in enumerate(self.places):
                if address < first + length and first < address + size and (reads or kind == lib.MEMORY_WRITE):
                    self._met |= 1 << number
                    self._note()
        except BaseException as error:
            self._fail(error)
        return 0

    def _note(self) -> None:
        self.word[0] = self.word[0] + 1 & 0xFF

    def look(self, shadow: bool) -> None:
        """An instruction is about to begin, after something was noted; `shadow`: the one before it loaded SS."""
        if not self._met:
            return
        if shadow and not self._held:
            self._held = True
            self._note()
            return
        self.hit, self._met, self._held = self._met, 0, False
        self._stop()

    def forget(self) -> None:
        """What was noted and not reported is no matter any more."""
        self._met, self._held, self.hit = 0, False, 0


__all__ = ["DataBreakpoints"]
