"""Sensitive instructions that follow one another, done in one exit where exits are dear.

Room: `paravirt/modes/x86`. A kernel enters by SYSCALL and SWAPGS, leaves by SWAPGS and SYSRET or IRETQ, loads the
user's GS between two SWAPGS, several segments one after the other, and CR3 with what it has just read of it. Whether
one of these is next, behind what does nothing, is looked up once an address and kept until code changes.
"""

from collections.abc import Callable
from typing import Final

from iced_x86 import Code, Mnemonic

from emulator.isa.operation import Operation
from emulator.isa.x86.decode import instruction_at
from paravirt.accounting import ExitTable
from paravirt.hypervisor import Action, Prepared

_LEAVING: Final = frozenset({Operation.RETURN_FROM_SYSTEM_CALL, Operation.RETURN_FROM_EXCEPTION})
_FOLLOWING: Final = _LEAVING | {
    Operation.SWAP_GS,
    Operation.WRITE_SEGMENT_SELECTOR,
    Operation.WRITE_CONTROL_REGISTER,
}
LEADING: Final = (Operation.SWAP_GS, Operation.WRITE_SEGMENT_SELECTOR, Operation.READ_CONTROL_REGISTER)
"""Operations that trap behind which one looks, besides system calls."""
_PLANTED: Final = 0xF4
_JUMPS: Final = (Code.JMP_REL8_64, Code.JMP_REL32_64)
_MOST_IDLE: Final = 4
"""Instructions without effect that are looked over."""
Step = tuple[int, Action, list[int]]
"""Where the instruction is, what it does, and the cell that counts it."""


class Chain:
    """What follows at each address, for one guest."""

    def __init__(
        self,
        exits: ExitTable,
        fetch: Callable[[int], bytes],
        prepare: Callable[[int, bytes], Prepared | None],
        executed: Callable[[int], int],
    ) -> None:
        """`executed` gives the byte that is executed at an address, -1 where none is yet."""
        self._exits, self._fetch, self._prepare, self._executed = exits, fetch, prepare, executed
        self._known: dict[int, Step | None] = {}

    def forget(self) -> None:
        """Code changed."""
        self._known.clear()

    def after(self, rip: int) -> Step | None:
        """The operation that the instruction at `rip` stands for, or the first behind NOPs there; None for others."""
        if rip not in self._known:
            self._known[rip] = self._look(rip)
        return self._known[rip]

    def _look(self, rip: int) -> Step | None:
        for _ in range(_MOST_IDLE + 1):
            code = self._fetch(rip)
            instruction = instruction_at(code, rip)
            if instruction is None:
                return None
            if instruction.mnemonic == Mnemonic.NOP or instruction.code == Code.ENDBR64:
                rip += len(instruction)
                continue
            if instruction.code in _JUMPS:
                rip = instruction.near_branch_target
                continue
            prepared = self._prepare(rip, code)
            if prepared is None or prepared.operation not in _FOLLOWING:
                return None
            # Behind an instruction whose place leads to a fixup the guest cannot go on.
            if prepared.operation not in _LEAVING and self._executed(rip) not in (code[0], _PLANTED):
                return None
            return rip, prepared.action, self._exits.cell(prepared.operation.name, "chained")
        return None
