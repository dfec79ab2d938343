"""Instructions that a jump displaces: which may move, and how what they may fault on is tried beforehand.

Room: `bt/tactics`. A displaced instruction runs in the fixup from the same registers. Where it may fault, either all
before it can be done again, so that the guest begins again at the site; or its operand is tried before anything has
changed. Trying means to read the operand, or to exchange it with a register twice, so it is done on memory only that
is no device's: static data, per-CPU data, the stack.
"""

from __future__ import annotations

from typing import Final

from iced_x86 import (
    Code,
    Decoder,
    Encoder,
    Instruction,
    InstructionInfoFactory,
    MemoryOperand,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
    RegisterExt,
)

from bt.tactics.tactics import Refused
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86.template import Template, scratch


def displaced(code: bytes, instruction: Instruction, before: list[Template], trials: list[Template]) -> Template:
    """The template that is `instruction` itself; what must be tried first is added to `trials`. Raises `Refused`."""
    if int(instruction.code) in _STACK and instruction.op0_register != Register.RSP:
        moved = _STACK[int(instruction.code)]
        try_stack(before, trials, push=moved < 0)
        return Template("displaced", code, changes=changes(instruction), stack=moved, sensitive=False)
    if not is_movable(instruction):
        raise Refused("what follows it does something else where it would be moved to")
    quiet = not accesses_memory(instruction)
    if not quiet and not all(template.repeatable for template in before):
        trials += _trial(instruction, before)
    reference = None
    if instruction.is_ip_rel_memory_operand:
        decoder = Decoder(64, code)
        offset = decoder.get_constant_offsets(decoder.decode()).displacement_offset
        reference = offset, _signed(instruction.ip_rel_memory_address)
    return Template(
        "displaced", code, changes=changes(instruction), reference=reference, on_registers=quiet, sensitive=False
    )


def try_stack(before: list[Template], trials: list[Template], push: bool = False) -> None:
    """Try what a RET after `before` will pop, or a CALL push. Raises `Refused` where that cannot be told."""
    if all(template.repeatable for template in before):
        return
    if any(template.changes_view for template in before):
        raise Refused("what follows it uses the stack, and what its address leads to changes before")
    offset = sum(template.stack for template in before)
    lowest = -100 if push else 0
    if any(asm.RSP in template.changes and not template.stack for template in before) or not lowest <= offset <= 112:
        raise Refused("what follows it uses a stack that has moved")
    save, restore = asm.store(scratch(2), asm.RCX), asm.load(asm.RCX, scratch(2))
    code = save + asm.load_stack(asm.RCX, offset) + restore
    if push:
        code = 2 * asm.exchange_stack(offset - 8, asm.RCX)
    used = frozenset() if push else frozenset({2})
    trials.append(Template("try the stack", code, scratch=used, sensitive=False))


def is_movable(instruction: Instruction) -> bool:
    """Whether an instruction does the same wherever it stands, and nothing at all when it faults."""
    if instruction.mnemonic not in _MOVABLE:
        return False
    if instruction.mnemonic in _BIT_STRINGS and instruction.op0_kind == OpKind.MEMORY:
        return instruction.op1_kind != OpKind.REGISTER  # which would choose another place of memory
    return all(_is_movable_operand(instruction, index) for index in range(instruction.op_count))


def _is_movable_operand(instruction: Instruction, index: int) -> bool:
    kind = instruction.op_kind(index)
    if kind == OpKind.MEMORY:
        return bool(instruction.memory_base != Register.EIP)
    if kind == OpKind.REGISTER:
        return bool(RegisterExt.is_gpr(instruction.op_register(index)))
    return kind not in (OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64)


def accesses_memory(instruction: Instruction) -> bool:
    kinds = (instruction.op_kind(index) for index in range(instruction.op_count))
    return instruction.mnemonic != Mnemonic.LEA and OpKind.MEMORY in kinds


def changes(instruction: Instruction) -> frozenset[int]:
    """Numbers of the general registers that an instruction may write."""
    used = InstructionInfoFactory().info(instruction).used_registers()
    return frozenset(
        RegisterExt.full_register(one.register) - Register.RAX
        for one in used
        if one.access not in (OpAccess.READ, OpAccess.COND_READ, OpAccess.NONE) and RegisterExt.is_gpr(one.register)
    )


def _trial(instruction: Instruction, before: list[Template]) -> list[Template]:
    """Templates that fault where the memory operand of `instruction` will, and change nothing. Raises `Refused`."""
    if any(template.changes_view for template in before):
        raise Refused("what follows it may fault, and what its address leads to changes before")
    base, index = instruction.memory_base, instruction.memory_index
    static = instruction.is_ip_rel_memory_operand or (base == Register.NONE and index == Register.NONE)
    if not static and instruction.segment_prefix != Register.GS:
        raise Refused("what follows it may fault, and what comes before that cannot be done twice")
    parts = {RegisterExt.full_register(one) - Register.RAX for one in (base, index) if RegisterExt.is_gpr(one)}
    if any(parts & template.changes for template in before):
        raise Refused("what follows it may fault at an address that what comes before makes")
    sizes = _TRIALS.get(MemorySizeExt.size(instruction.memory_size))
    if sizes is None:
        raise Refused("what follows it may fault, and its operand has an odd size")
    load, exchange, registers = sizes
    number = next(number for number in (0, 1, 2) if number not in parts)
    register = registers[number]
    if writes_memory(instruction):
        swap = _encode(Instruction.create_mem_reg(exchange, _operand(instruction), register), instruction)
        return [swap, swap]
    read = _encode(Instruction.create_reg_mem(load, register, _operand(instruction)), instruction)
    save = Template("save", asm.store(scratch(2), number), scratch=frozenset({2}), sensitive=False)
    return [save, read, Template("restore", asm.load(number, scratch(2)), scratch=frozenset({2}), sensitive=False)]


def writes_memory(instruction: Instruction) -> bool:
    used = InstructionInfoFactory().info(instruction).used_memory()
    return any(one.access not in (OpAccess.READ, OpAccess.COND_READ, OpAccess.NONE) for one in used)


def _operand(instruction: Instruction) -> MemoryOperand:
    """The memory operand of an instruction; a RIP-relative one with a stand-in for its target."""
    if instruction.is_ip_rel_memory_operand:
        return MemoryOperand(Register.RIP, displ=_STAND_IN, displ_size=8, seg=instruction.segment_prefix)
    return MemoryOperand(
        instruction.memory_base,
        instruction.memory_index,
        instruction.memory_index_scale,
        _signed(instruction.memory_displacement),
        instruction.memory_displ_size,
        False,
        instruction.segment_prefix,
    )


def _encode(made: Instruction, like: Instruction) -> Template:
    """The template of an encoded instruction that has the memory operand of `like`."""
    encoder = Encoder(64)
    encoder.encode(made, 0)
    offset = encoder.get_constant_offsets().displacement_offset
    reference = (offset, _signed(like.ip_rel_memory_address)) if like.is_ip_rel_memory_operand else None
    return Template("try", encoder.take_buffer(), reference=reference, sensitive=False)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


_STAND_IN: Final = 0x1000
_TRIALS: Final = {
    1: (Code.MOV_R8_RM8, Code.XCHG_RM8_R8, (Register.AL, Register.CL, Register.DL)),
    2: (Code.MOV_R16_RM16, Code.XCHG_RM16_R16, (Register.AX, Register.CX, Register.DX)),
    4: (Code.MOV_R32_RM32, Code.XCHG_RM32_R32, (Register.EAX, Register.ECX, Register.EDX)),
    8: (Code.MOV_R64_RM64, Code.XCHG_RM64_R64, (Register.RAX, Register.RCX, Register.RDX)),
}
"""Bytes of an operand: how to read it, how to exchange it, and registers 0 to 2 in that size."""
_MOVABLE: Final = frozenset(
    (
        Mnemonic.MOV, Mnemonic.LEA, Mnemonic.ADD, Mnemonic.SUB, Mnemonic.AND, Mnemonic.OR, Mnemonic.XOR,
        Mnemonic.CMP, Mnemonic.TEST, Mnemonic.INC, Mnemonic.DEC, Mnemonic.NEG, Mnemonic.NOT, Mnemonic.MOVZX,
        Mnemonic.MOVSX, Mnemonic.MOVSXD, Mnemonic.SHL, Mnemonic.SHR, Mnemonic.SAR, Mnemonic.BT, Mnemonic.ADC,
        Mnemonic.SBB, Mnemonic.ROL, Mnemonic.ROR, Mnemonic.SHLD, Mnemonic.SHRD, Mnemonic.BTS, Mnemonic.BTR,
        Mnemonic.BTC, Mnemonic.BSWAP, Mnemonic.IMUL, Mnemonic.XCHG, Mnemonic.CWD, Mnemonic.CDQ, Mnemonic.CQO,
        Mnemonic.CBW, Mnemonic.CWDE, Mnemonic.CDQE, Mnemonic.LFENCE, Mnemonic.MFENCE, Mnemonic.SFENCE,
        *(getattr(Mnemonic, f"{kind}{condition}") for kind in ("SET", "CMOV") for condition in (
            "A", "AE", "B", "BE", "E", "G", "GE", "L", "LE", "NE", "NO", "NP", "NS", "O", "P", "S",
        )),
    )
)  # fmt: skip
"""Mnemonics that do not depend on where they stand, and on registers and constants cannot fault."""
_BIT_STRINGS: Final = frozenset((Mnemonic.BT, Mnemonic.BTS, Mnemonic.BTR, Mnemonic.BTC))
_STACK: Final = {
    int(Code.PUSH_R64): -8,
    int(Code.PUSHQ_IMM8): -8,
    int(Code.PUSHQ_IMM32): -8,
    int(Code.POP_R64): 8,
}
"""What moves the stack pointer, and by how many bytes."""
