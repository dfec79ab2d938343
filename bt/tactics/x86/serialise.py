"""Reads of CS and SS, and IRETQ-to-itself, by which Linux serialises the CPU, without its four exits.

Room: `bt/tactics`. The real CS and SS are the virtual ones plus 3 (`paravirt.abi.RING_OF_SELECTORS`), so a read is a
read and a subtraction. The sequence pushes SS, RSP, RFLAGS, CS and the address behind itself and returns there: no
effect but its register, the flags of an addition, and five dead words below the stack pointer. All of these are
reproduced; the serialisation itself is void, since a translated page is made anew when its bytes change.
"""

from __future__ import annotations

from typing import Final

from bt.tactics.x86 import assemble as asm
from bt.tactics.x86.interrupt_flag import corrected
from bt.tactics.x86.template import Template, joined, scratch
from paravirt.abi import RING_OF_SELECTORS

NAME: Final = "return to self"
READ: Final = "read selector"
CS: Final = 1
SS: Final = 2


def read_selector(code: bytes, register: int, size: int) -> Template:
    """MOV r, CS or MOV r, SS, `size` bytes wide; `code` is the instruction."""
    body = code + asm.decrease(register, RING_OF_SELECTORS, 2 if size == 2 else 8)
    return Template(READ, body, changes=frozenset({register}), repeatable=True, on_registers=True)


def return_to_self(register: int, resume: int) -> Template:
    """`mov r, ss; push r; push rsp; add qword [rsp], 8; pushfq; mov r, cs; push r; push resume; iretq`.

    `register` is not RSP; `resume` is the sign-extended 32-bit address pushed.
    """
    if register == asm.RSP:
        raise ValueError("the sequence cannot use RSP as its register")
    other = asm.RAX if register == asm.RCX else asm.RCX
    code = joined(
        (
            # The lowest and the highest word first: whatever faults, faults before anything has changed.
            asm.store_stack_constant(-40, _signed(resume)),
            asm.store_stack(-8, asm.RSP),
            asm.store_stack(-16, asm.RSP),
            asm.read_selector(register, SS),
            asm.decrease(register, RING_OF_SELECTORS, 8),
            asm.store_stack(-8, register),
            asm.stack_address(register, -8),
            asm.add_constant(register, 8),
            asm.stack_address(asm.RSP, -16),
            asm.PUSHFQ,
            asm.pop(register),
            asm.stack_address(asm.RSP, 16),
            asm.store(scratch(0), other),
            *corrected(register, other),
            asm.load(other, scratch(0)),
            asm.store_stack(-24, register),
            asm.read_selector(register, CS),
            asm.decrease(register, RING_OF_SELECTORS, 8),
            asm.store_stack(-32, register),
        )
    )
    return Template(NAME, code, scratch=frozenset({0}), changes=frozenset({register}))


def match(code: bytes, at: int, page: int) -> tuple[int, int, int] | None:
    """Register, length and pushed address of the sequence at offset `at` of the page at `page`, or None."""
    for prefix in (b"", b"\x41"):
        head = code[at : at + len(prefix) + 2]
        if head[: len(prefix)] != prefix or len(head) != len(prefix) + 2 or head[-2] != 0x8C or head[-1] & 0xF8 != 0xD0:
            continue
        low = head[-1] & 7
        push = prefix + bytes((0x50 | low,))
        expected = head + push + _MIDDLE + prefix + bytes((0x8C, 0xC8 | low)) + push + b"\x68"
        length = len(expected) + 4 + len(_RETURN)
        constant = code[at + len(expected) : at + len(expected) + 4]
        end = code[at + len(expected) + 4 : at + length]
        resume = (page + at + length) & 0xFFFF_FFFF
        if code.startswith(expected, at) and end == _RETURN and constant == resume.to_bytes(4, "little"):
            register = low | (8 if prefix else 0)
            return None if register == asm.RSP else (register, length, resume)
    return None


_MIDDLE: Final = bytes.fromhex("544883042408 9c")
"""push rsp; add qword [rsp], 8; pushfq"""
_RETURN: Final = b"\x48\xcf"
"""iretq"""


def _signed(word: int) -> int:
    low = word & 0xFFFF_FFFF
    return low - (1 << 32) if low >> 31 else low
