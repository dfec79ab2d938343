"""A64's veneers: to a fixup out of B's reach and back, through a register that is kept meanwhile.

Room: `bt/tactics/aarch64`. Far branches go through x16, whose value is in a system register that EL0 may have. While it
is there no interrupt may come in: the veneer runs without a stop, the fixup is entered behind its first word, and the
place at which the guest comes back is named as a call's (`Hypercall`), at which the hypervisor delivers nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from bt.tactics.fixed.body import Body, BranchDraft
from bt.tactics.tactics import OutOfReach, Patch
from emulator.isa.aarch64.encoding import mrs, msr
from emulator.isa.operation import Operation
from paravirt import abi
from paravirt.translator import Fixup, Hypercall

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.tactics.fixed.tactics import FixedWidth

_THROUGH: Final = 16
_WAY: Final = 20
"""Bytes of a far branch."""
VENEER_SIZE: Final = _WAY + 8
"""Bytes of padding: the way there, and where the guest comes back."""
_BR: Final = 0xD61F_0000


def far_branch(scratch: int, target: int) -> bytes:
    """Keep x16, load an address of 48 significant bits into it, and branch there. Raises `OutOfReach`."""
    low, middle, high, top = (target >> shift & 0xFFFF for shift in (0, 16, 32, 48))
    if top not in (0, 0xFFFF):
        raise OutOfReach(f"{target:#x} is no address of 48 bits")
    first = 0xD280_0000 | low << 5 if not top else 0x9280_0000 | (low ^ 0xFFFF) << 5  # movz, movn
    return struct.pack(
        "<5I",
        msr(scratch, _THROUGH),
        first | _THROUGH,
        0xF2A0_0000 | middle << 5 | _THROUGH,
        0xF2C0_0000 | high << 5 | _THROUGH,
        _BR | _THROUGH << 5,
    )


@dataclass(frozen=True, slots=True)
class FarDraft(BranchDraft):
    """A body that is reached and left by a veneer."""

    scratch: int = 0
    """The system register that keeps x16."""

    @property
    def size(self) -> int:
        """Bytes of the fixup: a word that is never executed, x16 back, the body, the way back."""
        return 8 + self.body.size(_WAY)

    def place(self, address: int, page: int) -> tuple[Fixup, tuple[Patch, ...]]:
        """See `BranchDraft`."""
        start = self.body.start
        there, back = page + self.veneer, page + self.veneer + _WAY
        restore = struct.pack("<I", mrs(self.scratch, _THROUGH))
        inner = self.body.assemble(address + 8, page, lambda _source, _target: far_branch(self.scratch, back))
        calls: Mapping[int, Hypercall] = inner.hypercalls
        landing = restore + self.branch(back + 4, page + self.body.end)
        if self.body.leaves:
            operation = next((call.operation for call in calls.values()), Operation.READ_SYSTEM_REGISTER)
            calls = {**calls, back: Hypercall(page + start, operation, back)}
        fixup = replace(inner, address=address, code=self.fill + restore + inner.code, hypercalls=calls)
        veneer = far_branch(self.scratch, address + 4) + landing
        return fixup, (Patch(start, self.branch(page + start, there)), Patch(self.veneer, veneer))


def draft(body: Body, tactics: FixedWidth, veneer: int, scratch: int) -> FarDraft:
    """The draft of a body by a veneer at this offset of its page."""
    clobbers = () if abi.AARCH64_SCRATCH in body.clobbers else (abi.AARCH64_SCRATCH,)
    return FarDraft(body, tactics.branch, tactics.branch, _WAY, tactics.fill, clobbers, veneer, tactics.branch, scratch)


def does_not_go_on(code: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which words never let execution run on into the next: B, BR, RET, ERET, BRK, UDF."""
    stops = code & np.uint32(0xFC00_0000) == np.uint32(0x1400_0000)
    stops |= code & np.uint32(0xFFFF_FC1F) == np.uint32(0xD61F_0000)
    stops |= code & np.uint32(0xFFFF_FC1F) == np.uint32(0xD65F_0000)
    stops |= code == np.uint32(0xD69F_03E0)
    stops |= code & np.uint32(0xFFE0_001F) == np.uint32(0xD420_0000)
    return np.asarray(stops | ((code > 0) & (code < np.uint32(0x1_0000))))
