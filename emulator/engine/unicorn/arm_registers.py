"""The descriptions of system registers in Unicorn's ARM: found, and told what identification registers shall show.

Room: `emulator/engine/unicorn`. QEMU keeps a table of descriptions behind the CPU object; a read of a register that is
constant is translated into the number in its description. So a description that is made constant shows what it is
told. Offsets are those of the 2.1.4 wheel (`ARMCPRegInfo` of QEMU 5.0); what is shown is read back when it is set.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from emulator.engine.unicorn.state_search import read_memory
from emulator.errors import EngineMissing

ARM_TABLE: Final = 0xB420
AARCH64_TABLE: Final = 0xD510
"""Offset in the CPU object of the pointer to the table of system registers."""
ACCESS: Final = 72
"""Offset in a register's description of its access function."""
_NODES: Final = 24
"""Offset in a hash table of the pointer to its nodes; each is key, value and hash."""
_NODE_WORDS: Final = 3
_PLACE, _TYPE, _VALUE = 8, 20, 40
"""Offsets of the fields that name it, of its kind, and of what a constant shows."""
_CONSTANT: Final = 2
_SPECIAL: Final = 0xF01
"""Kinds that are translated in ways of their own, such as a read that leaves the destination as it was."""
_LONGEST: Final = 64


Place = tuple[int, ...]
"""Coprocessor, CRn, CRm, op0, op1 and op2; of a register of AArch64 the coprocessor is `AARCH64`."""
AARCH64: Final = 19


class Description(NamedTuple):
    """One register of Unicorn's."""

    address: int
    """Host address."""
    name: str
    place: Place


def _word(descriptor: int, address: int) -> int:
    return int.from_bytes(read_memory(descriptor, address, 8).ljust(8, b"\0"), "little")


def descriptions(cpu: int, table: int) -> list[Description]:
    """Of all registers, by the CPU's host address and the table's offset in it; nothing where there is no such table.

    A register of both execution states, or of both security states, is there as often.
    """
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        hashed = _word(descriptor, cpu + table)
        size = _word(descriptor, hashed) & 0xFFFF_FFFF
        nodes = _word(descriptor, hashed + _NODES)
        if not 0 < size <= 1 << 16:
            return []
        contents = read_memory(descriptor, nodes, 8 * _NODE_WORDS * size)
        if len(contents) < 8 * _NODE_WORDS * size:
            return []
        values = memoryview(contents).cast("Q")[1::_NODE_WORDS].tolist()
        found = []
        for value in sorted(value for value in values if 0x10000 < value < 1 << 47):
            name = read_memory(descriptor, _word(descriptor, value), _LONGEST).split(b"\0")[0].decode("latin-1")
            coprocessor, crn, crm, op0, op1, op2 = read_memory(descriptor, value + _PLACE, 6)
            op0 = op0 if coprocessor == AARCH64 else 0  # what both states have is numbered as AArch64 has it
            found.append(Description(value, name, (coprocessor, crn, crm, op0, op1, op2)))
        return found
    finally:
        os.close(descriptor)


def show(cpu: int, table: int, values: Mapping[Place, int]) -> None:
    """Have registers read as `values` says, at every level. Raises `EngineMissing` for one that is not there."""
    left = set(values)
    for one in descriptions(cpu, table):
        if one.place in values:
            ctypes.c_uint64.from_address(one.address + _VALUE).value = values[one.place]
            kind = ctypes.c_uint32.from_address(one.address + _TYPE)
            kind.value = kind.value & ~_SPECIAL | _CONSTANT
            left.discard(one.place)
    if left:
        raise EngineMissing(f"the unicorn engine has no system register {sorted(left)[0]}: install unicorn==2.1.4")
