"""Shadow tables of an AArch64 guest: both halves of its addresses, in two views that need no flush between them.

Room: `paravirt/modes/aarch64`. Devices are never mapped: every access exits and is done in the guest's place. No
mapping is both writable and executable, since the engine misses stores to its code.
"""

from __future__ import annotations

import numpy as np

from emulator.engine.aarch64 import AArch64Engine
from emulator.isa.aarch64.paging import EL0_TABLES, AArch64Tables, TranslationContext
from emulator.isa.exceptions import ArchitecturalException
from emulator.memory import GuestMemory
from paravirt import abi, layout
from paravirt.mmu.shadow import ShadowPaging
from paravirt.mmu.views import KERNEL_VIEW


class AArch64Shadow(ShadowPaging):
    """The shadow tables of one virtual CPU."""

    def __init__(self, engine: AArch64Engine, memory: GuestMemory, context: TranslationContext) -> None:
        self._cpu = engine
        super().__init__(
            engine,  # type: ignore[arg-type]
            memory,
            AArch64Tables(memory.view, memory.base, context),
            EL0_TABLES,
            layout.AARCH64,
            abi.AARCH64,
        )
        self.frames.exclusive = True
        self.frames.execute_only = engine.capabilities.execute_only
        self._memory_base = memory.base

    def _enter(self, roots: tuple[int, ...]) -> None:
        lower, upper = map(self.pool.address_of, roots)
        self._cpu.set_roots(lower, upper, self.view)

    def forget_code(self, number: int) -> None:
        """As the base; the tables in use are another view's afterwards, so what it had is walked again."""
        super().forget_code(number)

    def executes(self, address: int) -> bool:
        """Whether a page is executed in the kernel view now."""
        return self.view == KERNEL_VIEW and self._leaf_of(address) >= 0

    def physical_of(self, address: int) -> int | None:
        """Guest-physical address that the kernel has mapped, or None."""
        try:
            return self.guest.walk(address, False, False, False).frame
        except ArchitecturalException:
            return None

    def executable_ahead(self, guest: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Never: code is entered at its first execution."""
        return bits
