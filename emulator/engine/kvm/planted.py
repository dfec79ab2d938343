"""A trap planted at one instruction of a guest that runs on KVM, and how it is known that the guest is there again.

Room: `emulator/engine/kvm`. The processor's breakpoint registers are not to be had on every host, so the instruction's
first byte in memory becomes a HLT while the guest runs; what is behind it is then stepped over by the trap flag.
"""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from iced_x86 import FlowControl, Register

from emulator.engine.kvm import floating
from emulator.engine.kvm.device import Vm
from emulator.engine.kvm.tables import read_code, translate
from emulator.engine.landing import Landing
from emulator.isa.x86 import registers as r
from emulator.isa.x86.decode import instruction_at, row_of

HLT: Final = 0xF4
FEW: Final = 2000
"""Rounds of a loop that can all be stopped at."""
_FLAGS: Final = r.FLAGS_STATUS | r.FLAG_DF | r.FLAG_AC | r.FLAG_ID
_GOES_ON: Final = frozenset(
    {
        *(FlowControl.NEXT, FlowControl.CALL, FlowControl.RETURN, FlowControl.CONDITIONAL_BRANCH),
        *(FlowControl.UNCONDITIONAL_BRANCH, FlowControl.INDIRECT_BRANCH, FlowControl.INDIRECT_CALL),
    }
)
_AHEAD: Final = 16
"""Instructions ahead whose fixed addresses are looked at."""
_STACK_WORDS: Final = 256
"""Words of the stack in which addresses are looked for where calls return to."""
_MOST_RETURNS: Final = 6
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_PAGE: Final = 4096


def can_hold(code: bytes, place: int) -> bool:
    """Whether the instruction `code` at `place` can be replaced and stepped over: it does one thing, once, and nothing
    with the flags as a whole."""
    instruction = instruction_at(code, place)
    return (
        instruction is not None
        and code[0] != HLT
        and instruction.flow_control in _GOES_ON
        and not (instruction.has_rep_prefix or instruction.has_repne_prefix)
        and row_of(instruction) is None
    )


class Planted:
    """A HLT at each of some guest-virtual addresses; `undo` puts back what was there."""

    def __init__(self, vm: Vm, root: int, places: Iterable[int]) -> None:
        """Raises `LookupError` where no memory is mapped."""
        at = []
        for place in places:
            physical = translate(vm, root, place)
            found = vm.find(physical) if physical is not None else None
            if physical is None or found is None:
                raise LookupError(f"no memory is mapped at {place:#x}")
            at.append((found[2].cast("B"), physical - found[0]))
        self._kept = [(memory, offset, memory[offset]) for memory, offset in at]
        self.redo()

    def redo(self) -> None:
        """Have the traps."""
        for memory, offset, _ in self._kept:
            memory[offset] = HLT

    def undo(self) -> None:
        """Have the instructions again."""
        for memory, offset, byte in self._kept:
            memory[offset] = byte


def landing_at(vm: Vm, root: int, place: int, flags: int, registers: tuple[int, ...]) -> Landing:
    """All of a guest at an instruction that can tell one visit from another."""
    sha = hashlib.sha256(floating.take(vm.cpu)[:416])
    for page in sorted({address >> 12 for address in (*registers, *_fixed(vm, root, place))}):
        physical = translate(vm, root, page << 12 & _MASK)
        found = vm.find(physical) if physical is not None else None
        if physical is not None and found is not None:
            first = physical - found[0] >> 3
            sha.update(page.to_bytes(8, "little"))
            sha.update(found[2][first : first + _PAGE // 8])
    return Landing(place, flags & _FLAGS, registers, sha.hexdigest()[:16])


def _fixed(vm: Vm, root: int, place: int) -> list[int]:
    """Addresses that the next instructions name without a register."""
    addresses, at = [], place
    for _ in range(_AHEAD):
        instruction = instruction_at(read_code(vm, root, at), at)
        if instruction is None:
            break
        if instruction.is_ip_rel_memory_operand:
            addresses.append(instruction.ip_rel_memory_address)
        elif instruction.memory_base == instruction.memory_index == Register.NONE and instruction.memory_displ_size:
            addresses.append(instruction.memory_displacement & _MASK)
        at = instruction.next_ip
    return addresses


def returns(vm: Vm, root: int, stack: int) -> list[int]:
    """Places behind calls that the stack leads back to, the innermost first, as far as they can hold a trap."""
    found: list[int] = []
    at = stack & ~7
    while at < (stack & ~7) + 8 * _STACK_WORDS and len(found) < _MOST_RETURNS:
        word = _word(vm, root, at)
        if word is None:
            break
        if word not in found and _behind_call(vm, root, word) and can_hold(read_code(vm, root, word), word):
            found.append(word)
        at += 8
    return found


def _word(vm: Vm, root: int, address: int) -> int | None:
    physical = translate(vm, root, address & _MASK)
    return vm.word(physical) if physical is not None else None


def _behind_call(vm: Vm, root: int, place: int) -> bool:
    """Whether the instruction before a place is likely to be a call: CALL rel32, or one through a register."""
    code = read_code(vm, root, place - 5 & _MASK)[:5]
    if len(code) < 5:
        return False
    if code[0] == 0xE8:
        target = place + struct.unpack_from("<i", code, 1)[0] & _MASK
        return translate(vm, root, target) is not None
    return code[3] == 0xFF and code[4] & 0xF8 == 0xD0


def meter_of(rounds: Sequence[tuple[int, ...]], before: Sequence[int]) -> tuple[int, int] | None:
    """A register that changes by the same in each of some rounds of a loop, and went that way since `before`, many
    rounds ago; and by how much. None where there is none, or the loop was not long."""
    best: tuple[int, tuple[int, int]] | None = None
    for register, first in enumerate(rounds[0]):
        step = signed(rounds[1][register] - first)
        if step and all(signed(b[register] - a[register]) == step for a, b in pairwise(rounds)):
            done = signed(first - before[register]) // step
            if done >= FEW and (best is None or done < best[0]):
                best = done, (register, step)
    return best[1] if best is not None else None


def signed(value: int) -> int:
    """A difference of two words, which may be less than nothing."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value
