"""A few bytes of machine code on the host's own processor, as the yardstick of what an engine makes of the same bytes.

Room: `bt`, measurements. It runs what is given to it in this process: constants of this project only.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Sequence


class HostCode:
    """Code that is called as a function without a result; it may use RAX, RCX, RDX, RSI, RDI and R8 to R11."""

    def __init__(self, code: bytes) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(code)
        self._pinned = (ctypes.c_char * mmap.PAGESIZE).from_buffer(self._memory)
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.addressof(self._pinned))

    def seconds(self, argument: int = 0) -> float:
        """Processor time of one call; `argument` goes in RDI."""
        begin = time.thread_time_ns()
        self._call(argument)
        return (time.thread_time_ns() - begin) / 1e9


def median(values: Sequence[float]) -> float:
    """The middle one of an odd number of values, or the lower of the two."""
    return sorted(values)[(len(values) - 1) // 2]
