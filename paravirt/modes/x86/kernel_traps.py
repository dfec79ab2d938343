"""Traps of a guest's kernel without an exit: loads of null selectors and SWAPGS where a fixup has no room.

Room: `paravirt/modes/x86`, for `crossing`. The engine leads a planted trap at one of the places learnt here to code at
level 3, which is native and knows what the instruction is. A null selector that is loaded where there is one changes
nothing but the base; any other load ends in a HLT, and the hypervisor finds the guest at its instruction. What stands
behind one of these and is another is done with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from iced_x86 import Code, Instruction, OpKind, Register, RegisterExt

from emulator.isa.x86 import registers as r
from paravirt import abi
from paravirt.modes.x86.machine_code import MachineCode, half, whole

_RAX, _FLAGS, _RSP, RIP, SEGMENTS, SWAPS = (abi.TRAPPED_WORDS + 8 * number for number in range(6))
"""Words: what the code keeps of the guest; where that is; and how many segments were loaded, and bases exchanged."""
_SAVED: Final = {r.RAX: _RAX, r.RCX: abi.CROSSING_SAVED, r.R11: abi.CROSSING_SAVED + 8}
"""Words with registers that the code uses; the engine saves the last two."""
KEPT: Final = (*_SAVED.items(), (r.RSP, _RSP))
KEPT_FLAGS: Final = _FLAGS
MOST: Final = 10
"""Places that are known at once."""
MOST_STEPS: Final = 4
"""Instructions that are done one after the other."""
MOST_BYTES: Final = 720
"""The longest code."""
OFTEN: Final = 4
"""A place that has exited so often is learnt."""
_SEGMENTS: Final = {Register.ES: r.ES, Register.DS: r.DS, Register.FS: r.FS, Register.GS: r.GS}
_LOADS: Final = (Code.MOV_SREG_RM16, Code.MOV_SREG_R32M16, Code.MOV_SREG_R64M16)
_SET_BASE: Final = {r.FS: "31c0 f3480faed0", r.GS: "31c0 f3480faed8"}
"""xor eax, eax; wrfsbase rax, or wrgsbase rax."""
_JE, _JNE, _JMP = "0f84", "0f85", "e9"


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction that is done."""

    at: int
    behind: int
    segment: int = -1
    """Which one is loaded; -1 for SWAPGS."""
    register: int = 0
    """From where."""


def step_of(instruction: Instruction) -> Step | None:
    """How an instruction is done at level 3; None where it is not."""
    at, behind = int(instruction.ip), int(instruction.next_ip)
    if any(address + (1 << 31) >> 32 & 0xFFFF_FFFF for address in (at, behind)):
        return None  # an operand of 32 bits does not name it
    if instruction.code == Code.SWAPGS:
        return Step(at, behind)
    if instruction.code not in _LOADS or instruction.op1_kind != OpKind.REGISTER:
        return None
    segment, register = _SEGMENTS.get(instruction.op0_register), RegisterExt.number(instruction.op1_register)
    return Step(at, behind, segment, register) if segment is not None and register != r.RSP else None


def trapped_code(places: Sequence[Sequence[Step]], frame: int) -> tuple[bytes, int]:
    """The code for these places, of each what is done one after the other, and the offset of the HLT behind which the
    hypervisor does the instruction at `RIP`. `frame` is where a trap's frame is read."""
    code = MachineCode()
    code.shared("48890425", _RAX)
    for offset, word in ((32, _RSP), (8, RIP), (24, _FLAGS)):
        code.plain("48a1", whole(frame + offset))  # mov rax, [...]
        code.shared("48890425", word)
    code.plain("a9", half(r.FLAG_TF | r.FLAG_NT))  # test eax, ...
    code.jump(_JNE, "slow")
    code.shared("488b0425", RIP)
    for number, steps in enumerate(places):
        code.plain("483d", half(steps[0].at))  # cmp rax, ...
        code.jump(_JE, f"place {number}")
    code.here("slow")
    _restore(code)
    code.here("halt")
    code.plain("f4")
    for number, steps in enumerate(places):
        code.here(f"place {number}")
        for step in steps:
            if step is not steps[0]:
                code.shared("48c70425", RIP, half(step.at))
            _do(code, step)
        code.shared("48c70425", RIP, half(steps[-1].behind))
        code.jump(_JMP, "done")
    code.here("done")
    code.shared("48c7c4", _FLAGS)  # mov rsp, ...
    code.plain("9d")  # popfq
    code.shared("488b2425", _RSP)
    _restore(code)
    code.shared("ff2425", RIP)  # jmp [...]
    return code.finish(), code.places["halt"]


def _do(code: MachineCode, step: Step) -> None:
    if step.segment < 0:
        code.plain("f3480faec8")  # rdgsbase rax
        code.shared("48870425", abi.KERNEL_GS_BASE)  # xchg [...], rax
        code.plain("f3480faed8")  # wrgsbase rax
        code.shared("48ff0425", SWAPS)  # inc qword [...]
        return
    number = step.register
    if number in _SAVED:
        code.shared("66833c25", _SAVED[number], b"\0")  # cmp word [...], 0
    else:  # test r16, r16
        code.plain("66", bytes((0x45, 0x85, 0xC0 | (number & 7) * 9) if number > 7 else (0x85, 0xC0 | number * 9)))
    code.jump(_JNE, "slow")
    code.shared("48833c25", abi.SELECTORS + 8 * step.segment, b"\0")  # cmp qword [...], 0
    code.jump(_JNE, "slow")
    if step.segment in _SET_BASE:
        code.plain(_SET_BASE[step.segment])
    code.shared("48ff0425", SEGMENTS)


def _restore(code: MachineCode) -> None:
    code.shared("488b0c25", abi.CROSSING_SAVED)
    code.shared("4c8b1c25", abi.CROSSING_SAVED + 8)
    code.shared("488b0425", _RAX)


__all__ = ["KEPT", "KEPT_FLAGS", "MOST", "MOST_BYTES", "OFTEN", "RIP", "Step", "step_of", "trapped_code"]
