"""The firmware's power interface of Arm boards (PSCI 1.1, Arm DEN 0022) for one CPU.

Room: `emulator/devices`. Guests call it by HVC with a function in the first register (SMC Calling Convention, DEN
0028); whoever drives the CPU hands the call here. It powers the board off and resets it.
"""

from collections.abc import Callable, Sequence
from typing import Final

VERSION, CPU_SUSPEND, CPU_OFF, CPU_ON, AFFINITY_INFO, MIGRATE, MIGRATE_TYPE = range(0x8400_0000, 0x8400_0007)
SYSTEM_OFF, SYSTEM_RESET, FEATURES = 0x8400_0008, 0x8400_0009, 0x8400_000A
WIDE: Final = 0x4000_0000
"""Set in the functions that take 64-bit arguments: suspend, on, affinity."""

VERSION_1_1: Final = 0x0001_0001
SUCCESS, NOT_SUPPORTED, INVALID_PARAMETERS, DENIED, ALREADY_ON = 0, -1, -2, -3, -4
NO_TRUSTED_SYSTEM: Final = 2
_ON = 0

_WITH_WIDE = (CPU_SUSPEND, CPU_ON, AFFINITY_INFO)
_KNOWN = frozenset(
    (VERSION, CPU_OFF, MIGRATE_TYPE, SYSTEM_OFF, SYSTEM_RESET, FEATURES, *_WITH_WIDE, *(f | WIDE for f in _WITH_WIDE))
)


class Psci:
    """The interface. `power_off` and `reset` are the board's."""

    def __init__(self, power_off: Callable[[], None], reset: Callable[[], None]) -> None:
        self._power_off = power_off
        self._reset = reset

    def call(self, function: int, arguments: Sequence[int]) -> int:
        """The result of a call, signed. `arguments` are those behind the function, at least one.

        CPU_SUSPEND returns at once, as a power-down that an interrupt prevented may.
        """
        function &= 0xFFFF_FFFF
        if function == VERSION:
            return VERSION_1_1
        if function == SYSTEM_OFF:
            self._power_off()
            return SUCCESS
        if function == SYSTEM_RESET:
            self._reset()
            return SUCCESS
        if function == FEATURES:
            return SUCCESS if arguments[0] & 0xFFFF_FFFF in _KNOWN else NOT_SUPPORTED
        if function == MIGRATE_TYPE:
            return NO_TRUSTED_SYSTEM
        if function == CPU_OFF:
            return DENIED  # the only CPU
        plain = function & ~WIDE
        if plain == CPU_SUSPEND:
            return SUCCESS
        if plain in (CPU_ON, AFFINITY_INFO):
            return (ALREADY_ON if plain == CPU_ON else _ON) if arguments[0] == 0 else INVALID_PARAMETERS
        return NOT_SUPPORTED
