"""What the operations of 32-bit guests share: their registry, and addresses through segments.

Room: `paravirt/operations/i386`. The handlers are those of x86-64 where an operation is the same in both modes; here
are the ones that are not. A stack access goes through SS, a memory operand through its segment's base.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from iced_x86 import Instruction

from emulator.isa.operation import Operation
from emulator.isa.x86.stack32 import Stack, current
from paravirt.modes.i386.vcpu import I386VirtualCpu
from paravirt.operations.x86.context import Action
from paravirt.operations.x86.context import Context as WideContext

MASK = 0xFFFF_FFFF


class Context(WideContext, Protocol):
    """What the operations need of the hypervisor of a 32-bit guest."""

    vcpu: I386VirtualCpu

    def paging_changed(self) -> None:
        """CR0.PG, CR4.PAE or CR4.PSE changed: the tables have another format."""
        ...


Prepare = Callable[[Context, Instruction], Action]
OWN: dict[Operation, Prepare] = {}
"""The handlers that differ from those of x86-64."""


def handles(operation: Operation) -> Callable[[Prepare], Prepare]:
    """Register the handler of an operation."""

    def register(prepare: Prepare) -> Prepare:
        OWN[operation] = prepare
        return prepare

    return register


def stack_of(vcpu: I386VirtualCpu) -> Stack:
    """The stack in use, with the rights of the guest's level."""
    return current(vcpu, vcpu.level == 3)


def push(vcpu: I386VirtualCpu, value: int, size: int) -> None:
    """Push a word of `size` bytes. Raises what a push raises, nothing changed."""
    stack = stack_of(vcpu)
    stack.push(vcpu, (value,), size)
    stack.set_pointer(vcpu)


def top(vcpu: I386VirtualCpu, size: int) -> tuple[Stack, int]:
    """The stack and the word of `size` bytes on top of it, not popped yet (`drop`)."""
    stack = stack_of(vcpu)
    return stack, stack.peek(vcpu, 1, size)[0]


def drop(vcpu: I386VirtualCpu, stack: Stack, size: int) -> None:
    """Pop what `top` has read."""
    stack.pointer += size
    stack.set_pointer(vcpu)
