"""How the rows of the AArch64 table are written: one call a row, with short names for the columns.

Room: `emulator/isa/aarch64`, data about the instruction set. The rows stand in `rows_registers` (MRS and MSR, made
from the list of system registers), `rows_system` and `rows_memory`; `table` joins and checks them.
"""

from typing import Final

from emulator.isa.operation import Operation
from emulator.isa.sensitive import Pattern, Patterns, Route, SensitiveInstruction, Sensitivity, UserBehaviour

TRAPS: Final = UserBehaviour.TRAPS
IGNORED: Final = UserBehaviour.IGNORED
LEAKS: Final = UserBehaviour.LEAKS
DIFFERS: Final = UserBehaviour.DIFFERS

CONTROL: Final = Sensitivity.CONTROL
BEHAVIOUR: Final = Sensitivity.BEHAVIOUR
BOTH: Final = Sensitivity.CONTROL | Sensitivity.BEHAVIOUR

INLINE: Final = (Route.INLINE, Route.HYPERCALL, Route.TRAP)
"""The work can be done without an exit: by the instruction itself under a control that allows it, by another word, or
by a fixup."""
CALL: Final = (Route.HYPERCALL, Route.TRAP)
"""The hypervisor must act, but a fixup may ask it."""
TRAP: Final = (Route.TRAP,)
"""Control leaves the instruction stream, or the instruction is too rare to be worth a fixup."""

ALL: Final = 0xFFFF_FFFF


def row(
    name: str,
    patterns: tuple[Pattern, ...],
    at_user_level: UserBehaviour,
    sensitivity: Sensitivity,
    operation: Operation,
    routes: tuple[Route, ...],
    example: str,
    manual: str,
    condition: str = "",
    note: str = "",
) -> SensitiveInstruction:
    """One row; `manual` is a section of DDI 0487."""
    return SensitiveInstruction(
        name=name,
        match=Patterns(patterns),
        at_user_level=at_user_level,
        sensitivity=sensitivity,
        operation=operation,
        routes=routes,
        example=example,
        manual=f"DDI 0487, {manual}",
        condition=condition,
        note=note,
    )


def word(value: int) -> str:
    """An example that the assembler does not know: the word itself."""
    return f".inst {value:#010x}"
