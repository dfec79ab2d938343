"""What leads out of the process: who has sockets of the host, and moves frames when somebody looks after it.

Room: `paravirt/io`. Nothing here runs by itself: whoever drives a guest calls `poll` between two slices, and waits on
`descriptor` while the guest waits.
"""

from __future__ import annotations

from typing import Protocol


class Outside(Protocol):
    """A port of a switch with sockets behind it."""

    @property
    def descriptor(self) -> int:
        """A file descriptor that is readable when `poll` has something to do."""
        ...

    @property
    def busy(self) -> bool:
        """Something may come from outside: time that a guest waits must pass as the host's does."""
        ...

    def poll(self) -> None:
        """Move what came, and what could not go before."""
        ...

    def close(self) -> None:
        """Let all sockets go."""
        ...


__all__ = ["Outside"]
