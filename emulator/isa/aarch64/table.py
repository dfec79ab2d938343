"""The sensitive-instruction table of AArch64, joined, checked and indexed.

Room: `emulator/isa/aarch64`, data about the instruction set; knows of no engine and no hypervisor. The rows stand in
`rows_registers`, `rows_system` and `rows_memory`.
"""

from typing import Final

from emulator.isa.aarch64.rows_memory import CONTEXTS, UNPRIVILEGED_ROWS
from emulator.isa.aarch64.rows_registers import REGISTER_ROWS
from emulator.isa.aarch64.rows_system import SYSTEM_ROWS
from emulator.isa.patterns import PatternTable
from emulator.isa.sensitive import Patterns, SensitiveInstruction, UserBehaviour

__all__ = ["CONTEXTS", "ENTERING", "ROWS", "ROW_OF_NAME", "TABLE", "encodings", "planted"]

ROWS: Final[tuple[SensitiveInstruction, ...]] = SYSTEM_ROWS + UNPRIVILEGED_ROWS + REGISTER_ROWS
"""The table, in the order in which it is printed."""

TABLE: Final = PatternTable(ROWS)
"""The rows of words."""

ROW_OF_NAME: Final[dict[str, SensitiveInstruction]] = {row.name: row for row in ROWS}
"""The row of a name, as the reports and the command line use it."""

ENTERING: Final = frozenset(("SVC", "HVC", "SMC", "BRK", "HLT"))
"""Rows that leave the guest through a vector of the hypervisor's own at any level."""


def encodings(row: SensitiveInstruction) -> list[str]:
    """The row's encodings as words and masks, sorted."""
    assert isinstance(row.match, Patterns)
    found = []
    for pattern in row.match.patterns:
        exceptions = f" but {len(pattern.unless)} others" if pattern.unless else ""
        found.append(f"{pattern.value:08x}/{pattern.mask:08x}{exceptions}")
    return sorted(found)


def planted(row: SensitiveInstruction) -> bool:
    """Whether the row needs a planted trap, because it does not exit by itself at EL0.

    What traps under a condition of SCTLR_EL1, CNTKCTL_EL1 or PMUSERENR_EL0 does: the hypervisor keeps the condition.
    """
    return row.at_user_level is not UserBehaviour.TRAPS
