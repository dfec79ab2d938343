"""The fixups of MIPS32: Status without an exit, calls, and the windows that a jump and its delay slot take.

Room: `bt/tactics/mips`. A fixup reaches the shared pages from $0 and keeps what it borrows in scratch words there, so
that no register is used up, not even k0 and k1. J and its delay slot are two words: a site's neighbour moves into the
fixup, or, where the site stands in a delay slot, the branch before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt.tactics.fixed.body import Body, Call, Code, Piece, Relative
from bt.tactics.mips import words
from bt.tactics.tactics import Refused
from emulator.isa.mips import registers as r
from paravirt import abi

if TYPE_CHECKING:
    from bt.pagescan import Found
    from bt.tactics.tactics import CodePage
    from emulator.isa.operation import Operation

_WINDOW: Final = abi.MIPS32
_ENABLED: Final = _WINDOW.shared_page + _WINDOW.interrupt_state
_STATUS: Final = _WINDOW.shared_page + abi.MIPS_STATUS
_HELD: Final = _WINDOW.shared_page + abi.MIPS_STATUS_HELD
_SCRATCH: Final = abi.MIPS_REGISTERS + abi.MIPS_SCRATCH
_ANDI, _ORI, _LUI, _BNE, _BEQ = 12, 13, 15, 5, 4
_MOVN, _AND, _OR, _XOR, _SLTU = 0x0B, 0x24, 0x25, 0x26, 0x2B
_BORROWED: Final = (8, 9, 10)
"""t0 to t2: of these a fixup takes those that its instruction does not use."""

Pack = Callable[..., bytes]


@dataclass(frozen=True, slots=True)
class Template:
    """What stands for one instruction."""

    name: str
    words: tuple[int, ...]
    reads: tuple[int, ...]
    """Registers that the instruction reads."""
    writes: int
    """The one that it writes; 0: none."""
    tail: tuple[int, ...] | None = None
    """Where it may have to call: what stands before the call, to which the words branch; behind the call it goes on."""
    scratch: int = 0

    @property
    def clobbers(self) -> tuple[str, ...]:
        """For people."""
        return tuple(f"page of registers, scratch word {number}" for number in range(self.scratch))


def _free(count: int, *taken: int) -> list[int]:
    return [number for number in _BORROWED if number not in taken][:count]


def _save(register: int, number: int) -> int:
    return words.store(register, _SCRATCH + 4 * number)


def _restore(register: int, number: int) -> int:
    return words.load(register, _SCRATCH + 4 * number)


def read_status(target: int) -> Template:
    """MFC0 rt, Status: what the shared page has of it, and the interrupt enable."""
    (free,) = _free(1, target)
    made = (
        _save(free, 0),
        words.load(target, _STATUS),
        words.load(free, _ENABLED),
        words.three(_SLTU, free, 0, free),
        words.three(_OR, target, target, free),
        _restore(free, 0),
    )
    return Template("Status is two words of the shared page", made, (), target, scratch=1)


def write_status(source: int) -> Template:
    """MTC0 rt, Status, where it changes only IE, EXL, KSU and CU0, or CU1 while the real coprocessor faults anyway, and
    leaves kernel mode as it is; else it calls.

    Of the two stores each exits while an interrupt waits for what they may open (`abi.MIPS_STATUS`).
    """
    one, two = _free(2, source)
    leave = (_restore(two, 1), _restore(one, 0))
    # Whether user mode would follow: KSU is not 0, and EXL does not overrule it.
    mode = (
        words.immediate(_ANDI, source, one, r.STATUS_KSU),
        words.immediate(_ANDI, source, two, r.STATUS_EXL),
        words.three(_MOVN, one, 0, two),
    )
    changes = (
        words.three(_XOR, two, two, source),
        words.load(one, _HELD),
        words.three(_AND, two, two, one),
    )
    do = (
        words.three(_XOR, two, source, one),
        words.store(two, _STATUS),
        words.store(one, _ENABLED),
        *leave,
    )
    # To the call lie: the rest of `do`, the branch around the call with its delay slot.
    behind = len(do) + 2
    made = (
        _save(one, 0),
        _save(two, 1),
        *mode,
        words.immediate(_BNE, one, 0, 1 + len(changes) + 2 + behind),
        words.load(two, _STATUS),
        *changes,
        words.immediate(_BNE, two, 0, 1 + behind),
        words.immediate(_ANDI, source, one, r.STATUS_IE),
        *do,
        words.immediate(_BEQ, 0, 0, 1 + len(leave) + 1),
        words.NOP,
    )
    return Template("Status is two words of the shared page", made, (source,), 0, tail=leave, scratch=2)


def pieces(template: Template | None, site: Found, operation: Operation, instruction: bytes, pack: Pack) -> list[Piece]:
    """A template, or (None) a call for the whole instruction, as the pieces of a body."""
    call = Call(pack(words.TRAP), operation, site.offset, instruction)
    if template is None:
        return [call]
    made: list[Piece] = [Code(pack(*template.words))]
    if template.tail is not None:
        made += [Code(pack(*template.tail)), call]
    return made


def windows(
    page: CodePage, site: Found, work: list[Piece], template: Template | None, word_at: WordAt, pack: Pack
) -> Iterator[Body]:
    """The bodies that do `work` for a site, with what makes room for a jump, best first. Raises `Refused`."""
    clobbers = template.clobbers if template is not None else ()
    at = site.offset
    before = word_at(at - 4)
    if before is None:
        raise Refused("whether it is in a delay slot is for the page before to say")
    if words.has_delay_slot(before):
        yield _slot(site, before, work, template, word_at(at), pack, clobbers)
        return
    other = {one.offset for one in page.scan.sites}
    begins = page.scan.boundaries
    behind = word_at(at + 4)
    found = False
    if behind is not None and at + 4 not in other and begins >> at + 4 & 1 and words.moves(behind):
        found = True
        yield Body((*work, Code(pack(behind))), at, at + 8, clobbers)
    slotted = words.has_delay_slot(word_at(at - 8) or 0)
    movable = words.moves(before) or words.accesses(before)
    if at >= 8 and movable and not slotted and at - 4 not in other and begins >> at - 4 & 1:
        found = True
        yield Body((Code(pack(before)), *work), at - 4, at + 4, clobbers)
    if not found:
        raise Refused(
            "a jump takes a delay slot, and neither the instruction behind it nor the one before it may be moved"
        )


WordAt = Callable[[int], "int | None"]
"""The word at an offset of the page; None outside."""


def _slot(
    site: Found, branch: int, work: list[Piece], template: Template | None, word: int | None, pack: Pack,
    clobbers: tuple[str, ...],
) -> Body:  # fmt: skip
    """A site in a delay slot: its work, and then the branch, which looks at nothing that the work changes."""
    assert word is not None
    found = words.slot_branch(branch)
    if found is None:
        raise Refused("it is in the delay slot of a branch that may skip it, or is not understood")
    register = word >> 16 & 31
    writes = template.writes if template is not None else register
    if (writes and writes in found.reads) or (found.links and register == found.links):
        raise Refused("it is in a delay slot, and the branch before it looks at the same register")
    start = site.offset - 4
    end = start + 8
    parts: list[Piece] = list(work)
    if found.links:
        parts.append(Relative(8, lambda _at, page: pack(*_address(found.links, page + end))))
    if found.kind in ("register", "register call"):
        parts.append(Code(pack(found.reads[0] << 21 | 8, words.NOP)))
    elif found.kind in ("jump", "call"):
        target = branch & 0x3FF_FFFF
        parts.append(
            Relative(8, lambda at, page: pack(words.jump(at, page + end & 0xF000_0000 | target << 2), words.NOP))
        )
    else:
        taken = branch & ~0xFFFF | 3
        leads = start + words.branch_distance(branch)
        parts.append(
            Relative(
                24,
                lambda at, page: pack(
                    taken, words.NOP, words.jump(at + 8, page + end), words.NOP,
                    words.jump(at + 16, page + leads), words.NOP,
                ),
            )
        )  # fmt: skip
    return Body(tuple(parts), start, end, clobbers, leaves=False)


def _address(register: int, address: int) -> tuple[int, int]:
    """LUI and ORI."""
    return words.immediate(_LUI, 0, register, address >> 16), words.immediate(_ORI, register, register, address)
