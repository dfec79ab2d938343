"""The fixups of A32: status reads and writes, thread registers and unprivileged accesses without an exit.

Room: `bt/tactics/arm`. A fixup uses words of the shared page, which it reaches relative to PC, and leaves registers and
flags as the instruction does. Its stores into the shared page exit while an interrupt waits: the first one is its first
instruction, so all is as at the site then, and no later one is in another basic block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bt.tactics.arm.words import ALWAYS, UDF, branch_word, packed, shared_word
from bt.tactics.fixed.body import Call, Piece, Relative
from emulator.isa.operation import Operation
from paravirt import abi

_INTERRUPT: Final = abi.ARMV7.interrupt_state
_STATUS: Final = abi.ARM_STATUS
_SCRATCH: Final = abi.ARMV7.scratch
_CACHE_TYPE: Final = abi.ARM_CACHE_TYPE
_THREAD: Final = abi.ARM_THREAD
_LIMIT: Final = abi.ARM_USER_LIMIT
_RIGHTS: Final = abi.ARM_FLOATING_POINT
_ENABLE: Final = _RIGHTS + 4
_REAL_MODE: Final = 0x10
_EQ, _NE, _HS = 0, 1, 2

Word = int | Callable[[int], int]
"""A word, or what makes one from its address."""


@dataclass(frozen=True, slots=True)
class Template:
    """What stands for one instruction."""

    name: str
    words: tuple[Word, ...]
    """Words, or what makes one from its address."""
    call: int = -1
    """Index of the word that is a hypercall for the whole instruction; -1: there is none."""
    scratch: int = 0
    """Words of scratch in the shared page that it uses up."""

    @property
    def clobbers(self) -> tuple[str, ...]:
        """For people."""
        return tuple(f"shared page, scratch word {number}" for number in range(self.scratch))


def _load(register: int, offset: int) -> Callable[[int], int]:
    return lambda at: shared_word(True, register, at, offset)


def _store(register: int, offset: int, condition: int = ALWAYS) -> Callable[[int], int]:
    return lambda at: shared_word(False, register, at, offset, condition)


def _ahead(words: int, condition: int) -> Callable[[int], int]:
    """A branch over so many words that follow it."""
    return lambda at: branch_word(at, at + 4 + 4 * words, condition)


def _free(count: int, *taken: int) -> list[int]:
    """Registers that an instruction does not use."""
    return [number for number in range(4) if number not in taken][:count]


def set_interrupts(masked: bool) -> Template:
    """CPSID i or CPSIE i."""
    value = 0xE3A0_0000 | (abi.ARMV7.disabled if masked else abi.ARMV7.enabled)  # mov r0, #value
    words = (_store(0, _SCRATCH), value, _store(0, _INTERRUPT), _load(0, _SCRATCH))
    return Template("mask interrupts" if masked else "unmask interrupts", words, scratch=1)


def read_status(target: int) -> Template:
    """MRS Rd, CPSR: the real one and what the shared page adds to it."""
    (free,) = _free(1, target)
    add = 0xE080_0000 | target << 16 | target << 12 | free
    words = (
        _store(free, _SCRATCH),
        0xE10F_0000 | target << 12,
        _load(free, _STATUS),
        add,
        _load(free, _INTERRUPT),
        add,
        _load(free, _SCRATCH),
    )
    return Template("read status", words, scratch=1)


def save_interrupts(target: int) -> Template:
    """MRS Rd, CPSR and CPSID I: the second finds the first's store done, so that nothing may come between them."""
    read, mask = read_status(target), set_interrupts(True)
    return Template("read status and mask interrupts", (*read.words, *mask.words), scratch=1)


def write_control(source: int) -> Template:
    """MSR CPSR_c, Rn, where mode and F stay as they are; otherwise it calls."""
    flags, other = _free(2, source)
    way = (
        _load(other, _STATUS),
        0xE280_0000 | other << 16 | other << 12 | _REAL_MODE,  # add other, other, #0x10
        0xE020_0000 | other << 16 | other << 12 | source,  # eor other, other, source
        0xE310_0000 | other << 16 | 0x5F,  # tst other, #0x5f
        0x0200_0000 | source << 16 | other << 12 | 0x80,  # andeq other, source, #0x80
        _store(other, _INTERRUPT, _EQ),
        _call_from(0, _NE),
    )
    return _or_call("write control field", (flags, other), way)


def read_thread(target: int) -> Template:
    """MRC TPIDRURW: the user's own register, which the shared page holds while the kernel runs."""
    return Template("read thread register", (_load(target, _THREAD),))


def write_thread(source: int) -> Template:
    """MCR TPIDRURW."""
    return Template("write thread register", (_store(source, _THREAD),))


def read_cache_type(target: int) -> Template:
    """MRC CTR."""
    return Template("read cache type", (_load(target, _CACHE_TYPE),))


def read_rights(target: int) -> Template:
    """MRC CPACR."""
    return Template("read coprocessor access", (_load(target, _RIGHTS),))


def _look(register: int) -> tuple[int, int]:
    """User code's TPIDRURW through a register, unchanged: by a write of a system register the engine looks."""
    return 0xEE1D_0F50 | register << 12, 0xEE0D_0F50 | register << 12


def _or_call(name: str, borrowed: tuple[int, ...], way: tuple[Word, ...], behind: tuple[Word, ...] = ()) -> Template:
    """`way` with the flags in the first of some registers and the others free, then all back and `behind`; or a jump
    out of `way` behind all that (`_call_from`), to where they are put back and the guest calls."""
    places = [(register, _SCRATCH + 4 * number) for number, register in enumerate(borrowed)]
    leave: tuple[Word, ...] = (0xE128_F000 | borrowed[0], *(_load(register, place) for register, place in places))
    words: tuple[Word, ...] = (
        *(_store(register, place) for register, place in places),
        0xE10F_0000 | borrowed[0] << 12,  # mrs flags, cpsr
        *way,
        *leave,
        *behind,
        _ahead(len(leave) + 1, ALWAYS),
        *leave,
        UDF,
    )
    return Template(name, words, len(words) - 1, len(borrowed))


def _call_from(left: int, condition: int, borrowed: int = 2) -> Word:
    """The jump out of a way, with `left` words of it and of what is behind still to come."""
    return _ahead(left + borrowed + 2, condition)


def write_rights(source: int) -> Template:
    """MCR CPACR, where nothing but cp10 and cp11 changes; otherwise it calls."""
    flags, other = _free(2, source)
    way = (
        _load(other, _RIGHTS),
        0xE020_0000 | other << 16 | other << 12 | source,  # eor other, other, source
        0xE3D0_060F | other << 16 | other << 12,  # bics other, other, #0xf00000
        _store(source, _RIGHTS, _EQ),
        _call_from(2, _NE),
        *_look(other),
    )
    return _or_call("write coprocessor access", (flags, other), way)


def read_enable(target: int) -> Template:
    """VMRS FPEXC, where CPACR gives the kernel access to coprocessor 10; otherwise it calls."""
    flags, other = _free(2, target)
    way = (
        _load(other, _RIGHTS),
        0xE310_0601 | other << 16,  # tst other, #0x100000
        _call_from(1, _EQ),
        _load(target, _ENABLE),
    )
    return _or_call("read floating-point enable", (flags, other), way)


def write_enable(source: int) -> Template:
    """VMSR FPEXC, of which EN is kept, likewise."""
    flags, other = _free(2, source)
    way = (
        _load(other, _RIGHTS),
        0xE310_0601 | other << 16,  # tst other, #0x100000
        0x1200_0101 | source << 16 | other << 12,  # andne other, source, #0x40000000
        _store(other, _ENABLE, _NE),
        _call_from(2, _EQ),
        *_look(other),
    )
    return _or_call("write floating-point enable", (flags, other), way)


def access_as_user(word: int) -> Template:
    """LDRT, STRT and their kin: as they are below the first page that only the kernel may touch; there it calls."""
    base, target = word >> 16 & 15, word >> 12 & 15
    index = word & 15
    flags, other = [number for number in range(6) if number not in (base, target, index)][:2]
    way = (
        _load(other, _LIMIT),
        0xE150_0000 | base << 16 | other,  # cmp base, other
        _call_from(1, _HS),
    )
    return _or_call("access as user", (flags, other), way, (word & 0x0FFF_FFFF | ALWAYS << 28,))


def access_as_user_t32(word: int) -> Template | None:
    """T32's LDRT, STRT and their kin, whose address is a base and up to 255 bytes: the plain access of A32, which in
    User mode is the same, below the first page that only the kernel may touch; there it calls. None for what PC is in.
    """
    base, target, distance = word >> 16 & 15, word >> 12 & 15, word & 0xFF
    plain = _PLAIN.get(word >> 20 & 0x1F)
    if plain is None or base == 15 or target in (13, 15):
        return None
    split = (distance & 0xF0) << 4 | distance & 15 if plain & 0x90 == 0x90 else distance
    flags, other, limit = [number for number in range(6) if number not in (base, target)][:3]
    way = (
        0xE280_0000 | base << 16 | other << 12 | distance,  # add other, base, #distance
        _load(limit, _LIMIT),
        0xE150_0000 | other << 16 | limit,  # cmp other, limit
        _call_from(1, _HS, 3),
    )
    behind = (plain | base << 16 | target << 12 | split,)
    return _or_call("access as user", (flags, other, limit), way, behind)


_PLAIN: Final[dict[int, int]] = {
    0x05: 0xE590_0000,  # LDRT: LDR
    0x04: 0xE580_0000,
    0x01: 0xE5D0_0000,  # LDRBT: LDRB
    0x00: 0xE5C0_0000,
    0x03: 0xE1D0_00B0,  # LDRHT: LDRH
    0x02: 0xE1C0_00B0,
    0x11: 0xE1D0_00D0,  # LDRSBT: LDRSB
    0x13: 0xE1D0_00F0,  # LDRSHT: LDRSH
}
"""Bits 24 to 20 of a T32 word -> A32's access by a positive distance; halfwords and signed bytes split it."""


def pieces(template: Template, condition: int, operation: Operation, offset: int, instruction: bytes) -> list[Piece]:
    """A template as the pieces of a body; `condition` is the instruction's, `offset` its place in its page."""
    words = template.words
    if condition != ALWAYS:
        words = (_ahead(len(words), condition ^ 1), *words)
    call = template.call + (condition != ALWAYS) if template.call >= 0 else -1
    parts: list[Piece] = []
    straight = words if call < 0 else words[:call]
    parts.append(Relative(4 * len(straight), _maker(straight)))
    if call >= 0:
        parts.append(Call(packed(UDF), operation, offset, instruction))
        rest = words[call + 1 :]
        if rest:
            parts.append(Relative(4 * len(rest), _maker(rest)))
    return parts


def _maker(words: tuple[int | Callable[[int], int], ...]) -> Callable[[int, int], bytes]:
    def make(at: int, _page: int) -> bytes:
        return packed(*(word if isinstance(word, int) else word(at + 4 * n) for n, word in enumerate(words)))

    return make
