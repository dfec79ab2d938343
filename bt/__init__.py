"""The toolchain: images, scanner, planner, rewriter, verifier and the command line.

The highest of the three packages; it may import `paravirt` and `emulator`, and they never import it. The names of the
Python interface (`bt.api`) are here as well, and read when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bt.api import Breakpoint, Guest, Options, Seen, Stop, StopKind, open_guest, resume

__all__ = ["Breakpoint", "Guest", "Options", "Seen", "Stop", "StopKind", "open_guest", "resume"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bt import api

    return getattr(api, name)
