"""How the rows of the ARMv7 table are written: one call a row, with short names for the columns.

Room: `emulator/isa/arm`, data about the instruction set. The rows stand in `rows_a32`, `rows_t32` and
`rows_coprocessor`; `table` joins and checks them. "ARM" in the manual's column is DDI 0406C.
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
"""A word or a fixup can do the work without the hypervisor."""
CALL: Final = (Route.HYPERCALL, Route.TRAP)
"""The hypervisor must act, but a fixup may ask it."""
TRAP: Final = (Route.TRAP,)
"""Control leaves the instruction stream, or the instruction is too rare to be worth a fixup."""

A32: Final = "a32"
T32: Final = "t32"

UNPREDICTABLE: Final = "UNPREDICTABLE in User mode: a processor may trap, ignore it, or do part of it."
"""The note of instructions that Dall and Nieh count as sensitive although some processors trap them."""

NEVER: Final = (0xF000_0000, 0xF000_0000)
"""Exception of A32 encodings with a condition: the condition field 1111 is another encoding space."""

Words = tuple[int, int] | tuple[int, int, tuple[tuple[int, int], ...]]
"""Mask and value, and maybe exceptions."""


def conditional(mask: int, value: int, unless: tuple[tuple[int, int], ...] = ()) -> Pattern:
    """An A32 encoding with a condition field."""
    return Pattern(mask, value, (NEVER, *unless))


def row(
    name: str,
    patterns: tuple[Pattern, ...],
    state: str,
    at_user_level: UserBehaviour,
    sensitivity: Sensitivity,
    operation: Operation,
    routes: tuple[Route, ...],
    example: str,
    manual: str,
    condition: str = "",
    note: str = "",
) -> SensitiveInstruction:
    """One row; a T32 row's name says so."""
    return SensitiveInstruction(
        name=f"{name} (T32)" if state == T32 else name,
        match=Patterns(patterns, state),
        at_user_level=at_user_level,
        sensitivity=sensitivity,
        operation=operation,
        routes=routes,
        example=example,
        manual=f"ARM {manual}",
        condition=condition,
        note=note,
    )
