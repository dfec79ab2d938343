"""What the shared page shows to fixups that do without an exit what exits elsewhere: time, and a quiet port.

Room: `paravirt/modes/x86`, for engines whose exits are dear (`paravirt.modes.WITHOUT_EXIT`). Everything is the
hypervisor's to write; what a guest writes there changes nothing but what that guest is shown.
"""

from collections.abc import Callable
from typing import Final

from emulator.board.pc import COM1, Pc
from emulator.clock import Clock
from emulator.devices.ns16550 import LSR
from emulator.engine.x86 import X86Engine
from paravirt import abi

_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_UNIT: Final = 1 << 32
_CREEP: Final = 64
"""So much slower virtual time is shown while what was shown is ahead of the clock."""
_MOST_AHEAD: Final = 1_000_000_000
"""Nanoseconds by which the time that was shown can be ahead of the clock: what is beyond was not shown but written."""
_BASE, _COUNTER, _SCALE, _SEEN = (
    offset >> 3 for offset in (abi.TIME_BASE, abi.TIME_COUNTER, abi.TIME_SCALE, abi.TIME_SEEN)
)
_PORT, _VALUE = abi.QUIET_PORT >> 3, abi.QUIET_VALUE >> 3


class ShownTime:
    """Virtual time as RDTSC without an exit shows it.

    The clock counts the processor time of the thread that runs the guest, the counter goes on while others run. So now
    and then both are looked at: what was shown may be ahead then, and goes on slowly until the clock has come after.
    """

    def __init__(self, engine: X86Engine, clock: Clock, shared: memoryview) -> None:
        self._counter, self._clock, self._shared = engine.counter, clock, shared

    def look(self) -> int:
        """Show the time as it is now; it is returned."""
        shared, now = self._shared, self._clock.now()
        seen = shared[_SEEN]
        if not seen - now < _MOST_AHEAD:
            seen = now
        counter, rate = self._counter()
        shared[_BASE] = shown = max(now, seen)
        shared[_COUNTER] = -counter & _MASK
        shared[_SCALE] = max(1, int(_UNIT / rate / (_CREEP if seen > now else 1)))
        return shown

    def read(self) -> int:
        """What RDTSC gives by an exit: no less than any gave without."""
        shown = self.look()
        self._shared[_SEEN] = shown
        return shown


class QuietPort:
    """The line status of the serial port, where a read of it does nothing."""

    def __init__(self, board: Pc, shared: memoryview, within: Callable[[], bool]) -> None:
        """`within` says whether the guest stands in a fixup, which has perhaps read the port but not yet the value."""
        self._shared, self._within = shared, within
        board.com1.watch_quiet(self._changed)

    def _changed(self, status: int, _posts: bool) -> None:
        shared = self._shared
        shared[_PORT] = -(COM1 + LSR if status >= 0 else abi.NO_PORT) & 0xFFFF
        if status >= 0:
            shared[_VALUE] = status
        elif not self._within():
            shared[_VALUE] = 0xFF
