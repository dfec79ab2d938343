"""The debug exit register: a guest ends its own run with a number, as with QEMU's isa-debug-exit.

Room: `emulator/devices`. A write of 1, 2 or 4 bytes is the guest's status; the board decides what
ending a run means. The register reads as 0.
"""

from collections.abc import Callable


class DebugExit:
    """`leave` is called with the value written."""

    name = "debug-exit"

    def __init__(self, leave: Callable[[int], None]) -> None:
        self._leave = leave

    def read(self, offset: int, size: int) -> int:
        """0."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """End the run with status `value`; a write into the register's upper bytes is ignored."""
        if offset == 0:
            self._leave(value & ((1 << 8 * size) - 1))

    @property
    def state(self) -> None:
        """The register keeps nothing."""
        return None

    def restore(self, state: None) -> None:
        """The register keeps nothing."""
