"""What 32-bit mode has of its own in composing fixups; see `bt.tactics.x86.window.Forms`.

Room: `bt/tactics/x86`. The instructions that can be done in the guest, by the shared page, and how others are moved.
"""

from __future__ import annotations

from typing import Final

from iced_x86 import Code, Instruction, OpKind, Register

from bt.tactics.tactics import Refused
from bt.tactics.x86 import assemble32 as asm
from bt.tactics.x86 import displace32, templates32
from bt.tactics.x86.template import Template
from bt.tactics.x86.templates32 import STI
from bt.tactics.x86.window import Forms, Ground, check_place, decode

_DATA_SEGMENTS: Final = frozenset({Register.ES, Register.DS, Register.FS, Register.GS})
_SELECTOR_SIZES: Final = {
    int(Code.MOV_RM16_SREG): (2, Register.AX),
    int(Code.MOV_R32M16_SREG): (4, Register.EAX),
}
_PUSHES: Final = frozenset(int(code) for code in (Code.PUSHD_CS, Code.PUSHD_SS))
_OWN_PUSHES: Final = frozenset(
    int(code)
    for code in (
        *(Code.PUSHW_ES, Code.PUSHW_DS, Code.PUSHW_FS, Code.PUSHW_GS),
        *(Code.PUSHD_ES, Code.PUSHD_DS, Code.PUSHD_FS, Code.PUSHD_GS),
    )
)
_SELECTOR_READS: Final = frozenset(_SELECTOR_SIZES) | _PUSHES | _OWN_PUSHES
_CONTROL_REGISTERS: Final = {Register.CR0: 0, Register.CR2: 2, Register.CR3: 3, Register.CR4: 4}


class _Forms32:
    """See `Forms`."""

    bits = 32
    RETURN = int(Code.RETND)
    CALL = int(Code.CALL_REL32_32)
    NEAR_BRANCH = int(OpKind.NEAR_BRANCH32)
    INLINE_CODES = _SELECTOR_READS | frozenset(
        int(code) for code in (Code.CLI, Code.STI, Code.PUSHFD, Code.POPFD, Code.MOV_R32_CR, Code.CLTS, Code.MOV_CR_R32)
    )
    INSTEAD_OF_TRAP: frozenset[int] = frozenset()
    NEVER_FAULTS: frozenset[int] = frozenset()

    def reads_own_selector(self, instruction: Instruction) -> bool:
        """Whether it reads DS, ES, FS or GS, whose real selector is the guest's (`paravirt.abi.RING_OF_SELECTORS`)."""
        if int(instruction.code) not in _SELECTOR_READS:
            return False
        last = instruction.op_count - 1
        return instruction.op_kind(last) == OpKind.REGISTER and instruction.op_register(last) in _DATA_SEGMENTS

    def piece(
        self, ground: Ground, instruction: Instruction, before: list[Template], trials: list[Template]
    ) -> tuple[Template, int]:
        """The template that does a sensitive instruction in the guest, and its bytes. Raises `Refused`."""
        code, length, end = int(instruction.code), int(instruction.len), int(instruction.next_ip)
        raw = (ground.code + ground.after)[end - length : end]
        if code == Code.CLI:
            return templates32.disable(), length
        if code == Code.STI:
            return templates32.enable(before_halt=(ground.code + ground.after)[end : end + 1] == asm.HLT), length
        if code == Code.PUSHFD and length == 1:
            return _read_flags(ground, end, before, trials)
        if code == Code.POPFD and length == 1:
            return templates32.write_flags(), length
        if code == Code.MOV_R32_CR:
            number = _CONTROL_REGISTERS.get(instruction.op1_register)
            if number is None:
                raise Refused("this control register has no copy in the shared page")
            return templates32.read_control_register(instruction.op0_register - Register.EAX, number), length
        if code == Code.CLTS:
            return templates32.clear_task_switched(), length
        if code == Code.MOV_CR_R32 and instruction.op0_register == Register.CR0:
            return templates32.write_cr0(instruction.op1_register - Register.EAX, raw), length
        if code in _PUSHES and length == 1:
            return templates32.push_selector(raw), length
        size, first = _SELECTOR_SIZES.get(code, (0, Register.NONE))
        if size and instruction.op0_kind == OpKind.REGISTER and instruction.op1_register in (Register.CS, Register.SS):
            return templates32.read_selector(raw, instruction.op0_register - first, size), length
        raise Refused("another sensitive instruction without a fixup stands in the room for a jump")

    def displaced(
        self, code: bytes, instruction: Instruction, before: list[Template], trials: list[Template]
    ) -> Template:
        """The template that is an innocuous instruction itself. Raises `Refused`."""
        return displace32.displaced(code, instruction, before, trials)

    LOOKS_BACK = True

    def pair(self, ground: Ground, instruction: Instruction) -> tuple[Template, int] | None:
        """A short Jcc over an STI: how a compiler restores an interrupt flag."""
        end = int(instruction.next_ip)
        if (
            not instruction.is_jcc_short
            or instruction.near_branch_target != end + 1
            or ground.code[end : end + 1] != STI
        ):
            return None
        sti = decode(ground, end)
        check_place(ground, -1, end, sti)
        opcode = ground.code[end - 2]
        return templates32.enable_unless(opcode & 15), int(instruction.len) + len(STI)

    def leaving(self, ground: Ground, instruction: Instruction) -> Template | None:
        """None: a branch ends a fixup."""
        return None

    def try_stack(self, before: list[Template], trials: list[Template], push: bool) -> None:
        """Try the word that a pop (or push) after `before` will touch. Raises `Refused`."""
        displace32.try_stack(before, trials, push)


FORMS_32: Final[Forms] = _Forms32()
"""The one of its kind."""


def _read_flags(ground: Ground, end: int, before: list[Template], trials: list[Template]) -> tuple[Template, int]:
    """PUSHFD: alone, with the POP that follows it, or as the beginning of Linux's serialisation."""
    start = end - 1
    resume = templates32.matches_return_to_self(ground.code, start, ground.address) if not before else None
    if resume is not None:
        behind = start + templates32.RETURN_TO_SELF
        inside = (1 << behind) - (1 << end)
        if not (ground.targets | ground.taken) & inside and not start < ground.entry < behind:
            return templates32.return_to_self(resume), templates32.RETURN_TO_SELF
    pop = decode(ground, end)
    try:
        check_place(ground, -1, end, pop)
    except Refused:
        return templates32.read_flags(), 1
    if pop.code == Code.POP_R32 and pop.op0_register != Register.ESP:
        return templates32.read_flags_to(pop.op0_register - Register.EAX), 1 + pop.len
    if pop.code == Code.POP_RM32 and pop.op0_kind == OpKind.MEMORY and pop.memory_base != Register.ESP:
        code = ground.code[end : end + pop.len]
        trials += displace32.trial(pop, before)
        return templates32.read_flags_to_memory(code), 1 + len(code)
    return templates32.read_flags(), 1
