"""The climb: for one sensitive instruction, the cheapest tactic that is provably sound, and why no better one.

Room: `bt/tactics`. Works on one page's bytes and masks; the same code decides for a file and for a page about to run.
A patch never crosses its page, never covers a branch target but its first byte, and covers nothing that the kernel
itself looks at or patches (return sites, jump labels, ...: `Ground.taken`), since a guest can read its own text.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from iced_x86 import Code, Decoder, Instruction, Mnemonic, OpKind, Register, RegisterExt

from bt import assemble as asm
from bt.pagescan import LONGEST, PAGE, Found
from bt.tactics import control_registers, interrupt_flag, serialise
from bt.tactics.template import Template
from emulator.isa.x86.table import PLANTED, ROW_OF_CODE


class Tactic(Enum):
    """What is done at a site."""

    INLINE = "inline"
    """A jump to a fixup that does the work in the guest."""
    TRAP = "trap"
    """A planted trap on the first byte."""
    NATIVE = "native"
    """Nothing: the instruction exits by itself."""
    COVERED = "covered"
    """Part of another site's fixup."""
    LEAVE = "leave"
    """Nothing: it never runs where it stands."""


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
    """Bytes that another patch table names."""
    entry: int = -1
    """Offset at which execution is about to begin; no patch covers it but with its first byte. -1: unknown."""
    known: bool = False
    """Whether `targets` and `taken` tell of the whole kernel, not of this page only."""
    padded: bool = False
    """Whether the kernel is one that pads the places of its interrupt-flag instructions (PARAVIRT_XXL)."""
    selectors: tuple[int, int] | None = None
    """The kernel's code and stack selectors, where they are known."""


@dataclass(frozen=True, slots=True)
class Branch:
    """A near jump that ends a fixup."""

    condition: int | None
    """Low four bits of Jcc's opcode; None for JMP."""
    target: int
    """Offset of its target from the page's start; may lie outside the page."""


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


class Refused(Exception):
    """A fixup is not sound here; the text is the reason."""


def choose(ground: Ground | None, site: Found, inline: bool = True) -> Choice:
    """The tactic for `site`; without `inline` no fixups are made. `ground` may be None where none could be."""
    rest = Choice(site, Tactic.TRAP, "completes in user mode, so it must be made to trap")
    if site.code not in PLANTED:
        rest = Choice(site, Tactic.NATIVE, "exits by itself in user mode")
    if not inline:
        return rest
    if site.code not in INLINE_CODES or ground is None:
        return Choice(site, rest.tactic, rest.reason, "no fixup can do it without the hypervisor")
    try:
        room = window(ground, site)
    except Refused as refusal:
        return Choice(site, rest.tactic, rest.reason, str(refusal))
    return Choice(site, Tactic.INLINE, "a fixup does it in the guest, by the shared page", "", room)


def window(ground: Ground, site: Found) -> Window:
    """The instructions from `site` on that give room for a jump, each with what stands for it. Raises `Refused`."""
    pieces: list[tuple[int, Template]] = []
    finish: tuple[int, Template] | None = None
    branch: Branch | None = None
    end = site.offset
    while end - site.offset < asm.JUMP_LENGTH:
        instruction = Decoder(64, (ground.code + ground.after)[end : end + LONGEST], ip=end).decode()
        _check_place(ground, site.offset, end, instruction)
        if branch is not None:
            raise Refused("a branch follows it before there is room for a jump")
        if pieces and _is_padding(ground, instruction):
            end = instruction.next_ip
            continue
        if pieces and pieces[-1][1].last:
            raise Refused("what follows it cannot be in one fixup with it")
        branch = _branch(ground, instruction) if pieces else None
        if branch is not None:
            end = instruction.next_ip
            continue
        template, behind = _piece(ground, instruction, [template for _, template in pieces])
        if finish is not None and not _may_come_first(template, end == finish[0] + 1):
            raise Refused("an interrupt may have to come before what follows it")
        pieces.append((end, template))
        if template.finish is not None:
            finish = end, template.finish
        elif template.takes_back:
            finish = None
        end = behind
    return Window(end, tuple(pieces), finish, branch)


def _may_come_first(template: Template, shadowed: bool) -> bool:
    """Whether a piece may be done between an enable and the look at what waits.

    `shadowed`: it is the one instruction of STI's shadow. What comes later must not be able to tell that the interrupt
    has not been yet: it works on registers alone.
    """
    return not template.last if shadowed else template.on_registers


def _branch(ground: Ground, instruction: Instruction) -> Branch | None:
    """The near jump that `instruction` is, where all branches are known; None where it is something else."""
    if not ground.known or instruction.op_count != 1 or instruction.op_kind(0) != OpKind.NEAR_BRANCH64:
        return None
    target = int(instruction.near_branch64)
    target -= 1 << 64 if target >> 63 else 0
    if instruction.is_jcc_short_or_near:
        raw = ground.code[instruction.next_ip - instruction.len : instruction.next_ip]
        opcode = raw[-2] if instruction.is_jcc_short else raw[-5]
        return Branch(opcode & 15, target)
    return Branch(None, target) if instruction.is_jmp_short_or_near else None


def _check_place(ground: Ground, start: int, at: int, instruction: Instruction) -> None:
    """Whether a window may go on over `instruction`. Raises `Refused`."""
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
    if ground.taken >> at & 1:
        raise Refused("what follows it is a place that the kernel looks at or patches itself")
    if at == ground.entry:
        raise Refused("execution begins inside the room for a jump")


def _is_padding(ground: Ground, instruction: Instruction) -> bool:
    """Whether it is a no-operation that cannot be anything else's place.

    Five bytes are what jump labels and function tracing leave, so there the kernel's tables must be known.
    """
    return int(instruction.code) in _PADDING and (ground.known or ground.padded or instruction.len != asm.JUMP_LENGTH)


def _piece(ground: Ground, instruction: Instruction, before: list[Template]) -> tuple[Template, int]:
    """The template for `instruction`, which follows `before`, and the offset behind it. Raises `Refused`."""
    code, end = int(instruction.code), int(instruction.next_ip)
    if code == Code.CLI:
        return interrupt_flag.disable(), end
    if code == Code.STI:
        following = (ground.code + ground.after)[end : end + 1]
        return interrupt_flag.enable(before_halt=following == asm.HLT), end
    if code == Code.PUSHFQ and instruction.len == 1:
        return _read_flags(ground, end)
    if code == Code.POPFQ and instruction.len == 1:
        return interrupt_flag.write_flags(), end
    if code == Code.MOV_R64_CR:
        number = _CONTROL_REGISTERS.get(instruction.op1_register)
        if number is None:
            raise Refused("this control register has no copy in the shared page")
        return control_registers.read_control_register(instruction.op0_register - Register.RAX, number), end
    if code == Code.MOV_R32M16_SREG and not before:
        return _return_to_self(ground, instruction)
    if code in PLANTED or code in ROW_OF_CODE:
        raise Refused("another sensitive instruction without a fixup stands in the room for a jump")
    if not ground.known:
        raise Refused("what follows it would have to move, and not all branches are known here")
    if not is_movable(instruction):
        raise Refused("what follows it does something else where it would be moved to")
    if instruction.op_count and _accesses_memory(instruction) and not all(template.repeatable for template in before):
        raise Refused("what follows it may fault, and what comes before that cannot be done twice")
    at = end - instruction.len
    quiet = not _accesses_memory(instruction)
    reference = _reference(ground, instruction)
    return Template("displaced", ground.code[at:end], reference=reference, on_registers=quiet), end


def _accesses_memory(instruction: Instruction) -> bool:
    kinds = (instruction.op_kind(index) for index in range(instruction.op_count))
    return instruction.mnemonic != Mnemonic.LEA and OpKind.MEMORY in kinds


def _reference(ground: Ground, instruction: Instruction) -> tuple[int, int] | None:
    """Where a RIP-relative operand's displacement stands in `instruction`, and where it leads from the page's start."""
    if not instruction.is_ip_rel_memory_operand:
        return None
    at = instruction.next_ip - instruction.len
    decoder = Decoder(64, ground.code[at : instruction.next_ip], ip=at)
    offset = decoder.get_constant_offsets(decoder.decode()).displacement_offset
    distance = int.from_bytes(ground.code[at + offset : at + offset + 4], "little", signed=True)
    return offset, int(instruction.next_ip) + distance


def is_movable(instruction: Instruction) -> bool:
    """Whether an instruction does the same wherever it stands, and nothing at all when it faults."""
    if instruction.mnemonic not in _MOVABLE:
        return False
    return all(_is_movable_operand(instruction, index) for index in range(instruction.op_count))


def _is_movable_operand(instruction: Instruction, index: int) -> bool:
    kind = instruction.op_kind(index)
    if kind == OpKind.MEMORY:
        return bool(instruction.memory_base != Register.EIP)
    if kind == OpKind.REGISTER:
        return bool(RegisterExt.is_gpr(instruction.op_register(index)))
    return kind not in (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)


def _read_flags(ground: Ground, end: int) -> tuple[Template, int]:
    """PUSHFQ, with the POP that follows it where nothing leads between the two."""
    pop = Decoder(64, (ground.code + ground.after)[end : end + LONGEST], ip=end).decode()
    if pop.code == Code.POP_R64 and pop.op0_register != Register.RSP:
        try:
            _check_place(ground, -1, end, pop)
        except Refused:
            return interrupt_flag.read_flags(), end
        return interrupt_flag.read_flags_to(pop.op0_register - Register.RAX), pop.next_ip
    return interrupt_flag.read_flags(), end


def _return_to_self(ground: Ground, instruction: Instruction) -> tuple[Template, int]:
    """The whole of Linux's IRETQ-to-itself, when it begins here. Raises `Refused`."""
    if instruction.op1_register != Register.SS or ground.selectors is None:
        raise Refused("the selector is not known before the guest runs")
    start = instruction.next_ip - instruction.len
    found = serialise.match(ground.code, start, ground.address)
    if found is None:
        raise Refused("the selector is not known before the guest runs")
    register, length, resume = found
    inside = (1 << start + length) - (1 << start + 1)
    if (ground.targets | ground.taken) & inside or inside >> max(ground.entry, 0) & 1:
        raise Refused("a branch leads into the sequence that returns to itself")
    return serialise.return_to_self(register, resume, *ground.selectors), start + length


INLINE_CODES: Final = frozenset(
    int(code) for code in (Code.CLI, Code.STI, Code.PUSHFQ, Code.POPFQ, Code.MOV_R64_CR, Code.MOV_R32M16_SREG)
)
"""Encodings for which there may be a template."""

_PADDING: Final = frozenset(
    int(code) for code in (Code.NOPW, Code.NOPD, Code.NOPQ, Code.NOP_RM16, Code.NOP_RM32, Code.NOP_RM64)
)
_CONTROL_REGISTERS: Final = {Register.CR0: 0, Register.CR2: 2, Register.CR3: 3, Register.CR4: 4}
_MOVABLE: Final = frozenset(
    (
        Mnemonic.MOV, Mnemonic.LEA, Mnemonic.ADD, Mnemonic.SUB, Mnemonic.AND, Mnemonic.OR, Mnemonic.XOR,
        Mnemonic.CMP, Mnemonic.TEST, Mnemonic.INC, Mnemonic.DEC, Mnemonic.NEG, Mnemonic.NOT, Mnemonic.MOVZX,
        Mnemonic.MOVSX, Mnemonic.MOVSXD, Mnemonic.SHL, Mnemonic.SHR, Mnemonic.SAR, Mnemonic.BT,
    )
)  # fmt: skip
"""Mnemonics that do not depend on where they stand, and on registers and constants cannot fault."""
