"""`ArmTactics`: scanning and rewriting of ARMv7 code, and the ladder of an ARM guest.

Room: `bt/tactics/arm`. Code is A32 unless its image says otherwise (`arm_states`); a page of which no image speaks is
of the state that it is entered in. What is replaced in place, done in a fixup, or left to a trap is decided here, site
by site.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.image import arm_states
from bt.pagescan import PAGE, Found, PageScan
from bt.tactics.arm import mixed, templates, thumb
from bt.tactics.arm.mixed import FIRST_T32
from bt.tactics.arm.templates import Template
from bt.tactics.arm.thumb_fixups import ThumbGround, body_of, instruction_at
from bt.tactics.arm.words import (
    ALWAYS,
    AROUND,
    LOAD_PC,
    NOP,
    UDF,
    branch_targets,
    branch_word,
    does_not_go_on,
    literal_words,
    packed,
    sparse_at,
    sparse_words,
)
from bt.tactics.fixed import words
from bt.tactics.fixed.body import Body, Call
from bt.tactics.fixed.ladder import FixedGround, FixedLadder, Replacement
from bt.tactics.fixed.tactics import FixedWidth
from bt.tactics.tactics import CodePage, Refused, Region, Tactic
from emulator.isa.arm.table import A32_TABLE
from emulator.isa.operation import Operation
from emulator.isa.patterns import PatternTable
from emulator.isa.sensitive import Patterns, Route, SensitiveInstruction
from paravirt import abi

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.textmap import Stretch

_WINDOW: Final = abi.ARMV7
_PC: Final = 15
_HINT_NOP: Final = 0xE320_F000
_DISTINCT: Final = 20
"""Bits that a pattern must fix to be told from data by itself."""
_LOOSE: Final = 1 << 20
"""Mark of a row whose word must be looked at with its neighbours."""
_MANY: Final = 400
"""Changed words from which on a page is scanned as a whole."""
_CPSID, _CPSID_T32, _CPSID_WIDE = 0xF10C_0080, 0xB672, 0xF3AF_8640
"""CPSID I in both states, the latter in 16 and 32 bits."""
_TPIDR: Final = 0x0FFF_0FFF
_READ_PRIVATE, _READ_READ_ONLY, _WRITE_READ_ONLY = 0x0E1D_0F90, 0x0E1D_0F70, 0x0E0D_0F70


def is_distinct(row: SensitiveInstruction, word: int) -> bool:
    """Whether a word that matches a row fixes so many bits that data hardly looks like it."""
    assert isinstance(row.match, Patterns)
    return any(pattern.matches(word) and pattern.mask.bit_count() >= _DISTINCT for pattern in row.match.patterns)


class ArmTactics(FixedWidth):
    """See `bt.tactics.tactics.Tactics`."""

    far_size = 8
    revision = 5

    @cached_property
    def table(self) -> PatternTable:
        """A32's, whose rows are the first of the instruction set's."""
        return A32_TABLE

    def branches(self, code: NDArray[np.uint32]) -> NDArray[np.int64]:
        """B, BL and BLX."""
        return branch_targets(code)

    def branch(self, source: int, target: int) -> bytes:
        """B, which reaches 32 MiB."""
        return packed(branch_word(source, target))

    def far_branch(self, source: int, target: int) -> bytes:
        """LDR PC from the word behind it."""
        return packed(LOAD_PC, target)

    def trap(self, site: Found) -> bytes:
        """UDF, which is unconditional in A32: the condition is looked at when it has trapped. As wide as what it
        stands for; what reaches into the next page traps by its first half, whatever an IT block says."""
        if site.code < FIRST_T32:
            return packed(UDF)
        if site.offset + site.length > PAGE:
            return thumb.packed(thumb.BKPT)
        return thumb.packed(thumb.UDF if site.length == 2 else thumb.UDF_WIDE)

    @property
    def fill(self) -> bytes:
        """UDF."""
        return packed(UDF)

    def padding(self, page: CodePage) -> Sequence[tuple[int, int]]:
        """NOPs behind what never goes on; in a page of T32 code they are halfwords."""
        if any(site.code >= FIRST_T32 for site in page.scan.sites):
            return thumb.padding(np.frombuffer(page.code, "<u2"), page.scan.boundaries)
        code = words.words_of(page.code, self.byte_order)
        idle = (code == np.uint32(NOP)) | (code == np.uint32(_HINT_NOP))
        return words.runs_behind(does_not_go_on(code), idle)

    def scan_states(
        self,
        image: Image | None,
        linked: int | None,
        second: bool,
        code: bytes,
        before: bytes,
        after: bytes,
        entry: int,
    ) -> PageScan | None:
        """Pages with T32 code."""
        known = mixed.page_states(image, linked, second)
        return mixed.scan_page(code, before, after, *known, entry) if known is not None else None

    def data_words(self, image: Image, address: int, code: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """Literal pools."""
        return literal_words(code)

    def sweep(self, image: Image) -> tuple[Stretch, ...]:
        """Every instruction that is no literal; of the rows that random data looks like, only those among others."""
        states = arm_states.of(image)
        stretches = super().sweep(image) if states.plain else mixed.sweep(image, states)
        if states.exact:
            return stretches
        return tuple(replace(stretch, sites=self._plausible(image, stretch)) for stretch in stretches)

    def _plausible(self, image: Image, stretch: Stretch) -> NDArray[np.int64]:
        """The sites of a stretch that stand among instructions, or look like nothing else."""
        keep = np.ones(len(stretch.sites), bool)
        offsets, _, rows = stretch.sites.T
        for segment in image.segments:
            start = max(segment.vaddr, stretch.start) + 3 & -4
            end = segment.vaddr + len(segment.data) & -4
            here = np.flatnonzero((offsets >= start - stretch.start) & (offsets < end - stretch.start))
            if not len(here):
                continue
            values = words.words_of(image.view(start, min(end, stretch.end + 4 * AROUND) - start), self.byte_order)
            places = offsets[here] - (start - stretch.start) >> 2
            loose = (rows[here] < FIRST_T32) & ~self._are_distinct(rows[here], values[places])
            keep[here[loose]] = ~sparse_at(values, places[loose])
        return stretch.sites[keep]

    def _are_distinct(self, rows: NDArray[np.int64], values: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """`is_distinct` for many words: of each pair of row and word once."""
        pairs, back = np.unique(rows << 32 | values, return_inverse=True)
        known = [is_distinct(self.isa.rows[pair >> 32], pair & 0xFFFF_FFFF) for pair in pairs.tolist()]
        return np.array(known, bool)[back]

    def scan_page(self, code: bytes, after: bytes, start: int, pristine: int = 0) -> PageScan:
        """Every word of a page that is no literal; literals that only another page reads are not known here."""
        boundaries = pristine & words.EVERY
        values = words.words_of(code[:PAGE], self.byte_order)
        if not boundaries:
            literal = np.flatnonzero(literal_words(values))
            hole = sum(1 << 4 * place for place in literal.tolist())
            boundaries = words.EVERY & -(1 << start) & ~hole
        found = []
        for place in np.flatnonzero(self._may[values >> np.uint32(16)]).tolist():
            row = self._row_at(values, place) if boundaries >> 4 * place & 1 else -1
            if row >= 0:
                found.append(Found(4 * place, 4, row))
        return PageScan(tuple(found), boundaries, 0)

    @cached_property
    def _may(self) -> NDArray[np.bool_]:
        """Upper halfwords that some row has."""
        return np.asarray(self.table.upper_halfwords(4))

    @cached_property
    def _row_of_word(self) -> dict[int, int]:
        """Rows of words that were looked up: a kernel's sensitive words are few, and stand at many places."""
        return {}

    def _row_at(self, values: NDArray[np.uint32], place: int) -> int:
        """The row of one of a page's words, -1 where there is none, or the word is rather data."""
        word = int(values[place])
        row = self._row_of_word.get(word)
        if row is None:
            row = self._row_of_word[word] = self.table.index_of(word)
            if row >= 0 and not is_distinct(self.isa.rows[row], word):
                row = self._row_of_word[word] = row | _LOOSE
        if row < _LOOSE:
            return row
        first = max(0, place - AROUND)
        return -1 if sparse_words(values[first : place + AROUND + 1])[place - first] else row & ~_LOOSE

    def rescan_page(self, old: bytes, scan: PageScan, new: bytes, pristine: int = 0) -> PageScan:
        """What changed, anew; words do not depend on each other, but for what is around them."""
        before, after = words.words_of(old[:PAGE], self.byte_order), words.words_of(new[:PAGE], self.byte_order)
        boundaries = (pristine or scan.boundaries) & words.EVERY
        if len(before) != len(after):  # the image ends in this page
            return self.scan_page(new[:PAGE], new[PAGE:], scan.start, pristine)
        changed = np.flatnonzero(before != after).tolist()
        if boundaries != scan.boundaries or len(changed) > _MANY:
            return self.scan_page(new[:PAGE], new[PAGE:], scan.start, boundaries)
        sites = {site.offset: site for site in scan.sites}
        for place in changed:
            sites.pop(4 * place, None)
            row = self._row_at(after, place) if boundaries >> 4 * place & 1 else -1
            if row >= 0:
                sites[4 * place] = Found(4 * place, 4, row)
        return PageScan(tuple(sorted(sites.values())), boundaries, 0)

    def with_entry(self, scan: PageScan, code: bytes, after: bytes, entry: int) -> PageScan:
        """What is entered is no literal."""
        if scan.boundaries >> entry & 1:
            return scan
        wider = super().with_entry(scan, code, after, entry)
        return self.scan_page(code, after, 0, wider.boundaries)

    def ladder(self, strategy: str, image: Image | None, delta: int = 0, cache: PageCache | None = None) -> ArmLadder:
        """One for all guests: what is known of a kernel is not needed."""
        return ArmLadder(self, strategy, image)


class ArmLadder(FixedLadder):
    """See `bt.tactics.tactics.Ladder`."""

    alignment = 4
    unit = (abi.ARM_UNIT, abi.ARM_UNIT_FIRST, abi.ARM_UNIT_END)
    """Fixups lie in the code pages of the window's units."""

    def __init__(self, tactics: ArmTactics, strategy: str, image: Image | None = None) -> None:
        super().__init__(tactics, Region(_WINDOW.base, _WINDOW.base + _WINDOW.fixup_size - abi.ARM_UNIT), image)
        self.exchanges_threads = strategy in ("inline", "auto")
        """Whether the code that runs has the thread registers exchanged (`abi.ARM_THREADS_EXCHANGED`)."""

    def native(self, page: CodePage, site: Found) -> str:
        """SETEND."""
        if self.tactics.row_of(site.code).operation is Operation.SET_ENDIANNESS:
            return "the guest's byte order is the real one"
        return ""

    def replacement(self, page: CodePage, site: Found) -> Replacement | None:
        """Thread registers exchanged, and cache maintenance left out."""
        row = self.tactics.row_of(site.code)
        if site.offset + site.length > PAGE:
            return None
        word = _word(page, site)
        thumbs = site.code >= FIRST_T32
        encode = thumb.packed if thumbs else packed
        if row.operation is Operation.MAINTAIN_CACHES:
            nop = thumb.NOP_WIDE if thumbs else NOP
            return Replacement(encode(nop), "stores to code are seen by their mapping, so no cache is to be maintained")
        number = {_READ_PRIVATE: 3, _READ_READ_ONLY: 2, _WRITE_READ_ONLY: 2}.get(word & _TPIDR)
        if number is None:
            return None
        return Replacement(
            encode(word & ~0xE0 | number << 5), "the register's value is kept in one that user mode may access"
        )

    def bodies(self, page: CodePage, site: Found, strategy: str) -> Iterator[tuple[Tactic, str, Body]]:
        """A status read with what masks interrupts behind it, first."""
        both = self._with_mask(page, site) if strategy in ("inline", "auto") else None
        if both is not None:
            yield both
        yield self.body(page, site, strategy)

    def body(self, page: CodePage, site: Found, strategy: str) -> tuple[Tactic, str, Body]:
        """A template, or a call for the whole instruction."""
        row = self.tactics.row_of(site.code)
        if site.code >= FIRST_T32:
            return self._thumb_body(page, site, strategy, row)
        word = _word(page, site)
        condition = word >> 28 if word >> 28 < ALWAYS else ALWAYS
        instruction = packed(word)
        if (strategy in ("inline", "auto") and Route.INLINE in row.routes) or row.operation is Operation.ACCESS_AS_USER:
            template = _template(row.name, row.operation, word)
            if template is not None and strategy != "hypercall":
                made = templates.pieces(template, condition, row.operation, site.offset, instruction)
                body = Body(tuple(made), site.offset, site.offset + 4, template.clobbers)
                return Tactic.INLINE, f"{template.name}, by the shared page", body
        self._refuse_call(site, strategy, row)
        call = Call(packed(UDF), row.operation, site.offset, instruction)
        return Tactic.HYPERCALL, "the hypervisor does it", Body((call,), site.offset, site.offset + 4)

    def _refuse_call(self, site: Found, strategy: str, row: SensitiveInstruction) -> None:
        """Raise `Refused` where a call would not be better than what the site has."""
        if strategy == "inline":
            raise Refused("no fixup without the hypervisor is known for it")
        if Route.HYPERCALL not in row.routes or not self.tactics.needs_trap(site.code):
            raise Refused("a call would cost as much as its trap")
        if strategy == "auto":
            raise Refused("a call would cost as much as a planted trap")

    def _with_mask(self, page: CodePage, site: Found) -> tuple[Tactic, str, Body] | None:
        """MRS of CPSR and the CPSID I behind it (`local_irq_save`) as one fixup; None where these are not there."""
        row = self.tactics.row_of(site.code)
        if row.name.removesuffix(" (T32)") != "MRS CPSR":
            return None
        behind = next((one for one in page.scan.sites if one.offset == site.offset + site.length), None)
        if behind is None or behind.offset + behind.length > PAGE:
            return None
        word, masks = _word(page, site), _word(page, behind)
        if site.code >= FIRST_T32:
            if masks != (_CPSID_T32 if behind.length == 2 else _CPSID_WIDE):
                return None
            template = templates.save_interrupts(word >> 8 & 15)
            body = body_of(page, site, template, row.operation, both=True)
        else:
            target = word >> 12 & 15
            if masks != _CPSID or word >> 28 != ALWAYS or target == _PC:
                return None
            template = templates.save_interrupts(target)
            made = templates.pieces(template, ALWAYS, row.operation, site.offset, packed(word))
            body = Body(tuple(made), site.offset, site.offset + 8, template.clobbers)
        return Tactic.INLINE, f"{template.name}, by the shared page", body

    def _thumb_body(
        self, page: CodePage, site: Found, strategy: str, row: SensitiveInstruction
    ) -> tuple[Tactic, str, Body]:
        """A32's template, or a call, entered from T32 and left to it."""
        if strategy in ("inline", "auto"):
            template = _template_t32(row.name, row.operation, _word(page, site), site.length)
            if template is not None:
                reason = f"{template.name}, by the shared page"
                return Tactic.INLINE, reason, body_of(page, site, template, row.operation)
        self._refuse_call(site, strategy, row)
        return Tactic.HYPERCALL, "the hypervisor does it", body_of(page, site, None, row.operation)

    def survey(self, page: CodePage) -> FixedGround:
        """The page; fixups of T32 sites are reached and left by T32 branches."""
        return ThumbGround(self, page)


def _word(page: CodePage, site: Found) -> int:
    if site.code >= FIRST_T32:
        return instruction_at(page, site.offset, site.length)
    return int.from_bytes(page.code[site.offset : site.offset + 4], "little")


def _template_t32(name: str, operation: Operation, word: int, length: int) -> Template | None:
    """The template that stands for a T32 instruction; None where there is none."""
    name = name.removesuffix(" (T32)")
    if name in ("CPSIE", "CPSID"):
        only_interrupts = word & 7 == 2 if length == 2 else word & 0x1E0 == 0x40
        return templates.set_interrupts(name == "CPSID") if only_interrupts else None
    if name == "MRS CPSR":
        return templates.read_status(word >> 8 & 15)
    if name == "MSR CPSR":
        return templates.write_control(word >> 16 & 15) if word & 0xF00 == 0x100 else None
    if operation is Operation.ACCESS_AS_USER:
        return templates.access_as_user_t32(word)
    return _coprocessor(name, word)


def _coprocessor(name: str, word: int) -> Template | None:
    """The template of an access to a register, which T32 encodes as A32 does where there is no condition."""
    make = {
        "MRC TPIDRURW": templates.read_thread,
        "MCR TPIDRURW": templates.write_thread,
        "MRC CTR": templates.read_cache_type,
        "MRC CPACR": templates.read_rights,
        "MCR CPACR": templates.write_rights,
        "VMRS FPEXC": templates.read_enable,
        "VMSR FPEXC": templates.write_enable,
    }.get(name)
    target = word >> 12 & 15
    return make(target) if make is not None and target != _PC else None


def _template(name: str, operation: Operation, word: int) -> Template | None:
    """The template that stands for an instruction; None where there is none."""
    target = word >> 12 & 15
    if name in ("CPSIE", "CPSID"):
        only_interrupts = word & 0x1C0 == 0x80 and not word & 1 << 17
        return templates.set_interrupts(name == "CPSID") if only_interrupts else None
    if name == "MRS CPSR":
        return templates.read_status(target) if target != _PC else None
    if name == "MSR CPSR":
        source = word & 15
        plain = not word & 1 << 25 and word >> 16 & 15 == 1 and source != _PC
        return templates.write_control(source) if plain else None
    if operation is Operation.ACCESS_AS_USER:
        return templates.access_as_user(word)
    return _coprocessor(name, word)
