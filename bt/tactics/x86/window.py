"""Composing a fixup: the instructions around a site that make room for a jump, each with what stands for it.

Room: `bt/tactics/x86`. A patch never crosses its page, never covers a branch target but with its first byte, and covers
nothing that the kernel itself looks at or patches (return sites, jump labels, ...: `Ground.taken`), since a guest reads
its own text. What is displaced does the same in the fixup; what it may fault on is tried before anything has changed.
What differs between 64-bit and 32-bit mode is in `Ground.forms`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from iced_x86 import Code, Decoder, Instruction, Register

from bt.pagescan import PAGE
from bt.tactics.tactics import Refused
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86.pagescan import LONGEST
from bt.tactics.x86.template import Template
from emulator.isa.x86.table import ROW_OF_CODE

__all__ = ["Branch", "Forms", "Ground", "Refused", "Want", "Window", "compose", "earlier"]


class Forms(Protocol):
    """What differs between the modes of x86 (`forms64`, `forms32`)."""

    @property
    def bits(self) -> int:
        """64 or 32."""
        ...

    @property
    def RETURN(self) -> int:
        """`Code` of a near RET without an operand."""
        ...

    @property
    def CALL(self) -> int:
        """`Code` of a near CALL with a 32-bit displacement."""
        ...

    @property
    def NEAR_BRANCH(self) -> int:
        """`OpKind` of a near branch's target."""
        ...

    @property
    def INLINE_CODES(self) -> frozenset[int]:
        """Encodings that may need no exit."""
        ...

    @property
    def INSTEAD_OF_TRAP(self) -> frozenset[int]:
        """Encodings that a fixup may do although the engine at hand needs a trap otherwise; for these room is looked
        for before the site, too."""
        ...

    @property
    def NEVER_FAULTS(self) -> frozenset[int]:
        """Encodings that may fault, and whose templates leave that to the hypervisor."""
        ...

    def reads_own_selector(self, instruction: Instruction) -> bool:
        """Whether it reads a segment register that holds the guest's own selector."""
        ...

    def piece(
        self, ground: Ground, instruction: Instruction, before: list[Template], trials: list[Template]
    ) -> tuple[Template, int]:
        """The template that does a sensitive instruction in the guest, and its bytes. Raises `Refused`."""
        ...

    def displaced(
        self, code: bytes, instruction: Instruction, before: list[Template], trials: list[Template]
    ) -> Template:
        """The template that is an innocuous instruction itself. Raises `Refused`."""
        ...

    def leaving(self, ground: Ground, instruction: Instruction) -> Template | None:
        """The template for a conditional branch out of the fixup's midst; None for other instructions, and where fixups
        do not begin before their sites."""
        ...

    def try_stack(self, before: list[Template], trials: list[Template], push: bool) -> None:
        """Try the word that a pop (or push) after `before` will touch. Raises `Refused`."""
        ...

    @property
    def LOOKS_BACK(self) -> bool:
        """Whether room is looked for before a site even where no hypercall is wanted."""
        ...

    def pair(self, ground: Ground, instruction: Instruction) -> tuple[Template, int] | None:
        """The template for a conditional branch over the one sensitive instruction behind it, and the bytes of both;
        None where `instruction` is no such branch."""
        ...


@dataclass(frozen=True, slots=True)
class Ground:
    """A page around its sites. Masks as in `pagescan`."""

    address: int
    """Guest-virtual address of the page."""
    code: bytes
    """PAGE bytes."""
    after: bytes
    """Bytes that follow them."""
    boundaries: int
    targets: int
    """Where branches, symbols and pointers lead."""
    taken: int
    """Places that another patch table names."""
    entry: int = -1
    """Offset at which execution is about to begin; no patch covers it but with its first byte. -1: unknown."""
    known: bool = False
    """Whether `targets` and `taken` tell of the whole kernel, not of this page only."""
    padded: bool = False
    """Whether the kernel is one that pads the places of its interrupt-flag instructions (PARAVIRT_XXL)."""
    guarded: int = 0
    """Instructions from whose faults the kernel recovers by a table of their addresses."""
    forms: Forms | None = None
    """The mode; 64-bit where it is None."""

    @property
    def mode(self) -> Forms:
        """The mode."""
        if self.forms is not None:
            return self.forms
        from bt.tactics.x86.forms64 import FORMS_64

        return FORMS_64


@dataclass(frozen=True, slots=True)
class Branch:
    """A near jump, call or return that ends a fixup."""

    condition: int | None
    """Low four bits of Jcc's opcode; None where it is none."""
    target: int | None
    """Offset of its target from the page's start, maybe outside the page; None for RET."""
    call: bool = False
    """Whether it leaves the address behind the window on the stack."""


@dataclass(frozen=True, slots=True)
class Window:
    """The instructions that one fixup stands for."""

    end: int
    """Offset behind them; the fixup goes on there."""
    pieces: tuple[tuple[int, Template], ...]
    """What the fixup does, each with the offset of the instruction it stands for."""
    finish: tuple[int, Template] | None = None
    """What it does before it leaves, likewise."""
    branch: Branch | None = None
    """How it leaves, if not only to `end`."""
    bits: int = 64
    """Of the mode: 64 or 32."""
    called_since: str = ""
    """Why the hypervisor does the site's instruction and not the guest, as a clause; "" where the guest does."""


@dataclass(frozen=True, slots=True)
class Want:
    """What a window is wanted for."""

    site: int = -1
    """Offset of the instruction that it must take in; -1: the first."""
    room: int = asm.JUMP_LENGTH
    """Bytes it must have."""
    inline: bool = True
    """Sensitive instructions may be done in the guest."""
    calls: bool = False
    """Sensitive instructions may be hypercalls."""
    used: int = 0
    """Mask of the offsets that other patches hold."""


def compose(ground: Ground, start: int, want: Want = Want()) -> Window:
    """The window that begins at offset `start`. Raises `Refused`."""
    return _Composer(ground, start, want).compose()


class _Composer:
    """A window while instructions are added to it."""

    def __init__(self, ground: Ground, start: int, want: Want) -> None:
        self._ground = ground
        self._start = start
        self._want = want
        self._pieces: list[tuple[int, Template]] = []
        self._trials: list[Template] = []
        self._finish: tuple[int, Template] | None = None
        self._shadowed = False
        self._leaves = False
        self._branch: Branch | None = None
        self._called_since = ""

    def compose(self) -> Window:
        end = self._start
        while end - self._start < self._want.room or end <= self._want.site:
            at, end = end, self._take(end)
            if self._want.used >> at & (1 << end - at) - 1:
                raise Refused("another patch holds what is beside it")
        end = self._extended(end)
        if self._leaves and (self._trials or self._finish is not None):
            raise Refused("a branch leads away before what must be tried or done last")
        tried = tuple((self._start, template) for template in self._trials)
        return Window(
            end, tried + tuple(self._pieces), self._finish, self._branch, self._ground.mode.bits, self._called_since
        )

    def _extended(self, end: int) -> int:
        """Take in sensitive instructions right behind: each would need room of its own."""
        mode = self._ground.mode
        while mode.LOOKS_BACK and self._want.inline and self._branch is None:
            if int(decode(self._ground, end).code) not in mode.INLINE_CODES:
                break
            kept = len(self._pieces), len(self._trials), self._finish, self._shadowed
            try:
                behind = self._take(end)
                if self._want.used >> end & (1 << behind - end) - 1:
                    raise Refused("another patch holds what is beside it")
            except Refused:
                pieces, trials, self._finish, self._shadowed = kept
                del self._pieces[pieces:], self._trials[trials:]
                break
            end = behind
        return end

    def _take(self, at: int) -> int:
        """Add the instruction at offset `at`; the offset behind what was added."""
        ground = self._ground
        instruction = decode(ground, at)
        check_place(ground, self._start, at, instruction)
        before = [template for _, template in self._pieces]
        behind = at + int(instruction.len)
        if self._branch is not None or (before and before[-1].ends):
            if not self._may_be_unreached() or not _is_filling(instruction):
                raise Refused("a branch follows it before there is room for a jump")
            return behind
        if self._pieces and _is_padding(ground, instruction):
            self._shadowed = False
            return behind
        if self._pieces and at > self._want.site:
            self._branch = self._branch_of(instruction, before)
            if self._branch is not None:
                return behind
        leaving = ground.mode.leaving(ground, instruction) if at < self._want.site and ground.known else None
        if leaving is not None:
            self._leaves = True
            self._add(at, leaving)
            return behind
        template, length = self._piece(instruction, before)
        self._add(at, template)
        return at + length

    def _may_be_unreached(self) -> bool:
        """Whether what follows the last piece is never reached by it."""
        return self._branch is None or (self._branch.condition is None and not self._branch.call)

    def _add(self, at: int, template: Template) -> None:
        if self._finish is not None and not (self._shadowed or template.on_registers):
            raise Refused("an interrupt may have to come before what follows it")
        self._pieces.append((at, template))
        if template.finish is not None:
            self._finish = at, template.finish
        elif template.takes_back and self._shadowed:
            self._finish = None
        self._shadowed = template.shadow

    def _branch_of(self, instruction: Instruction, before: list[Template]) -> Branch | None:
        """The near jump, call or return that `instruction` is, where all branches are known; else None."""
        ground, forms = self._ground, self._ground.mode
        if not ground.known:
            return None
        if instruction.code == forms.RETURN:
            forms.try_stack(before, self._trials, push=False)
            return Branch(None, None)
        if instruction.op_count != 1 or instruction.op_kind(0) != forms.NEAR_BRANCH:
            return None
        target = _signed(int(instruction.near_branch_target), forms.bits)
        if instruction.is_jcc_short_or_near:
            raw = ground.code[instruction.next_ip - instruction.len : instruction.next_ip]
            opcode = raw[-2] if instruction.is_jcc_short else raw[-5]
            return Branch(opcode & 15, target)
        if instruction.code == forms.CALL and instruction.len == asm.JUMP_LENGTH and self._finish is None:
            forms.try_stack(before, self._trials, push=True)
            return Branch(None, target, call=True)
        return Branch(None, target) if instruction.is_jmp_short_or_near else None

    def _piece(self, instruction: Instruction, before: list[Template]) -> tuple[Template, int]:
        """The template for `instruction`, and the bytes it stands for. Raises `Refused`."""
        ground, forms, want = self._ground, self._ground.mode, self._want
        end = int(instruction.next_ip)
        at = end - int(instruction.len)
        code = (ground.code + ground.after)[at:end]
        moved = bool(before) or at != self._start
        guarded = moved and bool(ground.guarded >> at & 1)
        if int(instruction.code) in ROW_OF_CODE:
            if want.inline and (not guarded or int(instruction.code) in forms.NEVER_FAULTS):
                try:
                    return forms.piece(ground, instruction, before, self._trials)
                except Refused as refusal:
                    if not want.calls:
                        raise
                    why = str(refusal) if int(instruction.code) in forms.INLINE_CODES else "no fixup can do it alone"
            else:
                why = "it may fault where it would be moved, and the kernel recovers from that by its address"
            if want.inline and at == want.site:
                self._called_since = why
            if not want.calls:
                raise Refused("another sensitive instruction without a fixup stands in the room for a jump")
            from bt.tactics.x86.hypercall import hypercall

            return hypercall(code, instruction, first=not moved), len(code)
        if not ground.known:
            raise Refused("what follows it would have to move, and not all branches are known here")
        pair = forms.pair(ground, instruction) if want.inline else None
        if pair is not None:
            return pair
        template = forms.displaced(code, instruction, before, self._trials)
        # Faults in a fixup are told as faults of its first instruction.
        if guarded or (moved and not template.on_registers and ground.guarded >> self._start & 1):
            raise Refused("what is beside it may fault, and the kernel recovers from faults here by their address")
        return template, len(code)


def earlier(ground: Ground, site: int, most: int) -> Iterator[int]:
    """Offsets before a site, at most `most` bytes before it, at which a window that takes it in may begin."""
    at = site
    while at > 0:
        if (ground.targets | ground.taken) >> at & 1 or at == ground.entry:
            return  # what begins earlier would cover a place to which something leads
        at -= 1
        while at >= 0 and not ground.boundaries >> at & 1:
            at -= 1
        if at < 0 or site - at > most:
            return
        yield at


def decode(ground: Ground, at: int) -> Instruction:
    """The instruction at offset `at` of the page."""
    return Decoder(ground.mode.bits, (ground.code + ground.after)[at : at + LONGEST], ip=at).decode()


def check_place(ground: Ground, start: int, at: int, instruction: Instruction) -> None:
    """Whether a window that begins at `start` may go on over `instruction`. Raises `Refused`."""
    if instruction.code == Code.INVALID:
        raise Refused("what follows it is no instruction")
    if at + instruction.len > PAGE:
        raise Refused("the room for a jump crosses the end of its page")
    if at == start:
        return
    if not ground.boundaries >> at & 1:
        raise Refused("what follows it is not where the pristine code has an instruction")
    if ground.targets >> at & 1:
        raise Refused("a branch leads into the room for a jump")
    # A return site that holds RET was patched when the kernel began, and is looked at no more.
    if ground.taken >> at & 1 and instruction.code != ground.mode.RETURN:
        raise Refused("what follows it is a place that the kernel looks at or patches itself")
    if at == ground.entry:
        raise Refused("execution begins inside the room for a jump")


def _is_padding(ground: Ground, instruction: Instruction) -> bool:
    """Whether it is a no-operation that cannot be anything else's place.

    Five bytes are what jump labels and function tracing leave, so there the kernel's tables must be known.
    """
    if not (int(instruction.code) in _PADDING or _changes_nothing(instruction)):
        return False
    return ground.known or ground.padded or bool(instruction.len != asm.JUMP_LENGTH)


def _is_filling(instruction: Instruction) -> bool:
    """Whether it can stand behind a jump without ever being reached."""
    return int(instruction.code) in _PADDING or instruction.code == Code.INT3 or _changes_nothing(instruction)


def _changes_nothing(instruction: Instruction) -> bool:
    """Whether it is an LEA of a register's own value, as 32-bit code is padded with."""
    if instruction.code not in (Code.LEA_R32_M, Code.LEA_R64_M) or instruction.memory_displacement:
        return False
    alone = instruction.memory_index == Register.NONE
    return bool(alone and instruction.memory_base == instruction.op0_register)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> bits - 1 else value


_PADDING: Final = frozenset(
    int(code) for code in (Code.NOPW, Code.NOPD, Code.NOPQ, Code.NOP_RM16, Code.NOP_RM32, Code.NOP_RM64)
)
