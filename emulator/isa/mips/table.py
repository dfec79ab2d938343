"""The sensitive-instruction table of MIPS32r2, joined, checked and indexed.

Room: `emulator/isa/mips`, data about the instruction set; knows of no engine and no hypervisor. Words are numbers:
the same table serves both byte orders.
"""

from typing import Final

from emulator.isa.mips.rows import CONTEXTS, CONTROL, MOVES, UNPRIVILEGED
from emulator.isa.patterns import PatternTable
from emulator.isa.sensitive import Patterns, SensitiveInstruction

__all__ = ["CONTEXTS", "ROWS", "ROW_OF_NAME", "TABLE", "encodings", "planted"]

ROWS: Final[tuple[SensitiveInstruction, ...]] = CONTROL + MOVES + UNPRIVILEGED
"""The table, in the order in which it is printed."""

TABLE: Final = PatternTable(ROWS)
"""The rows of words."""

ROW_OF_NAME: Final[dict[str, SensitiveInstruction]] = {row.name: row for row in ROWS}
"""The row of a name, as the reports and the command line use it."""


def encodings(row: SensitiveInstruction) -> list[str]:
    """The row's encodings as words and masks, sorted."""
    assert isinstance(row.match, Patterns)
    found = []
    for pattern in row.match.patterns:
        exceptions = f" but {len(pattern.unless)} others" if pattern.unless else ""
        found.append(f"{pattern.value:08x}/{pattern.mask:08x}{exceptions}")
    return sorted(found)


def planted(_row: SensitiveInstruction) -> bool:
    """No row needs a planted trap: what does not trap is kept right without one.

    LLbit is cleared by whoever emulates ERET; SYNCI has nothing to do, since no page is writable and executable.
    """
    return False
