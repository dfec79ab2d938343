"""How the rows of the x86 table are written: one call a row, with short names for the columns.

Room: `emulator/isa/x86`, data about the instruction set. The rows themselves stand in
`rows_unprivileged`, `rows_privileged` and `rows_extensions`, once for all modes: which of a row's encodings a
mode has is the decoder's knowledge. `table` makes the table of each mode of them.
"""

import re
from dataclasses import replace
from typing import Final, NamedTuple

from iced_x86 import OpCodeInfo

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

MODES: Final = (64, 32)
"""Bits of the modes that have a table: 64-bit mode, and 32-bit protected mode."""


class Family(NamedTuple):
    """A row with its encodings of every mode."""

    row: SensitiveInstruction
    """With all its encodings, and the example of 64-bit mode where it has one."""
    example32: str
    """The example of 32-bit mode."""

    def of(self, bits: int) -> SensitiveInstruction | None:
        """The row of the mode of so many bits; None where the mode has no such instruction."""
        assert isinstance(self.row.match, Codes)
        codes = frozenset(code for code in self.row.match.codes if in_mode(code, bits))
        if not codes:
            return None
        example = self.row.example if bits == 64 else self.example32
        if codes == self.row.match.codes and example == self.row.example:
            return self.row
        return replace(self.row, match=Codes(codes), example=example)


def in_mode(code: int, bits: int) -> bool:
    """Whether an encoding exists in the mode of so many bits."""
    form = OpCodeInfo(code)  # type: ignore[arg-type]
    return form.mode64 if bits == 64 else form.mode32


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
    example32: str = "",
) -> Family:
    """One row; `codes` are iced-x86 `Code` values. Raises ValueError when the codes repeat.

    `example32` is the example of 32-bit mode; by default `example` with the lower halves of its registers.
    """
    if len(set(codes)) != len(codes):
        raise ValueError(f"row {name!r} names an encoding twice; remove the repetition")
    whole = SensitiveInstruction(
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
    return Family(whole, example32 or re.sub(r"\br([abcd]x|[sd]i|[sb]p)\b", r"e\1", example))
