"""Fixups for 32-bit code: the interrupt flag, control registers, selectors and Linux's serialisation, without an exit.

Room: `bt/tactics/x86`. What `interrupt_flag`, `control_registers` and `serialise` are to 64-bit code, by the rules of
`template`. The real interrupt flag of a deprivileged guest reads as 1; the shared word (0, or -0x200 when virtually
disabled) and the word of the virtual IOPL turn real flags into virtual ones by two additions.
"""

from __future__ import annotations

from typing import Final

from bt.tactics.tactics import Refused
from bt.tactics.x86 import assemble32 as asm
from bt.tactics.x86.interrupt_flag import INTERRUPT_FLAG, ODD_FLAGS
from bt.tactics.x86.template import Call, Template, joined
from emulator.isa.operation import Operation
from paravirt import abi

_PAGE: Final = abi.I386.shared_page
_WORD: Final = abi.I386.word
DELTA: Final = _PAGE + abi.I386.interrupt_state
"""Guest-virtual address of the word that is added to the real flags."""
PRIVILEGE: Final = _PAGE + abi.IO_PRIVILEGE
"""Guest-virtual address of the other word that is added to the real flags: the virtual IOPL."""
PENDING: Final = _PAGE + abi.I386.pending
"""Guest-virtual address of the word that is not 0 while an interrupt waits."""
COPIED: Final = frozenset({0, 2, 3, 4})
"""Numbers of the control registers that have a copy."""
CS, SS = 1, 2
STI: Final = b"\xfb"
_STACK: Final = frozenset({asm.RSP})
_SAVED: Final = frozenset({0})


def scratch(index: int) -> int:
    """Guest-virtual address of scratch word `index`."""
    return _PAGE + abi.I386.scratch + _WORD * index


def control_register(number: int) -> int:
    """Guest-virtual address of the copy of control register `number`."""
    return _PAGE + abi.I386.registers + _WORD * number


def disable() -> Template:
    """CLI. After an STI it takes back the look at what waits: by STI's shadow nothing comes between the two."""
    code = asm.store_constant(DELTA, abi.I386.disabled)
    return Template("disable interrupts", code, takes_back=True, repeatable=True, writes_interrupt_flag=True)


def enable(before_halt: bool = False) -> Template:
    """STI. The look at what waits comes at the end of the fixup, behind what was displaced: STI's shadow.

    `before_halt`: the next instruction is HLT, which exits anyway, and the hypervisor delivers there.
    """
    flag = asm.store_constant(DELTA, abi.I386.enabled)
    finish = None if before_halt else deliver()
    return Template("enable interrupts", flag, finish=finish, shadow=True, repeatable=True, writes_interrupt_flag=True)


def enable_unless(condition: int) -> Template:
    """A short Jcc over an STI, `condition` being the low four bits of its opcode.

    What waits is looked at at once; if something does, the hypervisor does the whole STI, with its shadow, so that the
    instruction behind both comes first, as always.
    """
    save, restore = asm.store(scratch(0), asm.RCX), asm.load(asm.RCX, scratch(0))
    waiting = asm.store_constant(DELTA, abi.I386.disabled) + restore + asm.HLT
    body = joined(
        (
            asm.store_constant(DELTA, abi.I386.enabled),
            save,
            asm.load(asm.RCX, PENDING),
            asm.jump_if_rcx_zero(len(waiting)),
            waiting,
        )
    )
    code = asm.branch(condition, len(body + restore)) + body
    call = Call(len(code) - 1, Operation.ENABLE_INTERRUPTS, instruction=STI)
    return Template("enable interrupts on a condition", code + restore, (call,), _SAVED, writes_interrupt_flag=True)


def deliver() -> Template:
    """The end of an enable: one hypercall when an interrupt waits."""
    save, restore = asm.store(scratch(0), asm.RCX), asm.load(asm.RCX, scratch(0))
    waiting = restore + asm.HLT
    code = joined((save, asm.load(asm.RCX, PENDING), asm.jump_if_rcx_zero(len(waiting)), waiting))
    call = Call(len(code) - 1, Operation.ENABLE_INTERRUPTS)
    return Template("deliver what waits", code + restore, (call,), _SAVED)


def deliver_if_enabled() -> Template:
    """The end of what may have enabled: one hypercall when interrupts are enabled and one waits."""
    save, restore = asm.store(scratch(0), asm.RCX), asm.load(asm.RCX, scratch(0))
    waiting = restore + asm.HLT
    look = asm.load(asm.RCX, PENDING) + asm.jump_if_rcx_zero(len(waiting)) + waiting
    skip = asm.skip(len(look))
    head = joined((save, asm.load(asm.RCX, DELTA), asm.jump_if_rcx_zero(len(skip)), skip, look))
    call = Call(len(head) - 1, Operation.ENABLE_INTERRUPTS)
    return Template("deliver what waits if enabled", head + restore, (call,), _SAVED)


def corrected(register: int, other: int) -> tuple[bytes, ...]:
    """Real flags in `register` become virtual ones; `other` is used up."""
    return asm.load(other, DELTA), asm.add(register, other), asm.load(other, PRIVILEGE), asm.add(register, other)


def read_flags() -> Template:
    """PUSHFD: pushes the real flags, then corrects the word on the stack."""
    code = joined(
        (
            asm.PUSH_FLAGS,
            asm.store(scratch(0), asm.RAX),
            asm.store(scratch(1), asm.RCX),
            asm.load_stack(asm.RAX, 0),
            *corrected(asm.RAX, asm.RCX),
            asm.store_stack(0, asm.RAX),
            asm.load(asm.RAX, scratch(0)),
            asm.load(asm.RCX, scratch(1)),
        )
    )
    return Template("read flags", code, scratch=frozenset({0, 1}), changes=_STACK, stack=-_WORD)


def read_flags_to(register: int) -> Template:
    """PUSHFD and POP r32 in one; the word left below the stack pointer is corrected too. Not for ESP."""
    if register == asm.RSP:
        raise ValueError("pushf into ESP cannot be one fixup; take the two instructions by themselves")
    other = asm.RAX if register == asm.RCX else asm.RCX
    code = joined(
        (
            asm.PUSH_FLAGS,
            asm.pop(register),
            asm.store(scratch(0), other),
            *corrected(register, other),
            asm.load(other, scratch(0)),
            asm.store_stack(-_WORD, register),
        )
    )
    return Template(
        "read flags to register",
        code,
        scratch=_SAVED,
        changes=frozenset({register}),
        repeatable=True,
        reads_interrupt_flag=True,
    )


def read_flags_to_memory(pop: bytes) -> Template:
    """PUSHFD and POP m32 in one: `pop` is the second instruction, which has been tried."""
    push = read_flags()
    return Template("read flags to memory", push.code + pop, scratch=push.scratch, reads_interrupt_flag=True)


def write_flags() -> Template:
    """POPFD: IF goes to the shared page, the arithmetic flags to the CPU.

    The stacked word is read first, while nothing has changed; flags may be used freely since POPFD writes them all.
    The hypercall for what is not plain does all of POPFD, and the guest goes on behind the template.
    """
    save, restore = asm.store(scratch(0), asm.RCX), asm.load(asm.RCX, scratch(0))
    plain = joined(
        (
            asm.and_constant(asm.RCX, INTERRUPT_FLAG),
            asm.subtract_constant(asm.RCX, INTERRUPT_FLAG),
            asm.store(DELTA, asm.RCX),
            restore,
            asm.POP_FLAGS,
        )
    )
    odd = restore + asm.HLT
    plain += asm.skip(len(odd))
    privilege = asm.compare_constant(PRIVILEGE, 0) + asm.jump_if_not_zero(len(plain))
    to_odd = asm.jump_if_not_zero(len(privilege) + len(plain))
    look = asm.test_constant(asm.RCX, ODD_FLAGS)
    code = joined((save, asm.load_stack(asm.RCX, 0), look, to_odd, privilege, plain, odd))
    call = Call(len(code) - 1, Operation.WRITE_FLAGS, inside=True)
    return Template("write flags", code, (call,), _SAVED, changes=_STACK, stack=_WORD, finish=deliver_if_enabled())


def read_control_register(register: int, number: int) -> Template:
    """MOV r32, CRn. Raises ValueError for a register without a copy."""
    if number not in COPIED:
        raise ValueError(f"CR{number} has no copy in the shared page")
    code = asm.load(register, control_register(number))
    return Template(f"read CR{number}", code, changes=frozenset({register}), repeatable=number != 2)


def clear_task_switched() -> Template:
    """CLTS: the word that is CR0 without TS becomes CR0's copy. No flag changes."""
    code = joined(
        (
            asm.store(scratch(0), asm.RAX),
            asm.load(asm.RAX, _PAGE + abi.TASK_SWITCHED),
            asm.store(control_register(0), asm.RAX),
            asm.load(asm.RAX, scratch(0)),
        )
    )
    return Template("clear CR0.TS", code, scratch=_SAVED)


def write_cr0(register: int, code: bytes) -> Template:
    """MOV CR0, r32: a store of its copy where it is one of two words; the hypervisor does all others. `code` is the
    instruction. Raises `Refused` for ECX, which compares, and ESP."""
    if register in (asm.RCX, asm.RSP):
        raise Refused("the register that it writes is in the way of comparing it")
    restore = asm.load(asm.RCX, scratch(0))
    write = restore + asm.store(control_register(0), register)
    other = restore + asm.HLT  # behind which it goes on at the end
    second = _differs(_WORD, register) + asm.jump_if_rcx_zero(len(other))
    first = _differs(0, register) + asm.jump_if_rcx_zero(len(second) + len(other))
    head = asm.store(scratch(0), asm.RCX) + first + second
    call = Call(len(head) + len(restore), Operation.WRITE_CONTROL_REGISTER, inside=True, instruction=code)
    return Template("write CR0.TS", head + other + write, (call,), _SAVED, changes_view=True)


def _differs(word: int, register: int) -> bytes:
    """ECX = `register` and one of the negative words."""
    return asm.load(asm.RCX, _PAGE + abi.TASK_SWITCHED + _WORD + word) + asm.add(asm.RCX, register)


def read_selector(code: bytes, register: int, size: int) -> Template:
    """MOV r, CS or MOV r, SS, `size` bytes wide; `code` is the instruction."""
    body = code + asm.decrease(register, abi.RING_OF_SELECTORS, size)
    return Template("read selector", body, changes=frozenset({register}), repeatable=True, on_registers=True)


def push_selector(code: bytes) -> Template:
    """PUSH CS or PUSH SS, 32 bits wide; `code` is the instruction. The word on the stack is corrected."""
    body = joined(
        (
            code,
            asm.store(scratch(0), asm.RAX),
            asm.load_stack(asm.RAX, 0),
            asm.decrease(asm.RAX, abi.RING_OF_SELECTORS, _WORD),
            asm.store_stack(0, asm.RAX),
            asm.load(asm.RAX, scratch(0)),
        )
    )
    return Template("push selector", body, scratch=_SAVED, changes=_STACK, stack=-_WORD)


def return_to_self(resume: int) -> Template:
    """`pushf; push cs; push resume; iret` with `resume` behind it: Linux's serialisation (asm/sync_core.h).

    No effect but three dead words below the stack pointer, which are reproduced; the serialisation itself is void,
    since a translated page is made anew when its bytes change.
    """
    code = joined(
        (
            # The lowest and the highest word first: whatever faults, faults before anything has changed.
            asm.store_stack_constant(-3 * _WORD, resume),
            asm.store_stack(-_WORD, asm.RAX),
            asm.store(scratch(0), asm.RAX),
            asm.store(scratch(1), asm.RCX),
            asm.PUSH_FLAGS,
            asm.pop(asm.RAX),
            *corrected(asm.RAX, asm.RCX),
            asm.store_stack(-_WORD, asm.RAX),
            asm.read_selector(asm.RAX, CS),
            asm.decrease(asm.RAX, abi.RING_OF_SELECTORS, _WORD),
            asm.store_stack(-2 * _WORD, asm.RAX),
            asm.load(asm.RAX, scratch(0)),
            asm.load(asm.RCX, scratch(1)),
        )
    )
    return Template("return to self", code, scratch=frozenset({0, 1}))


RETURN_TO_SELF: Final = 8
"""Bytes of the sequence."""


def matches_return_to_self(code: bytes, at: int, page: int) -> int | None:
    """The address pushed, where the sequence stands at offset `at` of the page at `page`; else None."""
    if code[at : at + 3] != b"\x9c\x0e\x68" or code[at + 7 : at + 8] != b"\xcf":
        return None
    resume = (page + at + RETURN_TO_SELF) & 0xFFFF_FFFF
    return resume if code[at + 3 : at + 7] == resume.to_bytes(4, "little") else None
