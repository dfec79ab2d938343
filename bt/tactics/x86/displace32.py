"""Instructions of 32-bit code that a jump displaces: as `displace`, whose rules these are.

Room: `bt/tactics/x86`. There are no operands relative to EIP; per-CPU data is reached through FS, and what is at a
distance from EBP is on the stack, as compiled kernels have it.
"""

from __future__ import annotations

from typing import Final

from iced_x86 import Code, Encoder, Instruction, MemoryOperand, MemorySizeExt, Mnemonic, Register, RegisterExt

from bt.tactics.tactics import Refused
from bt.tactics.x86 import assemble32 as asm
from bt.tactics.x86.displace import accesses_memory, changes, is_movable, writes_memory
from bt.tactics.x86.template import Template
from bt.tactics.x86.templates32 import scratch

_SAVED: Final = frozenset({2})


def displaced(code: bytes, instruction: Instruction, before: list[Template], trials: list[Template]) -> Template:
    """The template that is `instruction` itself; what must be tried first is added to `trials`. Raises `Refused`."""
    if int(instruction.code) in _STACK:
        push = instruction.mnemonic == Mnemonic.PUSH
        try_stack(before, trials, push)
        step = -asm.WORD if push else asm.WORD
        # A word that was tried, or that is tried again, cannot fault: a pop is as good as a move between registers.
        return Template(
            "displaced", code, changes=changes(instruction), stack=step, on_registers=not push, sensitive=False
        )
    if not is_movable(instruction):
        raise Refused("what follows it does something else where it would be moved to")
    quiet = not accesses_memory(instruction)
    if not quiet and not can_be_done_again(before):
        trials += trial(instruction, before)
    return Template("displaced", code, changes=changes(instruction), on_registers=quiet, sensitive=False)


def can_be_done_again(before: list[Template]) -> bool:
    """Whether a fault behind these may lead to their beginning: nothing in them sees what another has changed."""
    wrote = False
    for template in before:
        if not template.repeatable:
            return False
        wrote |= template.writes_interrupt_flag
    reads = any(template.reads_interrupt_flag for template in before)
    return not (wrote and reads)


def try_stack(before: list[Template], trials: list[Template], push: bool = False) -> None:
    """Try what a pop after `before` will pop, or a push write. Raises `Refused` where that cannot be told."""
    if can_be_done_again(before):
        return
    offset = sum(template.stack for template in before)
    if any(asm.RSP in template.changes and not template.stack for template in before) or not -100 <= offset <= 112:
        raise Refused("what follows it uses a stack that has moved")
    if not push and offset < 0:
        return  # what an instruction before it has pushed
    save, restore = asm.store(scratch(2), asm.RCX), asm.load(asm.RCX, scratch(2))
    code = save + asm.load_stack(asm.RCX, offset) + restore
    if push:
        code = 2 * asm.exchange_stack(offset - asm.WORD, asm.RCX)
    trials.append(Template("try the stack", code, scratch=frozenset() if push else _SAVED, sensitive=False))


def trial(instruction: Instruction, before: list[Template]) -> list[Template]:
    """Templates that fault where the memory operand of `instruction` will, and change nothing. Raises `Refused`."""
    base, index = instruction.memory_base, instruction.memory_index
    on_stack = base in (Register.ESP, Register.EBP) and index == Register.NONE
    static = base == Register.NONE and index == Register.NONE
    if not (on_stack or static or instruction.segment_prefix == Register.FS):
        raise Refused("what follows it may fault, and what comes before that cannot be done twice")
    parts = {RegisterExt.number(one) for one in (base, index) if one != Register.NONE}
    if any(parts & template.changes for template in before):
        raise Refused("what follows it may fault at an address that what comes before makes")
    sizes = _TRIALS.get(MemorySizeExt.size(instruction.memory_size))
    if sizes is None:
        raise Refused("what follows it may fault, and its operand has an odd size")
    load, exchange, registers = sizes
    number = next(number for number in (0, 1, 2) if number not in parts)
    register = registers[number]
    if writes_memory(instruction):
        swap = _encode(Instruction.create_mem_reg(exchange, _operand(instruction), register))
        return [swap, swap]
    read = _encode(Instruction.create_reg_mem(load, register, _operand(instruction)))
    save = Template("save", asm.store(scratch(2), number), scratch=_SAVED, sensitive=False)
    return [save, read, Template("restore", asm.load(number, scratch(2)), scratch=_SAVED, sensitive=False)]


def _operand(instruction: Instruction) -> MemoryOperand:
    displacement = instruction.memory_displacement
    return MemoryOperand(
        instruction.memory_base,
        instruction.memory_index,
        instruction.memory_index_scale,
        displacement - (1 << 32) if displacement >> 31 & 1 and displacement >> 32 == 0 else displacement,
        instruction.memory_displ_size,
        False,
        instruction.segment_prefix,
    )


def _encode(made: Instruction) -> Template:
    encoder = Encoder(32)
    encoder.encode(made, 0)
    return Template("try", encoder.take_buffer(), sensitive=False)


_STACK: Final = frozenset(int(code) for code in (Code.PUSH_R32, Code.POP_R32))
_TRIALS: Final = {
    1: (Code.MOV_R8_RM8, Code.XCHG_RM8_R8, (Register.AL, Register.CL, Register.DL)),
    2: (Code.MOV_R16_RM16, Code.XCHG_RM16_R16, (Register.AX, Register.CX, Register.DX)),
    4: (Code.MOV_R32_RM32, Code.XCHG_RM32_R32, (Register.EAX, Register.ECX, Register.EDX)),
}
"""Bytes of an operand: how to read it, how to exchange it, and registers 0 to 2 in that size."""
