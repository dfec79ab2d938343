"""The result of running a table's rows live, in one form for every instruction set.

Room: `emulator/isa`. Each instruction set's own `proof` module runs its rows on an engine and says what it saw.
"""

from enum import Enum
from typing import NamedTuple

from emulator.isa.sensitive import SensitiveInstruction


class Verdict(Enum):
    """What running a row's cases showed."""

    PROVEN = "proven"
    """Both modes did what the manual says."""
    DEPARTS = "departs"
    """At least one run did what `DEPARTURES` says of this engine instead."""
    ABSENT = "absent"
    """The processor lacks the extension and answered as the manual says it must."""
    REFUTED = "refuted"
    """A run did neither, or did what the manual says although a departure is listed."""


class Proof(NamedTuple):
    """The result for one row."""

    row: SensitiveInstruction
    verdict: Verdict
    kernel: str
    """What the example did in kernel mode."""
    user: str
    """What it did in user mode."""
    remarks: tuple[str, ...]
    """Reasons of departures, or what refutes the row."""
