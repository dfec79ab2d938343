"""The climb: for one sensitive instruction, the cheapest tactic that is provably sound, and why no better one.

Room: `bt/tactics`. Works on one page's bytes and masks; the same code decides for a file and for a page about to run.
What a fixup may replace is `window`'s part; here is the ladder: fixup, nothing, trap.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from iced_x86 import Code, Decoder, OpKind, Register

from bt.pagescan import LONGEST, Found
from bt.tactics.window import Ground, Refused, Window, compose
from emulator.isa.x86.table import PLANTED


class Tactic(Enum):
    """What is done at a site."""

    INLINE = "inline"
    """A jump to a fixup that does the work in the guest."""
    TRAP = "trap"
    """A planted trap on the first byte."""
    NATIVE = "native"
    """Nothing: the instruction exits by itself, or does the same deprivileged."""
    COVERED = "covered"
    """Part of another site's fixup."""
    LEAVE = "leave"
    """Nothing: it never runs where it stands."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A tactic for one site."""

    site: Found
    tactic: Tactic
    reason: str
    """Why this tactic."""
    refused: str = ""
    """Why not a better one; empty where there is none."""
    window: Window | None = None
    """For INLINE."""

    @property
    def end(self) -> int:
        """Offset behind the bytes that the tactic changes or stands for."""
        return self.window.end if self.window is not None else self.site.offset + self.site.length

    def __len__(self) -> int:
        return self.end - self.site.offset


def choose(ground: Ground | None, site: Found, inline: bool = True) -> Choice:
    """The tactic for `site`; without `inline` no fixups are made. `ground` may be None where none could be."""
    rest = Choice(site, Tactic.TRAP, "completes in user mode, so it must be made to trap")
    if site.code not in PLANTED:
        rest = Choice(site, Tactic.NATIVE, "exits by itself in user mode")
    if not inline:
        return rest
    if site.code not in INLINE_CODES or ground is None:
        return Choice(site, rest.tactic, rest.reason, "no fixup can do it without the hypervisor")
    if _reads_own_selector(ground, site):
        return Choice(site, Tactic.NATIVE, "data segment registers hold the guest's own selectors")
    try:
        room = compose(ground, site.offset)
    except Refused as refusal:
        return Choice(site, rest.tactic, rest.reason, str(refusal))
    return Choice(site, Tactic.INLINE, "a fixup does it in the guest, by the shared page", "", room)


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
