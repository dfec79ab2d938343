"""What 64-bit mode has of its own in composing fixups; see `bt.tactics.x86.window.Forms`.

Room: `bt/tactics/x86`. The instructions that can be done in the guest, by the shared page, and how others are moved.
"""

from __future__ import annotations

from typing import Final

from iced_x86 import Code, Instruction, OpKind, Register

from bt.tactics.tactics import Refused
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86 import control_registers, displace, interrupt_flag, serialise
from bt.tactics.x86.template import Template
from bt.tactics.x86.window import Forms, Ground, check_place, decode

_DATA_SEGMENTS: Final = frozenset({Register.ES, Register.DS, Register.FS, Register.GS})
SELECTOR_SIZES: Final = {
    int(Code.MOV_RM16_SREG): (2, Register.AX),
    int(Code.MOV_R32M16_SREG): (4, Register.EAX),
    int(Code.MOV_R64M16_SREG): (8, Register.RAX),
}
SELECTOR_READS: Final = frozenset(
    int(code) for code in (*SELECTOR_SIZES, Code.PUSHW_FS, Code.PUSHW_GS, Code.PUSHQ_FS, Code.PUSHQ_GS)
)
_CONTROL_REGISTERS: Final = {Register.CR0: 0, Register.CR2: 2, Register.CR3: 3, Register.CR4: 4}


class Forms64:
    """See `Forms`."""

    bits = 64
    RETURN = int(Code.RETNQ)
    CALL = int(Code.CALL_REL32_64)
    NEAR_BRANCH = int(OpKind.NEAR_BRANCH64)
    INLINE_CODES: frozenset[int] = SELECTOR_READS | frozenset(
        int(code) for code in (Code.CLI, Code.STI, Code.PUSHFQ, Code.POPFQ, Code.MOV_R64_CR, Code.CLTS, Code.MOV_CR_R64)
    )
    INSTEAD_OF_TRAP: frozenset[int] = frozenset()
    NEVER_FAULTS: frozenset[int] = frozenset()

    def reads_own_selector(self, instruction: Instruction) -> bool:
        """Whether it reads DS, ES, FS or GS, whose real selector is the guest's (`paravirt.abi.RING_OF_SELECTORS`)."""
        if int(instruction.code) not in SELECTOR_READS:
            return False
        last = instruction.op_count - 1
        return instruction.op_kind(last) == OpKind.REGISTER and instruction.op_register(last) in _DATA_SEGMENTS

    def piece(
        self, ground: Ground, instruction: Instruction, before: list[Template], trials: list[Template]
    ) -> tuple[Template, int]:
        """The template that does a sensitive instruction in the guest, and its bytes. Raises `Refused`."""
        code, length, end = int(instruction.code), int(instruction.len), int(instruction.next_ip)
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
        if code == Code.CLTS:
            return control_registers.clear_task_switched(), length
        if code == Code.MOV_CR_R64 and instruction.op0_register == Register.CR0:
            raw = (ground.code + ground.after)[end - length : end]
            return control_registers.write_cr0(instruction.op1_register - Register.RAX, raw), length
        if code in SELECTOR_SIZES and instruction.op0_kind == OpKind.REGISTER:
            return _read_selector(ground, instruction, not before)
        raise Refused("another sensitive instruction without a fixup stands in the room for a jump")

    def displaced(
        self, code: bytes, instruction: Instruction, before: list[Template], trials: list[Template]
    ) -> Template:
        """The template that is an innocuous instruction itself. Raises `Refused`."""
        return displace.displaced(code, instruction, before, trials)

    LOOKS_BACK: bool = False

    def pair(self, ground: Ground, instruction: Instruction) -> tuple[Template, int] | None:
        """None: 64-bit kernels have their interrupt-flag instructions in alternatives."""
        return None

    def leaving(self, ground: Ground, instruction: Instruction) -> Template | None:
        """None: a branch ends a fixup."""
        return None

    def try_stack(self, before: list[Template], trials: list[Template], push: bool) -> None:
        """Try the word that a pop (or push) after `before` will touch. Raises `Refused`."""
        displace.try_stack(before, trials, push)


FORMS_64: Final[Forms] = Forms64()
"""The one of its kind."""


def _read_flags(ground: Ground, end: int) -> tuple[Template, int]:
    """PUSHFQ, with the POP that follows it where nothing leads between the two."""
    pop = decode(ground, end)
    if pop.code == Code.POP_R64 and pop.op0_register != Register.RSP:
        try:
            check_place(ground, -1, end, pop)
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
    size, first_register = SELECTOR_SIZES[int(instruction.code)]
    code = ground.code[start : instruction.next_ip]
    return serialise.read_selector(code, instruction.op0_register - first_register, size), len(code)
