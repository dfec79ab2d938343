"""How the rows of the x86-64 table are written: one call a row, with short names for the columns.

Room: `emulator/isa/x86`, data about the instruction set. The rows themselves stand in
`rows_unprivileged`, `rows_privileged` and `rows_extensions`; `table` joins and checks them.
"""

from typing import Final

from emulator.isa.operation import Operation
from emulator.isa.sensitive import Codes, Route, SensitiveInstruction, Sensitivity, UserBehaviour

TRAPS: Final = UserBehaviour.TRAPS
IGNORED: Final = UserBehaviour.IGNORED
LEAKS: Final = UserBehaviour.LEAKS
DIFFERS: Final = UserBehaviour.DIFFERS

CONTROL: Final = Sensitivity.CONTROL
BEHAVIOUR: Final = Sensitivity.BEHAVIOUR
BOTH: Final = Sensitivity.CONTROL | Sensitivity.BEHAVIOUR

INLINE: Final = (Route.INLINE, Route.HYPERCALL, Route.TRAP)
"""A fixup can do the work with the shared page alone."""
CALL: Final = (Route.HYPERCALL, Route.TRAP)
"""The hypervisor must act, but a fixup may ask it."""
TRAP: Final = (Route.TRAP,)
"""Control leaves the instruction stream, or the instruction is too rare to be worth a fixup."""


def row(
    name: str,
    codes: tuple[int, ...],
    at_user_level: UserBehaviour,
    sensitivity: Sensitivity,
    operation: Operation,
    routes: tuple[Route, ...],
    example: str,
    manual: str,
    condition: str = "",
    note: str = "",
) -> SensitiveInstruction:
    """One row; `codes` are iced-x86 `Code` values. Raises ValueError when the codes repeat."""
    if len(set(codes)) != len(codes):
        raise ValueError(f"row {name!r} names an encoding twice; remove the repetition")
    return SensitiveInstruction(
        name=name,
        match=Codes(frozenset(int(code) for code in codes)),
        at_user_level=at_user_level,
        sensitivity=sensitivity,
        operation=operation,
        routes=routes,
        example=example,
        manual=manual,
        condition=condition,
        note=note,
    )
