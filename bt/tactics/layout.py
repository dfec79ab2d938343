"""From a choice to machine code: the fixup at its address, and the patch that jumps to it.

Room: `bt/tactics`. `Arena` gives addresses in order of request, so that the layout is deterministic, and refuses when
the region is full; nothing is ever freed, since a guest may be inside a fixup at any time.
"""

from __future__ import annotations

from typing import Final

from bt import assemble as asm
from bt.tactics.choose import Choice, Tactic, Window
from bt.tactics.template import Template
from paravirt.abi import FIXUP_BASE, FIXUP_SIZE
from paravirt.translator import Fixup, Hypercall

ALIGNMENT: Final = 16
"""Of a fixup's address, bytes."""
INT3: Final = b"\xcc"
_MASK: Final = (1 << 64) - 1


def size_of(window: Window) -> int:
    """Bytes of the fixup for `window`."""
    leaving = (len(window.finish[1].code) if window.finish is not None else 0) + asm.JUMP_LENGTH
    both = window.branch is not None and window.branch.condition is not None
    pieces = sum(len(template.code) for _, template in window.pieces)
    return pieces + (asm.SHORT_BRANCH_LENGTH + 2 * leaving if both else leaving)


def assemble_fixup(address: int, page: int, window: Window) -> Fixup:
    """The fixup at `address` for a window of the page at guest-virtual `page`. Raises `asm.OutOfReach`."""
    code = bytearray()
    calls: dict[int, Hypercall] = {}

    def put(offset: int, template: Template, resume: int) -> None:
        begin = address + len(code)
        for call in template.calls:
            calls[begin + call.offset] = Hypercall((page + offset) & _MASK, call.operation, resume)
        body = bytearray(template.code)
        if template.reference is not None:
            at, target = template.reference
            body[at : at + 4] = asm.relative(begin + len(body), (page + target) & _MASK)
        code.extend(body)

    def leave(target: int) -> None:
        if window.finish is not None:
            put(*window.finish, target)
        code.extend(asm.jump(address + len(code), target))

    behind = (page + window.end) & _MASK
    for offset, template in window.pieces:
        put(offset, template, behind)
    branch = window.branch
    if branch is None:
        leave(behind)
    elif branch.condition is None:
        leave((page + branch.target) & _MASK)
    else:
        finish = len(window.finish[1].code) if window.finish is not None else 0
        code += asm.branch(branch.condition, finish + asm.JUMP_LENGTH)
        leave(behind)
        leave((page + branch.target) & _MASK)
    return Fixup(address, bytes(code), page + window.pieces[0][0], calls)


def assemble_stub(address: int, site: int, template: Template) -> Fixup:
    """The fixup at `address` that is called instead of the function at `site` and returns to its caller.

    A hypercall in it goes on at the return, the stub's last byte.
    """
    code = template.code
    calls: dict[int, Hypercall] = {}
    if template.finish is not None:
        resume = address + len(code) + len(template.finish.code)
        for call in template.finish.calls:
            calls[address + len(code) + call.offset] = Hypercall(site, call.operation, resume)
        code += template.finish.code
    return Fixup(address, code + asm.RET, site, calls)


def patch(address: int, choice: Choice, fixup: int) -> bytes:
    """The bytes of the window at guest-virtual `address` once it jumps to `fixup`; what is left over is INT3."""
    return asm.jump(address, fixup).ljust(len(choice), INT3)


def apply(code: bytearray, page: int, choice: Choice, fixup: int | None) -> None:
    """Patch a site into a page's bytes."""
    at = choice.site.offset
    if choice.tactic is Tactic.TRAP:
        code[at : at + 1] = asm.HLT
    elif choice.tactic is Tactic.INLINE and fixup is not None:
        code[at : choice.end] = patch(page + at, choice, fixup)


class Arena:
    """The fixup region, handed out from its start."""

    def __init__(self, start: int = FIXUP_BASE, end: int = FIXUP_BASE + FIXUP_SIZE) -> None:
        self.start = start
        self.end = end
        self.next = start

    def take(self, size: int) -> int | None:
        """The address of `size` bytes, or None when the region is full."""
        address = self.next
        if address + size > self.end:
            return None
        self.next = (address + size + ALIGNMENT - 1) & -ALIGNMENT
        return address
