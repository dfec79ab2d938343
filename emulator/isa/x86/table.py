"""The sensitive-instruction tables of x86: every sensitive and privileged instruction of 64-bit and of 32-bit mode.

Room: `emulator/isa/x86`, data about the instruction set; knows of no engine and no hypervisor.
The rows stand in `rows_unprivileged` and `rows_segments` (the ones that break Popek and Goldberg's condition),
`rows_privileged` and `rows_extensions`; here they are joined, parted by mode, checked and indexed. What the two
modes have in common is one row with two sets of encodings, so a row's name means the same in both.
"""

from collections.abc import Iterable
from typing import Final

from iced_x86 import Code, OpCodeInfo

from emulator.isa.sensitive import Codes, Route, SensitiveInstruction, UserBehaviour
from emulator.isa.x86.row import MODES
from emulator.isa.x86.rows_extensions import EXTENSIONS
from emulator.isa.x86.rows_privileged import PRIVILEGED
from emulator.isa.x86.rows_unprivileged import UNPRIVILEGED


def index_codes(rows: Iterable[SensitiveInstruction]) -> dict[int, SensitiveInstruction]:
    """Map every encoding (iced-x86 `Code`) to its row, having checked the rows.

    Raises ValueError for a table that is no table: a row that is not recognised by codes or by
    none at all, an encoding in two rows, a name given twice, a row whose last route is not the
    trap or that names a route twice, or a row without an example or a place in the manual.
    """
    index: dict[int, SensitiveInstruction] = {}
    names: set[str] = set()
    for row in rows:
        _check_row(row)
        if row.name in names:
            raise ValueError(f"two rows are named {row.name!r}; merge them or tell them apart")
        names.add(row.name)
        assert isinstance(row.match, Codes)
        for code in row.match.codes:
            if code in index:
                raise ValueError(f"encoding {code} is in rows {index[code].name!r} and {row.name!r}; it belongs to one")
            index[code] = row
    return index


def _check_row(row: SensitiveInstruction) -> None:
    """Raise ValueError when the row alone is wrong."""
    if not isinstance(row.match, Codes):
        raise ValueError(f"row {row.name!r} is not recognised by encodings; x86 rows need Codes")
    if not row.match.codes:
        raise ValueError(f"row {row.name!r} matches no encoding; it would be dead")
    if Code.INVALID in row.match.codes:
        raise ValueError(f"row {row.name!r} matches the invalid encoding; name a real one")
    if not row.routes or row.routes[-1] is not Route.TRAP:
        raise ValueError(f"the last route of row {row.name!r} is not the trap; a trap must always be possible")
    if len(set(row.routes)) != len(row.routes):
        raise ValueError(f"row {row.name!r} names a route twice; remove the repetition")
    if not row.example or not row.manual:
        raise ValueError(f"row {row.name!r} lacks its example or its place in the manual; add both")


_FAMILIES: Final = UNPRIVILEGED + PRIVILEGED + EXTENSIONS


def rows_of(bits: int) -> tuple[SensitiveInstruction, ...]:
    """The table of 64-bit mode (64) or of 32-bit protected mode (32), in the order in which it is printed."""
    if bits not in MODES:
        raise ValueError(f"there is no table of {bits}-bit mode; take one of {MODES}")
    rows = (family.of(bits) for family in _FAMILIES)
    return tuple(row for row in rows if row is not None)


ROWS: Final[tuple[SensitiveInstruction, ...]] = rows_of(64)
"""The table of 64-bit mode."""

ROWS_32: Final[tuple[SensitiveInstruction, ...]] = rows_of(32)
"""The table of 32-bit protected mode."""

ROW_OF_CODE_32: Final[dict[int, SensitiveInstruction]] = index_codes(ROWS_32)
"""The row of an encoding in 32-bit mode."""

ROW_OF_CODE: Final[dict[int, SensitiveInstruction]] = ROW_OF_CODE_32 | index_codes(ROWS)
"""The row of an encoding of either mode; an encoding that is not here is innocuous. Of an encoding that both modes
have, the row of 64-bit mode: it differs in its example and its other encodings only."""

ROW_OF_NAME: Final[dict[str, SensitiveInstruction]] = {row.name: row for row in (*ROWS_32, *ROWS)}
"""The row of a name, as the reports and the command line use it; where both modes have one, that of 64-bit mode."""

SENSITIVE: Final[frozenset[int]] = frozenset(ROW_OF_CODE)
"""Every encoding of the tables: what a scan looks for. A decoder gives only those of its mode."""

ENTERING: Final[frozenset[int]] = frozenset(
    int(code) for code in (Code.INT_IMM8, Code.INT3, Code.INTO, Code.INT1, Code.SYSCALL, Code.SYSENTER)
)
"""Encodings that do not trap by the manual, and yet need no planted trap: they leave user mode
through a gate or an entry point that the hypervisor owns."""

OVERTAKEN: Final[frozenset[int]] = frozenset(
    int(code) for code in (Code.VMCALL, Code.VMMCALL, Code.VMGEXIT, Code.VMGEXIT_F2, Code.VMFUNC)
)
"""Encodings that trap on a bare processor only: where the host itself runs under a hypervisor
they leave to that one, or complete."""

PLANTED: Final[frozenset[int]] = OVERTAKEN | (
    frozenset(code for code, row in ROW_OF_CODE.items() if row.at_user_level is not UserBehaviour.TRAPS) - ENTERING
)
"""Encodings that need a planted trap in user mode, because they do not exit by themselves.

IN and OUT are not here: they trap by the manual (IOPL 0, empty I/O bitmap), and an engine on which
they do not must make them exit. RDTSC, RDTSCP, UMWAIT and TPAUSE are not here: the hypervisor runs the
guest with the real CR4.TSD set; RDPMC is not: it runs it with the real CR4.PCE clear."""


def encodings(row: SensitiveInstruction) -> list[str]:
    """The manual's opcode columns of a row's encodings, sorted."""
    assert isinstance(row.match, Codes)
    forms = (OpCodeInfo(code) for code in row.match.codes)  # type: ignore[arg-type]
    return sorted(f"{form.op_code_string}: {form.instruction_string}" for form in forms)


def planted(row: SensitiveInstruction) -> bool:
    """Whether an encoding of the row needs a planted trap."""
    assert isinstance(row.match, Codes)
    return bool(row.match.codes & PLANTED)
