"""Which memory an x86 instruction accesses: addresses, sizes and directions, from its decoded form and the registers.

Room: `emulator/isa/x86`. For whoever must know what an instruction was about to do that did not complete.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from iced_x86 import (
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    OpAccess,
    Register,
    RegisterExt,
)

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_WRITES = frozenset({OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE})
_NOT_DONE = frozenset({OpAccess.NONE, OpAccess.NO_MEM_ACCESS})


class Access(NamedTuple):
    """One access."""

    address: int
    """Linear."""
    size: int
    """Bytes, at least 1."""
    write: bool


def accesses(
    instruction: Instruction, register: Callable[[int], int], segment_base: Callable[[int], int]
) -> Iterator[Access]:
    """What `instruction` accesses, implicit stack accesses included, a string instruction's first round only.

    `register` gives a general register by number, `segment_base` that of ES CS SS DS FS GS by number.
    """
    for used in InstructionInfoFactory().info(instruction).used_memory():
        if used.access in _NOT_DONE:
            continue
        width = 8 * (1 << used.address_size) if used.address_size else 64
        offset = used.displacement
        if used.base in (Register.RIP, Register.EIP):
            offset = instruction.ip_rel_memory_address
        elif used.base != Register.NONE:
            offset += register(RegisterExt.number(used.base))
        if used.index != Register.NONE:
            offset += register(RegisterExt.number(used.index)) * used.scale
        base = segment_base(RegisterExt.number(used.segment)) if used.segment != Register.NONE else 0
        address = base + (offset & ((1 << width) - 1)) & _MASK
        yield Access(address, max(1, MemorySizeExt.size(used.memory_size)), used.access in _WRITES)
