"""CLI, STI, PUSHF and POPF by the virtual interrupt flag in the shared page.

Room: `bt/tactics`. The real interrupt flag of a deprivileged guest reads as 1 and cannot be changed by it; the word
INTERRUPT_DELTA (0, or -0x200 when virtually disabled) turns real flags into virtual ones by one addition. Only an
enable that finds an interrupt waiting, and a POPF with more than arithmetic in it, call the hypervisor.
"""

from __future__ import annotations

from typing import Final

from bt.tactics.x86 import assemble as asm
from bt.tactics.x86.template import DELTA, PENDING, PRIVILEGE, Call, Template, joined, scratch
from emulator.isa.operation import Operation
from paravirt.abi import INTERRUPTS_DISABLED, INTERRUPTS_ENABLED

INTERRUPT_FLAG: Final = 0x200
PLAIN_FLAGS: Final = 0xCD5 | INTERRUPT_FLAG | 0x2 | 0x28 | 0x8000
"""Bits of a stacked RFLAGS that the inline POPF takes: CF PF AF ZF SF DF OF, IF, and the reserved ones that are
ignored. TF, IOPL, NT, RF, VM, AC, VIF, VIP and ID go to the hypervisor."""
ODD_FLAGS: Final = 0xFFFF_FFFF & ~PLAIN_FLAGS
"""Bits that send POPF to the hypervisor."""
_STACK: Final = frozenset({asm.RSP})


def disable() -> Template:
    """CLI. After an STI it takes back the look at what waits: by STI's shadow nothing comes between the two."""
    return Template(
        "disable interrupts", asm.store_constant(DELTA, INTERRUPTS_DISABLED), takes_back=True, repeatable=True
    )


def enable(before_halt: bool = False) -> Template:
    """STI. The look at what waits comes at the end of the fixup, behind what was displaced: STI's shadow.

    `before_halt`: the next instruction is HLT, which exits anyway, and the hypervisor delivers there: an interrupt
    between the two would let an idle kernel sleep through it.
    """
    flag = asm.store_constant(DELTA, INTERRUPTS_ENABLED)
    return Template("enable interrupts", flag, finish=None if before_halt else deliver(), shadow=True, repeatable=True)


def deliver() -> Template:
    """The end of an enable: one hypercall when an interrupt waits."""
    rcx = asm.RCX
    save, restore = asm.store(scratch(0), rcx), asm.load(rcx, scratch(0))
    waiting = restore + asm.HLT
    code = joined((save, asm.load(rcx, PENDING), asm.jump_if_rcx_zero(len(waiting)), waiting))
    call = Call(len(code) - 1, Operation.ENABLE_INTERRUPTS)
    return Template("deliver what waits", code + restore, (call,), frozenset({0}))


def deliver_if_enabled() -> Template:
    """The end of what may have enabled: one hypercall when interrupts are enabled and one waits."""
    rcx = asm.RCX
    save, restore = asm.store(scratch(0), rcx), asm.load(rcx, scratch(0))
    waiting = restore + asm.HLT
    look = asm.load(rcx, PENDING) + asm.jump_if_rcx_zero(len(waiting)) + waiting
    head = joined((save, asm.load(rcx, DELTA), asm.jump_if_rcx_zero(2), asm.skip(len(look)), look))
    call = Call(len(head) - 1, Operation.ENABLE_INTERRUPTS)
    return Template("deliver what waits if enabled", head + restore, (call,), frozenset({0}))


def read_flags() -> Template:
    """PUSHFQ: pushes the real flags, then corrects the word on the stack."""
    rax, rcx = asm.RAX, asm.RCX
    code = joined(
        (
            asm.PUSHFQ,
            asm.store(scratch(0), rax),
            asm.store(scratch(1), rcx),
            asm.load_stack(rax, 0),
            *corrected(rax, rcx),
            asm.store_stack(0, rax),
            asm.load(rax, scratch(0)),
            asm.load(rcx, scratch(1)),
        )
    )
    return Template("read flags", code, scratch=frozenset({0, 1}), changes=_STACK, stack=-8)


def read_flags_to(register: int) -> Template:
    """PUSHFQ and POP r64 in one; the word left below the stack pointer is corrected too. Not for RSP."""
    if register == asm.RSP:
        raise ValueError("pushf into RSP cannot be one fixup; take the two instructions by themselves")
    other = asm.RAX if register == asm.RCX else asm.RCX
    code = joined(
        (
            asm.PUSHFQ,
            asm.pop(register),
            asm.store(scratch(0), other),
            *corrected(register, other),
            asm.load(other, scratch(0)),
            asm.store_stack(-8, register),
        )
    )
    return Template("read flags to register", code, scratch=frozenset({0}), changes=frozenset({register}))


def corrected(register: int, other: int) -> tuple[bytes, ...]:
    """Real flags in `register` become virtual ones; `other` is used up."""
    return asm.load(other, DELTA), asm.add(register, other), asm.load(other, PRIVILEGE), asm.add(register, other)


def write_flags() -> Template:
    """POPFQ: IF goes to the shared page, the arithmetic flags to the CPU.

    The stacked word is read first, while nothing has changed; flags may be used freely since POPFQ writes them all.
    The hypercall for what is not plain does all of POPFQ, and the guest goes on behind the template.
    """
    rcx = asm.RCX
    save, restore = asm.store(scratch(0), rcx), asm.load(rcx, scratch(0))
    plain = joined(
        (
            asm.and_constant(rcx, INTERRUPT_FLAG),
            asm.subtract_constant(rcx, INTERRUPT_FLAG),
            asm.store(DELTA, rcx),
            restore,
            asm.POPFQ,
        )
    )
    odd = restore + asm.HLT
    plain += asm.skip(len(odd))
    privilege = asm.compare_constant(PRIVILEGE, 0) + asm.jump_if_not_zero(len(plain))
    to_odd = asm.jump_if_not_zero(len(privilege) + len(plain))
    code = joined((save, asm.load_stack(rcx, 0), asm.test_constant(rcx, ODD_FLAGS), to_odd, privilege, plain, odd))
    call = Call(len(code) - 1, Operation.WRITE_FLAGS, inside=True)
    return Template("write flags", code, (call,), frozenset({0}), changes=_STACK, stack=8, finish=deliver_if_enabled())
