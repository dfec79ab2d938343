"""Any sensitive instruction as a hypercall: a trap inside the fixup, behind which the guest goes on.

Room: `bt/tactics/x86`. The hypervisor does the whole instruction as if it had trapped where it stands, so a fault that
it raises shows the instruction's own address. That is why an instruction whose fault the guest mends and repeats may
only be the first of its fixup: the address must lead into it again.
"""

from __future__ import annotations

from typing import Final

from iced_x86 import Instruction, InstructionInfoFactory, OpAccess, OpKind, Register, RegisterExt

from bt.tactics.tactics import Refused
from bt.tactics.x86 import assemble as asm
from bt.tactics.x86.template import Call, Template
from emulator.isa.operation import Operation
from emulator.isa.sensitive import Route
from emulator.isa.x86.table import ENTERING, ROW_OF_CODE

WAITING: Final = frozenset({Operation.HALT, Operation.MONITOR_WAIT})
"""Operations of an idle processor, which is woken where it waits."""
PUSHING: Final = frozenset({Operation.FAR_CALL, Operation.SOFTWARE_INTERRUPT, Operation.SYSTEM_CALL})
"""Operations that leave the address behind them to somebody, who may come back to it."""
LEAVING: Final = frozenset(
    {
        Operation.RETURN_FROM_EXCEPTION,
        Operation.RETURN_FROM_SYSTEM_CALL,
        Operation.FAR_RETURN,
        Operation.FAR_JUMP,
        Operation.RETURN_FROM_MANAGEMENT_MODE,
    }
)
"""Operations behind which the guest does not go on."""
KEEPING: Final = frozenset(
    {
        Operation.READ_CONTROL_REGISTER,
        Operation.READ_DEBUG_REGISTER,
        Operation.READ_MODEL_SPECIFIC_REGISTER,
        Operation.READ_SYSTEM_SELECTOR,
        Operation.READ_SEGMENT_SELECTOR,
        Operation.READ_SEGMENT_BASE,
        Operation.READ_PORT,
        Operation.WRITE_PORT,
        Operation.READ_TIME_STAMP,
        Operation.READ_PROCESSOR_ID,
        Operation.READ_PERFORMANCE_COUNTER,
        Operation.READ_EXTENDED_CONTROL_REGISTER,
        Operation.READ_FLAGS,
        Operation.IDENTIFY_PROCESSOR,
        Operation.DISABLE_INTERRUPTS,
        Operation.WRITE_DEBUG_REGISTER,
        Operation.CLEAR_TASK_SWITCHED,
        Operation.FLUSH_CACHES,
    }
)
"""Operations behind which every address leads to what it led to before, so that what comes next can be tried first."""


def hypercall(code: bytes, instruction: Instruction, first: bool) -> Template:
    """The template for a sensitive instruction; `first`: its fixup begins with it. Raises `Refused`."""
    row = ROW_OF_CODE[int(instruction.code)]
    operation = row.operation
    if Route.HYPERCALL not in row.routes:
        raise Refused("it is done by a trap alone")
    if operation in WAITING:
        raise Refused("an idle processor is woken where it waits")
    if operation in PUSHING or int(instruction.code) in ENTERING:
        raise Refused("somebody may come back to the address behind it")
    if not first and _touches_memory(instruction):
        raise Refused("its page fault would have to lead into the middle of a fixup")
    call = Call(0, operation, inside=True, instruction=code)
    return Template(
        f"call the hypervisor for {operation.name}",
        asm.HLT,
        (call,),
        changes=_changes(instruction),
        changes_view=operation not in KEEPING,
        ends=operation in LEAVING,
    )


def _touches_memory(instruction: Instruction) -> bool:
    """Whether it reads or writes memory through the guest's page tables."""
    used = InstructionInfoFactory().info(instruction).used_memory()
    accesses = (one.access for one in used)
    return any(access != OpAccess.NO_MEM_ACCESS for access in accesses) or any(
        instruction.op_kind(index) in _STRING for index in range(instruction.op_count)
    )


def _changes(instruction: Instruction) -> frozenset[int]:
    """Numbers of the general registers that it may write."""
    used = InstructionInfoFactory().info(instruction).used_registers()
    return frozenset(
        number_of(one.register)
        for one in used
        if one.access not in (OpAccess.READ, OpAccess.COND_READ, OpAccess.NONE) and RegisterExt.is_gpr(one.register)
    )


def number_of(register: int) -> int:
    """A general register's number in encoding order."""
    return int(RegisterExt.full_register(register)) - int(Register.RAX)  # type: ignore[arg-type]


_STRING: Final = frozenset(
    {
        *(OpKind.MEMORY_SEG_SI, OpKind.MEMORY_SEG_ESI, OpKind.MEMORY_SEG_RSI),
        *(OpKind.MEMORY_ESDI, OpKind.MEMORY_ESEDI, OpKind.MEMORY_ESRDI),
    }
)
