"""Fixups of T32 sites: A32's own, entered by BX PC and left by LDR PC, and the branch of 32 bits that leads there.

Room: `bt/tactics/arm`. A site of 16 bits makes room by moving the instruction behind it, or else the one before it,
where that is of 16 bits, of registers alone, and not in an IT block. In an IT block a branch may stand only last; its
condition is then the instruction's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt.pagescan import PAGE
from bt.tactics.arm import templates, thumb
from bt.tactics.arm.mixed import FIRST_T32
from bt.tactics.arm.words import ALWAYS, LOAD_PC, UDF, packed
from bt.tactics.fixed.body import Body, BranchDraft, Call, Code, Piece, Relative
from bt.tactics.fixed.ladder import FixedGround
from bt.tactics.tactics import OutOfReach, Refused

if TYPE_CHECKING:
    from bt.pagescan import Found
    from bt.tactics.arm.templates import Template
    from bt.tactics.tactics import CodePage
    from emulator.isa.operation import Operation

_ENTER: Final = thumb.packed(thumb.BX_PC, thumb.NOP)
_LEAVE_SIZE: Final = 8
_VENEER_SIZE: Final = 8


class ThumbBody(Body):
    """The body of a T32 site's fixup."""

    __slots__ = ()


def instruction_at(page: CodePage, offset: int, length: int) -> int:
    """The T32 instruction, a word with the first halfword high where it is one."""
    whole = page.code + page.after
    first = int.from_bytes(whole[offset : offset + 2], "little")
    return first if length == 2 else first << 16 | int.from_bytes(whole[offset + 2 : offset + 4], "little")


def block_of(page: CodePage, offset: int) -> thumb.Block:
    """Where in an IT block the instruction at `offset` stands. Raises `Refused` where another page would say."""
    before: list[int] = []
    at = offset
    while len(before) < thumb.LONGEST_BLOCK:
        below = page.scan.boundaries & (1 << at) - 1
        if not below or at - (below.bit_length() - 1) > 4:
            led = page.pristine is not None and page.pristine.targets >> at & 1
            if below or at >= 4 or led:
                break  # data is before it, from which nothing runs on; or it is branched to, which no IT block allows
            raise Refused("an IT block may begin in the page before")
        at = below.bit_length() - 1
        before.append(instruction_at(page, at, 2))
    return thumb.block_at(before)


def body_of(page: CodePage, site: Found, template: Template | None, operation: Operation, both: bool = False) -> Body:
    """The fixup of a site: a template, or (None) a call for the whole instruction. Raises `Refused`.

    `both`: the template stands for the site behind it as well.
    """
    block = block_of(page, site.offset)
    if block.place and not block.last:
        raise Refused(
            f"it is number {block.place} of {block.length} in an IT block, where no branch may stand but last"
        )
    instruction = thumb.packed(instruction_at(page, site.offset, site.length))
    if template is None:
        middle: list[Piece] = [Call(packed(UDF), operation, site.offset, instruction)]
    else:
        middle = templates.pieces(template, ALWAYS, operation, site.offset, instruction)
    start, end, first, last = site.offset, site.offset + site.length, b"", b""
    if both:
        end += next(one.length for one in page.scan.sites if one.offset == end)
    elif site.length == 2:
        start, end, first, last = _room(page, site, block)
    pieces: list[Piece] = [Code(first + _ENTER), *middle]
    if last:
        pieces.append(Relative(_LEAVE_SIZE, lambda at, _page: packed(LOAD_PC, at + _LEAVE_SIZE | 1)))
        pieces.append(Code(last + thumb.packed(thumb.BX_PC, thumb.NOP)))
    pieces.append(Relative(_LEAVE_SIZE, lambda _at, base: packed(LOAD_PC, base + end | 1)))
    return ThumbBody(tuple(pieces), start, end, template.clobbers if template is not None else (), leaves=False)


def _room(page: CodePage, site: Found, block: thumb.Block) -> tuple[int, int, bytes, bytes]:
    """A window of four bytes around a site of two: start, end, and what moves to before and behind its work."""
    if block.place:
        raise Refused("a branch takes 32 bits, and what is beside it is in its IT block or behind it")
    begins, other = page.scan.boundaries, {one.offset for one in page.scan.sites}
    pad = thumb.packed(thumb.NOP)
    behind = site.offset + 2
    if behind + 4 <= PAGE and begins >> behind & 1 and begins >> behind + 2 & 1 and behind not in other:
        moved = instruction_at(page, behind, 2)
        if thumb.moves(moved):
            return site.offset, behind + 2, b"", thumb.packed(moved) + pad
    before = site.offset - 2
    if before >= 0 and begins >> before & 1 and before not in other:
        moved = instruction_at(page, before, 2)
        if thumb.moves(moved) and not block_of(page, before).place:
            return before, site.offset + 2, thumb.packed(moved) + pad, b""
    raise Refused("a branch takes 32 bits, and neither the instruction behind it nor the one before it may be moved")


class ThumbGround(FixedGround):
    """A page that may have T32 sites."""

    def _draft(self, body: Body, used: int) -> BranchDraft:
        """A T32 site's branch. Raises `Refused`."""
        if not isinstance(body, ThumbBody):
            return super()._draft(body, used)
        region, start = self._ladder.region, self._page.address + body.start
        fill = thumb.packed(thumb.UDF)
        if region.start == region.end:
            raise Refused(self._ladder.nowhere)
        if all(_reaches(start, goal) for goal in (region.start, region.end - 4)):
            return BranchDraft(body, thumb.branch, thumb.branch, 0, fill)
        veneer = self._find_padding(body, used, _VENEER_SIZE)
        # The fixup is entered in T32 state, as by the branch.
        return BranchDraft(
            body,
            thumb.branch,
            thumb.branch,
            0,
            fill,
            veneer=veneer,
            far=lambda source, target: thumb.far_branch(source, target | 1),
        )

    def _can_branch(self, source: int, target: int) -> bool:
        """Whether a branch of the state of the page's sites reaches; a veneer of T32 is whole words."""
        if any(site.code >= FIRST_T32 for site in self._page.scan.sites):
            return _reaches(source, target) and not target & 3
        return super()._can_branch(source, target)


def _reaches(source: int, target: int) -> bool:
    try:
        thumb.branch(source, target)
    except OutOfReach:
        return False
    return True
