"""The climb: for one sensitive instruction, the cheapest tactic that is provably sound, and why no better one.

Room: `bt/tactics/x86`. Works on one page's bytes and masks; the same code decides for a file and for a page about to
run. What a fixup may replace is `window`'s part; here is the ladder: fixup, nothing, trap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from iced_x86 import Code, Decoder, OpKind, Register

from bt.pagescan import Found
from bt.tactics.tactics import Choice, Patch, Placing, Refused, Tactic
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86.layout import assemble_fixup, patch, size_of
from bt.tactics.x86.pagescan import LONGEST
from bt.tactics.x86.window import Ground, Window, compose
from emulator.isa.x86.table import PLANTED
from paravirt.translator import Fixup


@dataclass(frozen=True, slots=True)
class WindowDraft:
    """A fixup for a window, without an address."""

    start: int
    window: Window

    @property
    def size(self) -> int:
        """Bytes of the fixup."""
        return size_of(self.window)

    @property
    def clobbers(self) -> tuple[str, ...]:
        """Scratch words of the shared page; fixups leave registers and flags as the instructions do."""
        templates = [template for _, template in self.window.pieces]
        if self.window.finish is not None:
            templates.append(self.window.finish[1])
        words = sorted({word for template in templates for word in template.scratch})
        return tuple(f"scratch word {word}" for word in words)

    def place(self, address: int, page: int) -> tuple[Fixup, tuple[Patch, ...]]:
        """The fixup, and the jump to it. Raises `OutOfReach`."""
        jump = patch(page + self.start, self.window.end - self.start, address)
        return assemble_fixup(address, page, self.window), (Patch(self.start, jump),)


def last_resort(site: Found) -> Choice:
    """What needs no room at all: nothing, or a planted trap."""
    if site.code in PLANTED:
        return Choice(site, Tactic.TRAP, "completes in user mode, so it must be made to trap", code=asm.HLT)
    return Choice(site, Tactic.NATIVE, "exits by itself in user mode")


def choose(ground: Ground | None, site: Found, strategy: str, used: int = 0) -> Choice:
    """The tactic for `site`; `ground` may be None where no fixup could be made."""
    rest = last_resort(site)
    if strategy == "trap":
        return rest
    if site.code not in INLINE_CODES or ground is None:
        return Choice(site, rest.tactic, rest.reason, "no fixup can do it without the hypervisor", code=rest.code)
    if _reads_own_selector(ground, site):
        return Choice(site, Tactic.NATIVE, "data segment registers hold the guest's own selectors")
    try:
        room = compose(ground, site.offset, used)
    except Refused as refusal:
        return Choice(site, rest.tactic, rest.reason, str(refusal), code=rest.code)
    draft = WindowDraft(site.offset, room)
    placing = Placing.IN_PLACE if room.end == site.offset + site.length else Placing.DISPLACED
    reason = "a fixup does it in the guest, by the shared page"
    return Choice(site, Tactic.INLINE, reason, placing=placing, behind=room.end, draft=draft)


def _reads_own_selector(ground: Ground, site: Found) -> bool:
    """Whether it reads DS, ES, FS or GS, whose real selector is the guest's (`paravirt.abi.RING_OF_SELECTORS`)."""
    if site.code not in _SELECTOR_READS:
        return False
    code = (ground.code + ground.after)[site.offset : site.offset + LONGEST]
    instruction = Decoder(64, code, ip=site.offset).decode()
    last = instruction.op_count - 1
    return instruction.op_kind(last) == OpKind.REGISTER and instruction.op_register(last) in _DATA_SEGMENTS


_DATA_SEGMENTS: Final = frozenset({Register.ES, Register.DS, Register.FS, Register.GS})
_SELECTOR_READS: Final = frozenset(
    int(code)
    for code in (
        *(Code.MOV_RM16_SREG, Code.MOV_R32M16_SREG, Code.MOV_R64M16_SREG),
        *(Code.PUSHW_FS, Code.PUSHW_GS, Code.PUSHQ_FS, Code.PUSHQ_GS),
    )
)
INLINE_CODES: Final = _SELECTOR_READS | frozenset(
    int(code) for code in (Code.CLI, Code.STI, Code.PUSHFQ, Code.POPFQ, Code.MOV_R64_CR)
)
"""Encodings that may need no exit."""
