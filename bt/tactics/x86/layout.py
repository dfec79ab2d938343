"""From a window to machine code: the fixup at its address, and the patch that jumps to it.

Room: `bt/tactics/x86`.
"""

from __future__ import annotations

from typing import Final

from bt.tactics.x86 import assemble as asm
from bt.tactics.x86 import assemble32
from bt.tactics.x86.template import Template
from bt.tactics.x86.window import Window
from paravirt.translator import Fixup, Hypercall

INT3: Final = b"\xcc"
_MASK: Final = (1 << 64) - 1


def size_of(window: Window) -> int:
    """Bytes of the fixup for `window`."""
    finish = len(window.finish[1].code) if window.finish is not None else 0
    pieces = sum(len(template.code) for _, template in window.pieces)
    branch = window.branch
    if branch is None:
        return pieces + finish + asm.JUMP_LENGTH
    if branch.target is None:
        return pieces + finish + len(asm.RET)
    if branch.call:
        return pieces + 2 * asm.JUMP_LENGTH
    if branch.condition is None:
        return pieces + finish + asm.JUMP_LENGTH
    return pieces + asm.SHORT_BRANCH_LENGTH + 2 * (finish + asm.JUMP_LENGTH)


class _Body:
    """A fixup while its parts are put one behind the other."""

    def __init__(self, address: int, page: int, bits: int = 64) -> None:
        self.address = address
        self._relative = asm.relative if bits == 64 else assemble32.relative
        self._jump = asm.jump if bits == 64 else assemble32.jump
        self._page = page
        self.code = bytearray()
        self.calls: dict[int, Hypercall] = {}

    @property
    def here(self) -> int:
        """Guest-virtual address of the next byte."""
        return self.address + len(self.code)

    def put(self, offset: int, template: Template, resume: int) -> None:
        """A template that stands for the instruction at `offset` of the page; the fixup goes on at `resume`."""
        begin = self.here
        body = bytearray(template.code)
        for call in template.calls:
            after = begin + len(body) if call.inside else resume
            site = (self._page + offset) & _MASK
            self.calls[begin + call.offset] = Hypercall(site, call.operation, after, call.instruction)
        if template.reference is not None:
            at, target = template.reference
            body[at : at + 4] = self._relative(begin + len(body), (self._page + target) & _MASK)
        self.code += body

    def leave(self, finish: tuple[int, Template] | None, target: int | None) -> None:
        """The end of a way through the fixup: what is left to do, then to `target`, or back to the caller."""
        if finish is not None:
            behind = self.here + len(finish[1].code)
            self.put(*finish, behind if target is None else target)
        self.code += asm.RET if target is None else self._jump(self.here, target)


def assemble_fixup(address: int, page: int, window: Window) -> Fixup:
    """The fixup at `address` for a window of the page at guest-virtual `page`. Raises `asm.OutOfReach`."""
    body = _Body(address, page, window.bits)
    behind = (page + window.end) & _MASK
    for offset, template in window.pieces:
        body.put(offset, template, behind)
    branch = window.branch
    if branch is None:
        body.leave(window.finish, behind)
    elif branch.target is None:
        body.leave(window.finish, None)
    else:
        target = (page + branch.target) & _MASK
        if branch.call:
            push = asm.push_constant if window.bits == 64 else assemble32.push_constant
            body.code += push(behind)
        if branch.condition is not None:
            finish = len(window.finish[1].code) if window.finish is not None else 0
            body.code += asm.branch(branch.condition, finish + asm.JUMP_LENGTH)
            body.leave(window.finish, behind)
        body.leave(window.finish, target)
    return Fixup(address, bytes(body.code), page + window.pieces[0][0], body.calls)


def assemble_stub(address: int, site: int, template: Template) -> Fixup:
    """The fixup at `address` that is called instead of the function at `site` and returns to its caller.

    A hypercall in it goes on at the return, the stub's last byte.
    """
    body = _Body(address, site)
    body.put(0, template, site)
    body.leave((0, template.finish) if template.finish is not None else None, None)
    return Fixup(address, bytes(body.code), site, body.calls)


def patch(address: int, length: int, fixup: int, bits: int = 64) -> bytes:
    """The `length` bytes at guest-virtual `address` once they jump to `fixup`; what is left over is INT3."""
    jump = asm.jump if bits == 64 else assemble32.jump
    return jump(address, fixup).ljust(length, INT3)
