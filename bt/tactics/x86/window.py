"""Composing a fixup: the instructions from a site on that make room for a jump, each with what stands for it.

Room: `bt/tactics`. A patch never crosses its page, never covers a branch target but its first byte, and covers nothing
that the kernel itself looks at or patches (return sites, jump labels, ...: `Ground.taken`), since a guest reads its own
text. What is displaced does the same in the fixup; what it may fault on is tried before anything has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from iced_x86 import Code, Decoder, Instruction, OpKind, Register

from bt.pagescan import PAGE
from bt.tactics.tactics import Refused
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86 import control_registers, displace, interrupt_flag, serialise
from bt.tactics.x86.pagescan import LONGEST
from bt.tactics.x86.template import Template
from emulator.isa.x86.table import ROW_OF_CODE

__all__ = ["Branch", "Ground", "Refused", "Window", "compose"]


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


@dataclass(frozen=True, slots=True)
class Branch:
    """A near jump or return that ends a fixup."""

    condition: int | None
    """Low four bits of Jcc's opcode; None where it is none."""
    target: int | None
    """Offset of its target from the page's start, maybe outside the page; None for RET."""


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


def compose(ground: Ground, start: int, used: int = 0) -> Window:
    """The window of the site at offset `start`; `used` is the mask of what other patches hold. Raises `Refused`."""
    pieces: list[tuple[int, Template]] = []
    trials: list[Template] = []
    finish: tuple[int, Template] | None = None
    shadowed = False
    branch: Branch | None = None
    end = start
    while end - start < asm.JUMP_LENGTH:
        instruction = _decode(ground, end)
        _check_place(ground, start, end, instruction)
        if used >> end & (1 << instruction.len) - 1:
            raise Refused("another patch holds what follows it")
        if branch is not None:
            if branch.condition is not None or not _is_filling(instruction):
                raise Refused("a branch follows it before there is room for a jump")
        elif pieces and _is_padding(ground, instruction):
            shadowed = False
        else:
            before = [template for _, template in pieces]
            branch = _branch(ground, instruction, before, trials) if pieces else None
            if branch is None:
                template, length = _piece(ground, instruction, before, trials)
                if finish is not None and not (shadowed or template.on_registers):
                    raise Refused("an interrupt may have to come before what follows it")
                pieces.append((end, template))
                if template.finish is not None:
                    finish = end, template.finish
                elif template.takes_back and shadowed:
                    finish = None
                shadowed = template.shadow
                end += length
                continue
        end += instruction.len
    tried = tuple((start, template) for template in trials)
    return Window(end, tried + tuple(pieces), finish, branch)


def _decode(ground: Ground, at: int) -> Instruction:
    return Decoder(64, (ground.code + ground.after)[at : at + LONGEST], ip=at).decode()


def _check_place(ground: Ground, start: int, at: int, instruction: Instruction) -> None:
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
    if ground.taken >> at & 1 and instruction.code != Code.RETNQ:
        raise Refused("what follows it is a place that the kernel looks at or patches itself")
    if at == ground.entry:
        raise Refused("execution begins inside the room for a jump")


def _is_padding(ground: Ground, instruction: Instruction) -> bool:
    """Whether it is a no-operation that cannot be anything else's place.

    Five bytes are what jump labels and function tracing leave, so there the kernel's tables must be known.
    """
    return int(instruction.code) in _PADDING and (ground.known or ground.padded or instruction.len != asm.JUMP_LENGTH)


def _is_filling(instruction: Instruction) -> bool:
    """Whether it can stand behind a jump without ever being reached."""
    return int(instruction.code) in _PADDING or instruction.code == Code.INT3


def _branch(ground: Ground, instruction: Instruction, before: list[Template], trials: list[Template]) -> Branch | None:
    """The near jump or return that `instruction` is, where all branches are known; None where it is something else."""
    if not ground.known:
        return None
    if instruction.code == Code.RETNQ:
        displace.try_stack(before, trials)
        return Branch(None, None)
    if instruction.op_count != 1 or instruction.op_kind(0) != OpKind.NEAR_BRANCH64:
        return None
    target = int(instruction.near_branch64)
    target -= 1 << 64 if target >> 63 else 0
    if instruction.is_jcc_short_or_near:
        raw = ground.code[instruction.next_ip - instruction.len : instruction.next_ip]
        opcode = raw[-2] if instruction.is_jcc_short else raw[-5]
        return Branch(opcode & 15, target)
    return Branch(None, target) if instruction.is_jmp_short_or_near else None


def _piece(
    ground: Ground, instruction: Instruction, before: list[Template], trials: list[Template]
) -> tuple[Template, int]:
    """The template for `instruction`, and the bytes it stands for. Raises `Refused`."""
    code, length = int(instruction.code), int(instruction.len)
    end = int(instruction.next_ip)
    if code == Code.CLI:
        return interrupt_flag.disable(), length
    if code == Code.STI:
        return interrupt_flag.enable(before_halt=(ground.code + ground.after)[end : end + 1] == asm.HLT), length
    if code == Code.PUSHFQ and length == 1:
        return _read_flags(ground, end)
    if code == Code.POPFQ and length == 1:
        return interrupt_flag.write_flags(), length
    if code == Code.MOV_R64_CR:
        number = _CONTROL_REGISTERS.get(instruction.op1_register)
        if number is None:
            raise Refused("this control register has no copy in the shared page")
        return control_registers.read_control_register(instruction.op0_register - Register.RAX, number), length
    if code in _SELECTOR_SIZES and instruction.op0_kind == OpKind.REGISTER:
        return _read_selector(ground, instruction, not before)
    if code in ROW_OF_CODE:
        raise Refused("another sensitive instruction without a fixup stands in the room for a jump")
    if not ground.known:
        raise Refused("what follows it would have to move, and not all branches are known here")
    return displace.displaced(ground.code[end - length : end], instruction, before, trials), length


def _read_flags(ground: Ground, end: int) -> tuple[Template, int]:
    """PUSHFQ, with the POP that follows it where nothing leads between the two."""
    pop = _decode(ground, end)
    if pop.code == Code.POP_R64 and pop.op0_register != Register.RSP:
        try:
            _check_place(ground, -1, end, pop)
        except Refused:
            return interrupt_flag.read_flags(), 1
        return interrupt_flag.read_flags_to(pop.op0_register - Register.RAX), 1 + pop.len
    return interrupt_flag.read_flags(), 1


def _read_selector(ground: Ground, instruction: Instruction, first: bool) -> tuple[Template, int]:
    """A read of CS or SS, or the whole of Linux's IRETQ-to-itself where it begins here. Raises `Refused`."""
    start = int(instruction.next_ip) - int(instruction.len)
    found = serialise.match(ground.code, start, ground.address) if first else None
    if found is not None:
        register, length, resume = found
        inside = (1 << start + length) - (1 << start + 1)
        if not (ground.targets | ground.taken) & inside and not start < ground.entry < start + length:
            return serialise.return_to_self(register, resume), length
    if instruction.op1_register not in (Register.CS, Register.SS):
        raise Refused("another sensitive instruction without a fixup stands in the room for a jump")
    size, first_register = _SELECTOR_SIZES[int(instruction.code)]
    code = ground.code[start : instruction.next_ip]
    return serialise.read_selector(code, instruction.op0_register - first_register, size), len(code)


_SELECTOR_SIZES: Final = {
    int(Code.MOV_RM16_SREG): (2, Register.AX),
    int(Code.MOV_R32M16_SREG): (4, Register.EAX),
    int(Code.MOV_R64M16_SREG): (8, Register.RAX),
}
_PADDING: Final = frozenset(
    int(code) for code in (Code.NOPW, Code.NOPD, Code.NOPQ, Code.NOP_RM16, Code.NOP_RM32, Code.NOP_RM64)
)
_CONTROL_REGISTERS: Final = {Register.CR0: 0, Register.CR2: 2, Register.CR3: 3, Register.CR4: 4}
