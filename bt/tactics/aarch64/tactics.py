"""`A64Tactics`: what scanning and rewriting must know of A64, and its ladder.

Room: `bt/tactics/aarch64`. Most sensitive instructions trap by themselves; what is frequent of them is made to need no
exit: by a control that lets it run, by another register that user code may read, or by a fixup.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.tactics.aarch64 import far
from bt.tactics.fixed.body import Body, BranchDraft, Call, Code, Relative
from bt.tactics.fixed.ladder import FixedGround, FixedLadder, Replacement
from bt.tactics.fixed.tactics import FixedWidth
from bt.tactics.fixed.words import runs_behind, words_of
from bt.tactics.tactics import Choice, CodePage, OutOfReach, Refused, Region, Tactic
from emulator.isa.aarch64.encoding import HVC, NOP, branch, mrs, msr
from emulator.isa.aarch64.registers import BY_NAME
from emulator.isa.sensitive import Route
from paravirt import abi

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.pagescan import Found

_REGISTER: Final = 31
_STACK: Final = 31
_TRAP: Final = struct.pack("<I", HVC | 0x7E74 << 5)
"""HVC with a number of our own: undefined at EL0, whatever its number."""
_TEST_UPPER: Final = 0x3600_0000 | 1 << 31 | (55 - 32) << 19
"""`tbz x0, #55, .`: the branch is taken for addresses of the lower half."""

_MASKS: Final = "the interrupt masks of EL0 stand for those of EL1, and SCTLR_EL1.UMA lets it change them"
_SAME: Final[dict[str, str]] = {
    "MRS CTR_EL0": "SCTLR_EL1.UCT lets it read the cache type",
    "MRS DCZID_EL0": "SCTLR_EL1.DZE lets DC ZVA run, and this says so",
    "DC ZVA": "SCTLR_EL1.DZE lets it run",
    "DC CVAC": "SCTLR_EL1.UCI lets it run",
    "DC CVAU": "SCTLR_EL1.UCI lets it run",
    "DC CIVAC": "SCTLR_EL1.UCI lets it run",
    "IC IVAU": "SCTLR_EL1.UCI lets it run, and code that was written is seen without it",
}
"""Rows that do the same at EL0 while the hypervisor lets them, by whatever strategy."""
_SAME_INLINE: Final[dict[str, str]] = dict.fromkeys(
    ("MSR DAIFSet (immediate)", "MSR DAIFClr (immediate)", "MRS DAIF", "MSR DAIF"), _MASKS
)
_WHILE: Final = "while the kernel runs, {} holds {}"
_STAND_IN: Final[dict[str, tuple[Callable[[int, int], int], str, str]]] = {
    f"{way} {name}": (word, stand_in, _WHILE.format(stand_in, name))
    for name, stand_in in abi.AARCH64_STAND_INS.items()
    for way, word in (("MRS", mrs), ("MSR", msr))
    if (way, name) != ("MSR", "SP_EL0")  # its stand-in can be read only
}
"""Registers of EL1 that a register of EL0 stands for: how it is accessed, which, and why that does the same."""
_READ_RIGHTS, _WRITE_RIGHTS = "MRS CPACR_EL1", "MSR CPACR_EL1"
_ALL_BUT_FPEN: Final = 0x926A_F400
"""`and x0, x0, #0xffffffffffcfffff`."""
_INVALIDATES: Final = frozenset({"TLBI VAAE1", "TLBI VAALE1"})
_SCRATCH: Final = BY_NAME[abi.AARCH64_SCRATCH].encoding


class A64Tactics(FixedWidth):
    """See `bt.tactics.tactics.Tactics`."""

    def branches(self, code: NDArray[np.uint32]) -> NDArray[np.int64]:
        """B and BL; B.cond; CBZ and CBNZ; TBZ and TBNZ."""
        found = [np.empty(0, np.int64)]
        for mask, value, low, bits in (
            (0x7C00_0000, 0x1400_0000, 0, 26),
            (0xFF00_0000, 0x5400_0000, 5, 19),
            (0x7E00_0000, 0x3400_0000, 5, 19),
            (0x7E00_0000, 0x3600_0000, 5, 14),
        ):
            at = np.flatnonzero((code & np.uint32(mask)) == np.uint32(value))
            distance = (code[at] >> np.uint32(low)).astype(np.int64) & (1 << bits) - 1
            distance -= (distance >> bits - 1) << bits
            found.append((at + distance) * 4)
        return np.concatenate(found)

    def branch(self, source: int, target: int) -> bytes:
        """`b target`."""
        try:
            return struct.pack("<I", branch(source, target))
        except ValueError as error:
            raise OutOfReach(str(error)) from None

    def trap(self, site: Found) -> bytes:
        """HVC."""
        return _TRAP

    def needs_trap(self, code: int) -> bool:
        """Besides what goes on silently: the performance monitors, of which some hold other registers."""
        return super().needs_trap(code) or self._is_monitor(code)

    def _is_monitor(self, code: int) -> bool:
        return self.row_of(code).condition.startswith("PMUSERENR_EL0")

    @property
    def fill(self) -> bytes:
        """HVC."""
        return _TRAP

    def padding(self, page: CodePage) -> Sequence[tuple[int, int]]:
        """NOPs and zeros behind what never goes on."""
        code = words_of(page.code, "little")
        idle = (code == np.uint32(NOP)) | (code == 0)
        return runs_behind(far.does_not_go_on(code), idle)

    def ladder(self, strategy: str, image: Image | None, delta: int = 0, cache: PageCache | None = None) -> A64Ladder:
        """The ladder of any guest: the window is below where Linux is linked, and out of reach for others."""
        return A64Ladder(self, Region(abi.AARCH64.base, abi.AARCH64.shared_page), image)


class A64Ladder(FixedLadder):
    """Tactics for one guest."""

    def native(self, page: CodePage, site: Found) -> str:
        """Masks, besides what `A64Ground` says of every strategy."""
        return _SAME_INLINE.get(self.tactics.row_of(site.code).name, "")

    def replacement(self, page: CodePage, site: Found) -> Replacement | None:
        """Another register."""
        stand_in = _STAND_IN.get(self.tactics.row_of(site.code).name)
        if stand_in is None:
            return None
        access, name, reason = stand_in
        word = int.from_bytes(page.code[site.offset : site.offset + 4], "little")
        return Replacement(struct.pack("<I", access(BY_NAME[name].encoding, word & _REGISTER)), reason)

    def body(self, page: CodePage, site: Found, strategy: str) -> tuple[Tactic, str, Body]:
        """LDTR and its like check bit 55 of their base; anything else can call."""
        row = self.tactics.row_of(site.code)
        code = page.code[site.offset : site.offset + 4]
        call = Call(_TRAP, row.operation, site.offset, code, inside=False)
        if row.name.startswith(("LDTR", "STTR")) and strategy != "hypercall":
            return Tactic.INLINE, "an address of the upper half is refused", self._checked(site, code, call)
        if row.name in _INVALIDATES and strategy != "hypercall":
            reason = "a page that was not mapped since is not invalidated again"
            return Tactic.INLINE, reason, self._invalidation(site, code)
        operand = int.from_bytes(code, "little") & _REGISTER
        if row.name == _READ_RIGHTS and strategy != "hypercall" and operand != _REGISTER:
            load = Relative(8, lambda at, _page: _load_shared(at, operand, abi.AARCH64_FLOATING_POINT))
            return Tactic.INLINE, "a copy is in the shared page", Body((load,), site.offset, site.offset + 4)
        if row.name == _WRITE_RIGHTS and strategy != "hypercall":
            reason = "FPEN is a word of the shared page, which the engine asks"
            return Tactic.INLINE, reason, self._write_rights(site, code, call)
        if strategy == "inline" or Route.HYPERCALL not in row.routes:
            raise Refused("no fixup can do its work in the guest")
        if strategy == "auto":
            raise Refused("a call would exit as well, and so does the instruction")
        body = Body((call,), site.offset, site.offset + 4, leaves=False)
        return Tactic.HYPERCALL, "the fixup calls the hypervisor", body

    def _invalidation(self, site: Found, code: bytes) -> Body:
        """TLBI by address, left out where the hypervisor says that there is nothing to invalidate (`abi`)."""
        operand = int.from_bytes(code, "little") & _REGISTER
        scratch = 16 if operand != 16 else 17
        save, restore = msr(_SCRATCH, scratch), mrs(_SCRATCH, scratch)
        load = Relative(8, lambda at, _page: _load_shared(at, scratch, abi.AARCH64_UNMAPPED))
        differs = 0xCA00_0000 | operand << 16 | scratch << 5 | scratch  # eor
        skip = 0xB400_0000 | 3 << 5 | scratch  # cbz, to what is behind the call
        row = self.tactics.row_of(site.code)
        return Body(
            (
                Code(struct.pack("<I", save)),
                load,
                Code(struct.pack("<3I", differs, skip, restore)),
                Call(_TRAP, row.operation, site.offset, code, inside=False),
                Code(struct.pack("<I", restore)),
            ),
            site.offset,
            site.offset + 4,
            (abi.AARCH64_SCRATCH,),
        )

    def _write_rights(self, site: Found, code: bytes, call: Call) -> Body:
        """MSR CPACR_EL1: a store where only FPEN changes. Restoring the scratch register behind it is a write of a
        system register, by which the engine looks at the word."""
        operand = int.from_bytes(code, "little") & _REGISTER
        scratch = 16 if operand != 16 else 17
        save, restore = struct.pack("<I", msr(_SCRATCH, scratch)), struct.pack("<I", mrs(_SCRATCH, scratch))
        differs = 0xCA00_0000 | operand << 16 | scratch << 5 | scratch  # eor
        other = _ALL_BUT_FPEN | scratch << 5 | scratch
        over = 0xB500_0000 | 6 << 5 | scratch  # cbnz, to what restores before the call
        return Body(
            (
                Code(save),
                Relative(8, lambda at, _page: _load_shared(at, scratch, abi.AARCH64_FLOATING_POINT)),
                Code(struct.pack("<3I", differs, other, over)),
                Relative(8, lambda at, _page: _load_shared(at, scratch, abi.AARCH64_FLOATING_POINT, store=operand)),
                Code(restore + save + struct.pack("<I", branch(0, 12))),
                Code(restore),
                call,
            ),
            site.offset,
            site.offset + 4,
            (abi.AARCH64_SCRATCH,),
        )

    def _checked(self, site: Found, code: bytes, call: Call) -> Body:
        """An access at EL0 is a plain one; in the kernel's view it could reach what is the kernel's, all of which is in
        the upper half. Bit 55 of the base says which half (DDI 0487, D8.1.3), and no offset changes that of an address
        that is mapped."""
        base = int.from_bytes(code, "little") >> 5 & _REGISTER
        if base == _STACK:
            raise Refused("its base is the stack pointer, which no instruction tests bit by bit")
        over = struct.pack("<I", _TEST_UPPER | 2 << 5 | base)
        return Body((Code(over), call, Code(code)), site.offset, site.offset + 4)

    def survey(self, page: CodePage) -> FixedGround:
        """The page."""
        return A64Ground(self, page)


def _load_shared(at: int, register: int, offset: int, store: int = -1) -> bytes:
    """`adrp` and `ldr` of a word of the shared page; or `str` of another register."""
    pages = (abi.AARCH64.shared_page >> 12) - (at >> 12)
    if not -(1 << 20) <= pages < 1 << 20:
        raise OutOfReach(f"the shared page is out of reach from {at:#x}")
    return struct.pack(
        "<2I",
        0x9000_0000 | (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5 | register,
        (0xF940_0000 if store < 0 else 0xF900_0000)
        | offset // 8 << 10
        | register << 5
        | (register if store < 0 else store),
    )


class A64Ground(FixedGround):
    """One page."""

    def choose(self, site: Found, strategy: str, used: int = 0) -> Choice:
        """What runs by whatever strategy, else climb."""
        reason = _SAME.get(self._ladder.tactics.row_of(site.code).name)
        if reason is not None:
            return Choice(site, Tactic.SAME, reason)
        return super().choose(site, strategy, used)

    def _draft(self, body: Body, used: int) -> BranchDraft:
        """A branch, or by a veneer to anywhere. Raises `Refused`."""
        region, page = self._ladder.region, self._page
        if region.start == region.end:
            raise Refused(self._ladder.nowhere)
        there = self._reaches(page.address + body.start, region)
        if there and (not body.leaves or self._reaches_back(region, page.address + body.end)):
            return super()._draft(body, used)
        return far.draft(body, self._tactics, self._find_padding(body, used, far.VENEER_SIZE), _SCRATCH)
