"""The climb: for one sensitive instruction, the cheapest tactic that is provably sound, and why no better one.

Room: `bt/tactics/x86`. Works on one page's bytes and masks; the same code decides for a file and for a page about to
run. What a fixup may replace is `window`'s part; here is the ladder: left as it is; done in the guest, or by a
hypercall, where the jump is made room for behind the site, before it, or by a short jump to padding; trap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from iced_x86 import Code

from bt.pagescan import Found
from bt.tactics.tactics import ONLY_PLANT, PLANT, Choice, Patch, Placing, Refused, Tactic
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86 import serialise
from bt.tactics.x86.layout import INT3, assemble_fixup, patch, size_of
from bt.tactics.x86.template import scratch_words
from bt.tactics.x86.window import Ground, Want, Window, compose, decode, earlier
from emulator.isa.x86.table import PLANTED
from paravirt.translator import Fixup

BEFORE: Final = 14
"""Most bytes before a site at which a window begins."""
VOID: Final = frozenset(int(code) for code in (Code.INVD, Code.WBINVD, Code.WBNOINVD))
"""Instructions that mean nothing to a guest whose memory is always coherent; a no-operation stands in their place."""
_FILL: Final = re.compile(rb"\xcc{5,}")
_REACH: Final = 127
_TOO_SHORT: Final = {
    length: f"in place: it has {length} byte{'s' * (length > 1)}, and a jump takes {asm.JUMP_LENGTH}"
    for length in range(1, asm.JUMP_LENGTH)
}


@dataclass(frozen=True, slots=True)
class WindowDraft:
    """A fixup for a window, without an address."""

    start: int
    window: Window
    padding: int = -1
    """Offset of padding that holds the jump to the fixup, with a short jump to it at `start`; -1: the jump is there."""

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
        return scratch_words(templates)

    def place(self, address: int, page: int) -> tuple[Fixup, tuple[Patch, ...]]:
        """The fixup, and the jumps that lead to it. Raises `OutOfReach`."""
        fixup = assemble_fixup(address, page, self.window)
        length = self.window.end - self.start
        if self.padding < 0:
            return fixup, (Patch(self.start, patch(page + self.start, length, address, self.window.bits)),)
        short = asm.skip(self.padding - self.start - asm.SHORT_BRANCH_LENGTH).ljust(length, INT3)
        jump = patch(page + self.padding, asm.JUMP_LENGTH, address, self.window.bits)
        return fixup, (Patch(self.start, short), Patch(self.padding, jump))


def last_resort(site: Found) -> Choice:
    """What needs no room at all: nothing, or a planted trap."""
    if site.code in PLANTED:
        return Choice(site, Tactic.TRAP, "completes in user mode, so it must be made to trap", code=asm.HLT)
    return Choice(site, Tactic.NATIVE, "exits by itself in user mode")


def choose(ground: Ground | None, site: Found, strategy: str, used: int = 0) -> Choice:
    """The tactic for `site`; `ground` may be None where no fixup could be made."""
    if strategy in (PLANT, ONLY_PLANT):
        return _plant(ground if strategy == PLANT else None, site, used)
    rest = last_resort(site)
    if strategy == "trap":
        return rest
    inline = strategy in ("inline", "auto")
    if inline and site.code in VOID:
        nothing = b"\x66" * (site.length - 1) + b"\x90"
        return Choice(site, Tactic.REPLACED, "a processor's caches hold nothing that memory does not", code=nothing)
    may_inline = ground is not None and site.code in ground.mode.INLINE_CODES
    if ground is None or (strategy == "inline" and not may_inline):
        return replace(rest, refused="no fixup can do it without the hypervisor")
    if inline and may_inline and ground.mode.reads_own_selector(decode(ground, site.offset)):
        return Choice(site, Tactic.SAME, "data segment registers hold the guest's own selectors")
    refusals: list[str] = []
    want = Want(site.offset, inline=inline, calls=strategy != "inline", used=used)
    choice = _place(ground, site, want, refusals, strategy)
    if choice is not None:
        return choice
    return replace(rest, refused="; ".join(refusals))


def _plant(ground: Ground | None, site: Found, used: int) -> Choice:
    """A planted trap, but where a fixup does it that was made for such engines, or where the instruction only begins a
    sequence whose fixup does nothing with what it gives."""
    whole = choose(ground, site, "inline", used) if ground is not None else None
    if ground is not None and whole is not None and isinstance(whole.draft, WindowDraft):
        if site.code in ground.mode.INSTEAD_OF_TRAP:
            return whole
        names = {template.name for _, template in whole.draft.window.pieces}
        if serialise.NAME in names and serialise.READ not in names:
            return whole
    return Choice(site, Tactic.TRAP, "does not trap on this engine, so it must be made to", code=asm.HLT)


def _place(ground: Ground, site: Found, want: Want, refusals: list[str], strategy: str) -> Choice | None:
    """The first way in which a window for the site finds room; why others did not is added to `refusals`."""
    told: set[str] = set()
    for start, room, what in _ways(ground, site, strategy):
        try:
            window = compose(ground, start, replace(want, room=room))
            padding = -1 if room == asm.JUMP_LENGTH else _padding(ground, start, window, want.used)
        except Refused as refusal:
            if what not in told:  # the first, which begins nearest to the site, says most
                refusals.append(f"{what}{refusal}")
                told.add(what)
            continue
        return _choice(ground, site, start, window, padding, refusals)
    return None


def _ways(ground: Ground, site: Found, strategy: str) -> Iterator[tuple[int, int, str]]:
    """Where a window may begin, the room it must have, and the words before its refusal, best first."""
    at = site.offset
    yield at, asm.JUMP_LENGTH, ""
    if strategy == "inline" and not ground.mode.LOOKS_BACK and site.code not in ground.mode.INSTEAD_OF_TRAP:
        return
    if ground.known:
        for start in earlier(ground, at, BEFORE):
            yield start, asm.JUMP_LENGTH, "with what comes before: "
        yield at, asm.SHORT_BRANCH_LENGTH, "by padding: "
        for start in earlier(ground, at, BEFORE):
            yield start, asm.SHORT_BRANCH_LENGTH, "by padding, with what comes before: "


def _padding(ground: Ground, start: int, window: Window, used: int) -> int:
    """The nearest fill that holds a jump, in reach of a short one from `start`. Raises `Refused`."""
    held = used | ground.targets | ground.taken | (1 << window.end) - (1 << start)
    if ground.entry >= 0:
        held |= 1 << ground.entry
    origin = start + asm.SHORT_BRANCH_LENGTH
    low = max(origin - _REACH - 1, 0)
    for run in sorted(_FILL.finditer(ground.code, low, origin + _REACH + asm.JUMP_LENGTH), key=lambda r: r.start()):
        for at in range(run.start(), run.end() - asm.JUMP_LENGTH + 1):
            if -_REACH - 1 <= at - origin <= _REACH and not held >> at & (1 << asm.JUMP_LENGTH) - 1:
                return at
    raise Refused("there is no fill within a short jump's reach")


def _choice(ground: Ground, site: Found, start: int, window: Window, padding: int, refusals: Sequence[str]) -> Choice:
    """The choice of a window; `refusals` say why no better way to it was taken."""
    own = [template for at, template in window.pieces if at == site.offset and template.sensitive]
    called = any(call.instruction for template in own for call in template.calls)
    others = sum(start <= at < window.end for at in _sites_of(window))
    placing = Placing.DISPLACED
    if padding >= 0:
        placing = Placing.PADDING
    elif others > 1:
        placing = Placing.CLUSTER
    elif (start, window.end) == (site.offset, site.offset + site.length):
        placing = Placing.IN_PLACE
    tactic = Tactic.HYPERCALL if called else Tactic.INLINE
    reason = "a fixup asks the hypervisor" if called else "a fixup does it in the guest, by the shared page"
    refused = [f"in the guest: {window.called_since}"] if called and window.called_since else []
    if placing is not Placing.IN_PLACE and site.length < asm.JUMP_LENGTH:
        refused.append(_TOO_SHORT[site.length])
    draft = WindowDraft(start, window, padding)
    return Choice(site, tactic, reason, "; ".join((*refused, *refusals)), placing, start, window.end, draft=draft)


def _sites_of(window: Window) -> set[int]:
    """Offsets of the sensitive instructions that a window stands for."""
    return {at for at, template in window.pieces if template.sensitive}
