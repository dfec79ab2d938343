"""The instruction sets that can be rewritten, by name: the one place that knows which.

Room: `bt/tactics`. A name leads to a module, imported when it is asked for, and to the class in it that fulfils
`Tactics`; its constructor takes the `Isa` and the byte order.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Final, cast

from emulator.errors import UsageError
from emulator.isa.isas import ISAS

if TYPE_CHECKING:
    from bt.tactics.tactics import Tactics

PLACES: Final[dict[str, str]] = {
    "x86-64": "bt.tactics.x86.tactics:X86Tactics",
    "armv7": "bt.tactics.arm.tactics:ArmTactics",
    "aarch64": "bt.tactics.aarch64.tactics:A64Tactics",
    "i386": "bt.tactics.x86.ladder32:I386Tactics",
    "mips32": "bt.tactics.mips.tactics:MipsTactics",
}
"""Instruction set -> "module:class"."""


@cache
def tactics_of(name: str, byte_order: str = "little") -> Tactics:
    """The tactics of an instruction set. Raises `UsageError` where it has none."""
    if name not in PLACES:
        raise UsageError(f"images for {name} cannot be scanned or rewritten yet; {', '.join(PLACES)} can")
    module, attribute = PLACES[name].split(":")
    return cast("Tactics", getattr(importlib.import_module(module), attribute)(ISAS[name], byte_order))
