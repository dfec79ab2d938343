"""Reads of control registers from the hypervisor's copies in the shared page.

Room: `bt/tactics`. CR0, CR2, CR3 and CR4 have copies (`paravirt.abi.CONTROL_REGISTERS`), which the hypervisor keeps
current; a read is one load. CR8 and all writes trap.
"""

from __future__ import annotations

from typing import Final

from bt.tactics.x86 import assemble as asm
from bt.tactics.x86.template import Template, control_register

COPIED: Final = frozenset({0, 2, 3, 4})
"""Numbers of the control registers that have a copy."""


def read_control_register(register: int, number: int) -> Template:
    """MOV r64, CRn. Raises ValueError for a register without a copy."""
    if number not in COPIED:
        raise ValueError(f"CR{number} has no copy in the shared page")
    repeatable = number != 2  # a page fault changes CR2
    code = asm.load(register, control_register(number))
    return Template(f"read CR{number}", code, changes=frozenset({register}), repeatable=repeatable)
