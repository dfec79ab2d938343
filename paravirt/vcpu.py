"""What the event loop knows of a virtual CPU, whichever instruction set it has.

Room: `paravirt`. The processor that a guest believes in is made in `paravirt.modes`; the loop asks it for its level,
its place, and whether an interrupt may come, and the code pages ask it for the guest's own bytes.
"""

from collections.abc import Callable
from typing import Any, Protocol


class VirtualCpu(Protocol):
    """A processor of a deprivileged guest."""

    level: int
    """The guest's privilege level, as its architecture numbers it. The real one is always the lowest."""
    before_write: Callable[[int], None]
    """Called with the number of a frame of memory before the hypervisor stores into it for the guest."""

    @property
    def pc(self) -> int:
        """Guest-virtual address of the instruction that the guest is at."""
        ...

    @pc.setter
    def pc(self, value: int) -> None: ...

    @property
    def interrupts_enabled(self) -> bool:
        """Whether the guest takes the board's interrupt now, as far as its own masks go."""
        ...

    def peek_page(self, address: int) -> bytes:
        """The page that holds `address` as the guest's kernel would read it; empty where nothing is mapped."""
        ...

    def forget_writes(self) -> None:
        """From now on `before_write` must be asked again."""
        ...

    @property
    def state(self) -> tuple[Any, ...]:
        """Everything the guest can see of its processor, as a plain value."""
        ...
