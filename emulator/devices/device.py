"""What a device is: registers at offsets, a plain state, and lines to the rest of the board.

Room: `emulator/devices`. A device knows only offsets in its own window; where the window lies,
and who listens to its interrupt line, is the board's business. Its `state` is a frozen value that
can be saved, hashed and compared (design, decision 9).
"""

from collections.abc import Callable
from typing import Any, Protocol

InterruptLine = Callable[[bool], None]
"""Raises (True) or lowers (False) an interrupt request."""


class Device(Protocol):
    """One device on a bus."""

    name: str

    def read(self, offset: int, size: int) -> int:
        """Read `size` bytes (1, 2, 4 or 8) at `offset`; unknown offsets read as all ones."""
        ...

    def write(self, offset: int, size: int, value: int) -> None:
        """Write `size` bytes at `offset`; unknown offsets are ignored."""
        ...

    @property
    def state(self) -> Any:
        """A frozen, hashable value with all of the device's state."""
        ...

    def restore(self, state: Any) -> None:
        """Take up a state that `state` returned earlier."""
        ...
