"""The host's time-stamp counter, which code at level 3 reads by RDTSC, and how fast it counts.

Room: `emulator/engine/kvm`. A few bytes of machine code read it in this process; its rate is that against the host's
clock, the better known the longer the process runs.
"""

import ctypes
import mmap
import time
from typing import Final

_CODE: Final = bytes.fromhex("0f31 48c1e220 4809d0 c3")
"""rdtsc; shl rdx, 32; or rax, rdx; ret."""
_LEAST: Final = 1_000_000
"""Nanoseconds that a rate is measured over at least."""

_page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
_page[: len(_CODE)] = _CODE
_anchor = ctypes.c_char.from_buffer(_page)
read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(_anchor))
"""The counter now."""
_first: Final = (read(), time.perf_counter_ns())


def look() -> tuple[int, float]:
    """The counter now, and counts in a nanosecond."""
    while True:
        count, now = read(), time.perf_counter_ns()
        if now - _first[1] >= _LEAST:
            return count, (count - _first[0]) / (now - _first[1])
