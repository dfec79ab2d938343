"""Where an engine keeps its processor's state: found by a pattern that was written into the registers.

Room: `emulator/engine/unicorn`. The registers are written through the library's own functions, and this process's
memory is looked through from the engine's structure on; nothing is taken for granted of where that leads.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from emulator.errors import EngineMissing


def read_memory(descriptor: int, address: int, size: int) -> bytes:
    """Up to `size` bytes of this process at `address`; stops at the first unreadable page."""
    parts = []
    while size > 0:
        step = min(size, 4096 - (address & 4095))
        try:
            parts.append(os.pread(descriptor, step, address))
        except (OSError, OverflowError):
            break
        address += step
        size -= step
    return b"".join(parts)


def find_pattern(handle: int, pattern: bytes, lives: Callable[[int, int], bool]) -> int:
    """Host address of the bytes `pattern` in an object that the engine's structure points to. `lives` is given a
    descriptor of this process's memory and an address, and says that it is no stale copy. Raises `EngineMissing`."""
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        pointers: tuple[int, ...] = struct.unpack("<512Q", read_memory(descriptor, handle, 4096).ljust(4096, b"\0"))
        for pointer in dict.fromkeys(pointers):
            if pointer < 0x10000 or pointer >> 47:
                continue
            contents = read_memory(descriptor, pointer, 0x20000)
            found = contents.find(pattern)
            while found >= 0:
                if lives(descriptor, pointer + found):
                    return pointer + found
                found = contents.find(pattern, found + 1)
    finally:
        os.close(descriptor)
    raise EngineMissing("the unicorn engine keeps its CPU state where retrap does not find it: install unicorn==2.1.4")
