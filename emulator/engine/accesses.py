"""What an engine can do whose capabilities say `data_breakpoints`: tell of accesses to memory, and of instructions.

Room: `emulator/engine`. For the debug registers of a deprivileged guest, which are not the processor's own.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from emulator.engine.x86 import X86Engine


class AccessEngine(X86Engine, Protocol):
    """An x86 CPU that watches accesses."""

    def break_on_data(self, places: Sequence[tuple[int, int, bool]]) -> None:
        """From now on an access to one of these places (engine-physical address, bytes, whether reads count as well as
        writes) gives a FAULT exit of vector 1 behind its instruction, or behind the next one where that one loads SS;
        its `error` has bit n for place n. Slow while there are any. Fetches do not count."""
        ...

    def forget_accesses(self) -> None:
        """The access under way is told of no more: its instruction has faulted, or the next one left for a handler."""
        ...

    def break_at(self, addresses: Sequence[int], asked: Callable[[int], bool], everywhere: bool = False) -> None:
        """From now on call `asked` before an instruction at one of these guest-virtual addresses, or before every one;
        True ends in a BREAKPOINT exit."""
        ...
