"""Reads of control registers from the hypervisor's copies in the shared page, and writes of CR0.TS into it.

Room: `bt/tactics`. CR0, CR2, CR3 and CR4 have copies (`paravirt.abi.CONTROL_REGISTERS`), which the hypervisor keeps
current; a read is one load. CLTS, and a write of CR0 that changes nothing but TS, are stores while the real processor's
TS is set anyway: it follows when floating point is used. CR8 and all other writes trap.
"""

from __future__ import annotations

from typing import Final

from bt.tactics.tactics import Refused
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86.template import Call, Template, control_register, joined, scratch
from emulator.isa.operation import Operation
from paravirt.abi import SHARED_PAGE, TASK_SWITCHED

COPIED: Final = frozenset({0, 2, 3, 4})
"""Numbers of the control registers that have a copy."""


def read_control_register(register: int, number: int) -> Template:
    """MOV r64, CRn. Raises ValueError for a register without a copy."""
    if number not in COPIED:
        raise ValueError(f"CR{number} has no copy in the shared page")
    repeatable = number != 2  # a page fault changes CR2
    code = asm.load(register, control_register(number))
    return Template(f"read CR{number}", code, changes=frozenset({register}), repeatable=repeatable)


def clear_task_switched() -> Template:
    """CLTS: the word that is CR0 without TS becomes CR0's copy. No flag changes."""
    rax = asm.RAX
    code = joined(
        (
            asm.store(scratch(0), rax),
            asm.load(rax, SHARED_PAGE + TASK_SWITCHED),
            asm.store(control_register(0), rax),
            asm.load(rax, scratch(0)),
        )
    )
    return Template("clear CR0.TS", code, scratch=frozenset({0}))


def write_cr0(register: int, code: bytes) -> Template:
    """MOV CR0, r64: a store of its copy where it is one of two words; the hypervisor does all others. `code` is the
    instruction. Raises `Refused` for RCX, which compares, and RSP."""
    rcx = asm.RCX
    if register in (rcx, asm.RSP):
        raise Refused("the register that it writes is in the way of comparing it")
    restore = asm.load(rcx, scratch(0))
    write = restore + asm.store(control_register(0), register)
    other = restore + asm.HLT  # behind which it goes on at the end
    second = _differs(8, register) + asm.jump_if_rcx_zero(len(other))
    first = _differs(0, register) + asm.jump_if_rcx_zero(len(second) + len(other))
    head = asm.store(scratch(0), rcx) + first + second
    call = Call(len(head) + len(restore), Operation.WRITE_CONTROL_REGISTER, inside=True, instruction=code)
    return Template("write CR0.TS", head + other + write, (call,), scratch=frozenset({0}), changes_view=True)


def _differs(word: int, register: int) -> bytes:
    """RCX = `register` and one of the negative words."""
    return asm.load(asm.RCX, SHARED_PAGE + TASK_SWITCHED + 8 + word) + asm.add(asm.RCX, register)
