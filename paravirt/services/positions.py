"""Where a guest is in its own history: a position, exact to the instruction, that is the same in every run.

Room: `paravirt/services`. A position is before an instruction. It is found again by counting what the guest does, never
by time.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from emulator.errors import UsageError

_FORM = re.compile(r"(\d{1,18})(?:\+(\d{1,9}))?")


class Position(NamedTuple):
    """Behind so many blocks, and so many instructions of the next one."""

    progress: int
    """Units of the engine's progress that are done."""
    steps: int = 0
    """Instructions of the block begun then that are done; one that only faulted and is begun again counts."""

    def __str__(self) -> str:
        return f"{self.progress}+{self.steps}" if self.steps else str(self.progress)


def position_of(text: str) -> Position:
    """The position that a text names: "PROGRESS" or "PROGRESS+STEPS". Raises `UsageError` for another text."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is no position; give the guest's progress in blocks, and behind a + instructions of the next, "
            "as 1234567 or 1234567+3"
        )
    return Position(int(match[1]), int(match[2] or 0))


def progress_of(text: str) -> int:
    """The progress that a text names. Raises `UsageError` for another text, one that names an instruction as well."""
    position = position_of(text)
    if "+" in text:
        raise UsageError(
            f"{text!r} counts instructions, which can only be stopped at by `retrap goto`; leave the + out"
        )
    return position.progress
