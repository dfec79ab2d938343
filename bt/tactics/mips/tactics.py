"""`MipsTactics`: scanning and rewriting of MIPS32 code of either byte order, and the ladder of a MIPS guest.

Room: `bt/tactics/mips`. The pages shared with the hypervisor lie where $0 reaches them, so that most of what is
frequent becomes one load or store in the place of the instruction, in a delay slot, too. The rest gets fixups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.pagescan import PAGE, Found
from bt.tactics.fixed import words as fixed_words
from bt.tactics.fixed.body import Body, Piece
from bt.tactics.fixed.ladder import FixedGround, FixedLadder, Replacement
from bt.tactics.fixed.tactics import FixedWidth
from bt.tactics.mips import fixups, words
from bt.tactics.tactics import Choice, CodePage, Placing, Refused, Region, Tactic
from bt.textmap import mark, pieces
from emulator.isa.operation import Operation
from emulator.isa.sensitive import Route
from paravirt import abi

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.image import Image
    from bt.pagecache import PageCache
    from bt.textmap import Stretch

_WINDOW: Final = abi.MIPS32
_ENABLED: Final = _WINDOW.shared_page + _WINDOW.interrupt_state
_REGISTERS: Final = abi.MIPS_REGISTERS
_SAME: Final = {
    Operation.LOAD_LINKED: "the link is broken at every exception return, as on the bare processor",
    Operation.STORE_CONDITIONAL: "the link is broken at every exception return, as on the bare processor",
    Operation.USE_COPROCESSOR: "the real coprocessor faults where the virtual one does",
    Operation.READ_HARDWARE_REGISTER: "the real HWREna lets it run where the virtual one does",
    Operation.CONDITIONAL_TRAP: "where its condition is true, the exception is the guest's own",
}
_FAR: Final = 28
"""Offset of the scratch word of far branches, which no fixup uses."""
_LUI, _ORI, _JR = 15, 13, 8
_DOES_NOT_COME_BACK: Final = frozenset(
    {Operation.RETURN_FROM_EXCEPTION, Operation.RETURN_FROM_DEBUG, Operation.SYSTEM_CALL, Operation.BREAKPOINT}
)
_RUNS: Final = frozenset({"RDHWR UserLocal", "LL", "SC", "COP1", "SYNCI", "Txx"})


class MipsTactics(FixedWidth):
    """See `bt.tactics.tactics.Tactics`."""

    branch_size = 8
    far_size = 20
    far_clobbers = ("page of registers, scratch word 7",)
    revision = 3

    def pack(self, *values: int) -> bytes:
        """Words in the guest's byte order."""
        order = ">" if self.byte_order == "big" else "<"
        return np.array(values, dtype=f"{order}u4").tobytes()

    def word(self, code: bytes, offset: int) -> int:
        """The word at an offset."""
        return int.from_bytes(code[offset : offset + 4], "big" if self.byte_order == "big" else "little")

    def branches(self, code: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Branches relative to PC."""
        return words.branch_targets(code)

    def branch(self, source: int, target: int) -> bytes:
        """J and an empty delay slot."""
        return self.pack(words.jump(source, target), words.NOP)

    def trap(self, site: Found) -> bytes:
        """A reserved instruction of coprocessor 0."""
        return self.pack(words.TRAP)

    @property
    def fill(self) -> bytes:
        """The same."""
        return self.pack(words.TRAP)

    def far_branch(self, source: int, target: int) -> bytes:
        """JR through $at, which a scratch word keeps: the delay slot gives it back."""
        keep = _REGISTERS + abi.MIPS_SCRATCH + _FAR
        return self.pack(
            words.store(words.AT, keep),
            words.immediate(_LUI, 0, words.AT, target >> 16),
            words.immediate(_ORI, words.AT, words.AT, target),
            words.AT << 21 | _JR,
            words.load(words.AT, keep),
        )

    def padding(self, page: CodePage) -> Sequence[tuple[int, int]]:
        """NOPs that nothing runs into: behind what never goes on, and its delay slot."""
        code = fixed_words.words_of(page.code, self.byte_order)
        return fixed_words.runs_behind(words.does_not_go_on(code), code == words.NOP, skip=2)

    def sweep(self, image: Image) -> tuple[Stretch, ...]:
        """Every word; besides what all have in common, J, JAL and addresses that code puts together lead somewhere."""
        stretches = super().sweep(image)
        leads = []
        for _start, _end, parts in pieces(image):
            for address, data in parts:
                code = fixed_words.words_of(data, self.byte_order)
                leads += [words.jump_targets(code, address), words.made_addresses(code)]
        mark(stretches, [found.astype(np.uint64) for found in leads], taken=False)
        return stretches

    def ladder(self, strategy: str, image: Image | None, delta: int = 0, cache: PageCache | None = None) -> MipsLadder:
        """What is known of a kernel is not needed, but where it lies."""
        return MipsLadder(self, image, delta)


class MipsLadder(FixedLadder):
    """See `bt.tactics.tactics.Ladder`."""

    tactics: MipsTactics

    def __init__(self, tactics: MipsTactics, image: Image | None, delta: int = 0) -> None:
        first, end = _WINDOW.fixups, _WINDOW.fixups + _WINDOW.fixup_size
        ranges = image.text_ranges if image is not None else ()
        if any(start + delta < end and first < stop + delta for start, stop in ranges):
            end = first  # the guest's own code is there
        super().__init__(tactics, Region(first, end), image)

    def native(self, page: CodePage, site: Found) -> str:
        """What runs by itself."""
        row = self.tactics.row_of(site.code)
        if row.name == "SYNCI":
            return "no page is writable and executable, so nothing stale is executed"
        return _SAME[row.operation] if row.name in _RUNS else ""

    def replacement(self, page: CodePage, site: Found) -> Replacement | None:
        """One word for one word; right in a delay slot, too."""
        row = self.tactics.row_of(site.code)
        word = self.tactics.word(page.code, site.offset)
        register = word >> 16 & 31
        if row.operation is Operation.MAINTAIN_CACHES:
            return self._one(words.NOP, "caches keep nothing that memory has not")
        if row.operation is Operation.DISABLE_INTERRUPTS and not register:
            return self._one(words.store(0, _ENABLED), "the interrupt enable is a word of the shared page")
        if row.operation is Operation.ENABLE_INTERRUPTS and not register:
            reason = "the interrupt enable is a word of the shared page, and SP is never 0"
            return self._one(words.store(words.SP, _ENABLED), reason)
        kind, _, name = row.name.partition(" ")
        if kind == "MFC0" and name in abi.MIPS_READABLE:
            return self._one(words.load(register, _REGISTERS + abi.MIPS_READABLE[name]), "a copy is in the shared page")
        if kind == "MTC0" and name in abi.MIPS_WRITABLE:
            at = _REGISTERS + abi.MIPS_WRITABLE[name]
            return self._one(words.store(register, at), "the register is a word of the shared page")
        return None

    def _one(self, word: int, reason: str) -> Replacement:
        return Replacement(self.tactics.pack(word), reason)

    def bodies(self, page: CodePage, site: Found, strategy: str) -> Iterator[tuple[Tactic, str, Body]]:
        """Status is read and written in a fixup; anything else can call. With a neighbour behind, or one before."""
        template, work = self._work(page, site, strategy)
        tactic, reason = (
            (Tactic.HYPERCALL, "the fixup calls the hypervisor") if template is None else (Tactic.INLINE, template.name)
        )
        word_at = partial(_word_at, self.tactics, page)
        for body in fixups.windows(page, site, work, template, word_at, self.tactics.pack):
            yield tactic, reason, body

    def body(self, page: CodePage, site: Found, strategy: str) -> tuple[Tactic, str, Body]:
        """The first of them."""
        return next(self.bodies(page, site, strategy))

    def _work(self, page: CodePage, site: Found, strategy: str) -> tuple[fixups.Template | None, list[Piece]]:
        """What a fixup does for the instruction. Raises `Refused`."""
        row, tactics = self.tactics.row_of(site.code), self.tactics
        word = tactics.word(page.code, site.offset)
        register = word >> 16 & 31
        template = None
        if strategy in ("inline", "auto") and row.name == "MFC0 Status":
            template = fixups.read_status(register)
        elif strategy in ("inline", "auto") and row.name == "MTC0 Status":
            template = fixups.write_status(register)
        elif strategy == "inline" or Route.HYPERCALL not in row.routes:
            raise Refused("no fixup can do its work in the guest")
        elif strategy == "auto":
            raise Refused("a call would exit as well, and so does the instruction")
        elif row.operation in _DOES_NOT_COME_BACK:
            raise Refused("it does not go on behind itself, so that a fixup would be left in the midst")
        return template, fixups.pieces(template, site, row.operation, tactics.pack(word), tactics.pack)

    def survey(self, page: CodePage) -> MipsGround:
        """The page, with an eye for clusters."""
        return MipsGround(self, page)


def _word_at(tactics: MipsTactics, page: CodePage, offset: int) -> int | None:
    return tactics.word(page.code, offset) if 0 <= offset <= PAGE - 4 else None


class MipsGround(FixedGround):
    """One page; see `bt.tactics.tactics.Ground`."""

    @cached_property
    def _targets(self) -> int:
        """What all have, and where J and JAL of the page itself lead."""
        page = self._page
        known = page.pristine.targets if page.pristine is not None else 0
        code = fixed_words.words_of(page.code, self._tactics.byte_order)
        found = words.jump_targets(code, page.address).tolist()
        own: int = sum(1 << at for at in {target - page.address for target in found} if 0 <= at < PAGE)
        return self._tactics.own_targets(page.code) | known | own

    def choose(self, site: Found, strategy: str, used: int = 0) -> Choice:
        """DI with a result and what is made of it go together; for the rest climb."""
        tactics = self._tactics
        assert isinstance(tactics, MipsTactics)
        row = tactics.row_of(site.code)
        code, at = self._page.code, site.offset
        word = tactics.word(code, at)
        register = word >> 16 & 31
        if strategy == "hypercall":
            # A call would raise what the instruction raises only sometimes, or does not know LLbit.
            native = self._ladder.native(self._page, site)
            return Choice(site, Tactic.SAME, native) if native else super().choose(site, strategy, used)
        if strategy not in ("inline", "auto") or row.operation is not Operation.DISABLE_INTERRUPTS or not register:
            return super().choose(site, strategy, used)
        refused = self._refusal(tactics, at, register, used)
        if refused:
            return Choice(site, Tactic.NATIVE, "exits by itself in user mode", refused)
        made = tactics.pack(words.load(register, _ENABLED), words.store(0, _ENABLED), words.set_if_nonzero(register))
        reason = "the interrupt enable is a word of the shared page; done with the two instructions behind it"
        return Choice(site, Tactic.REPLACED, reason, "", Placing.CLUSTER, at, at + len(made), made)

    def _refusal(self, tactics: MipsTactics, at: int, register: int, used: int) -> str:
        """Why DI at `at` does not become one with ANDI and EHB behind it; "" where it does."""
        page = self._page
        if at + 12 > PAGE:
            return "what is made of its result is in the next page"
        if at and words.has_delay_slot(tactics.word(page.code, at - 4)):
            return "it is in a delay slot, which holds one instruction"
        follows = tactics.word(page.code, at + 4), tactics.word(page.code, at + 8)
        if not words.keeps_lowest_bit(follows[0], register) or follows[1] not in (words.EHB, words.NOP):
            return "it gives all of Status, not only the interrupt enable"
        inside = 1 << at + 4 | 1 << at + 8
        if used & (inside | 1 << at):
            return "another patch holds what is beside it"
        if page.pristine is None:
            return "what is behind it would change as well, and not all branches are known here"
        if self._targets & inside or page.pristine.taken & inside:
            return "a branch leads behind it, or the kernel looks there"
        return "execution begins behind it" if at < page.entry < at + 12 else ""
