"""A look at the processor and the memory of a Xen guest.

Room: `bt/verify/views`. Its tables hold machine frames; memory is shown by the numbers that the guest itself has for
its frames, so that it can be held against a run on a bare machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bt.verify.views import GENERAL
from bt.verify.views.view import View
from bt.verify.views.x86 import peek
from paravirt.xen.hypervisor import XenHypervisor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bt.session import Session


class XenView(View):
    """One guest's virtual CPU."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        assert isinstance(session.driver, XenHypervisor)
        self.driver = session.driver
        self._registers = session.machine.engine.registers

    @property
    def level(self) -> int:
        """0 in the guest's kernel, 3 in user code."""
        return self.driver.vcpu.level

    @property
    def bits(self) -> int:
        """64, or 32 in compatibility mode."""
        return 64 if self._registers.segment(1)[3] >> 21 & 1 else 32

    def space(self) -> int:
        """The machine frame of the kernel's root, of which each process has one."""
        return self.driver.vcpu.kernel_root << 12

    def registers(self) -> tuple[int, ...]:
        """The general registers and RFLAGS."""
        return (*map(int, self._registers.gpr), self._registers.rflags)

    def code(self, address: int) -> bytes:
        """By the tables that the processor walks."""
        vcpu = self.driver.vcpu
        root = vcpu.kernel_root if vcpu.kernel_mode else vcpu.user_root
        return peek(self.memory.words, self.memory.view, root << 12, address)

    def final(self) -> Iterator[tuple[str, int]]:
        """The general registers, RIP, RFLAGS and the level."""
        gpr, rip, flags, level, *_ = self.driver.state
        yield from zip(GENERAL, gpr, strict=True)
        yield from (("RIP", rip), ("RFLAGS", flags), ("CPL", level))


def frames_of(session: Session) -> NDArray[np.int64] | None:
    """The machine frame of each of a Xen guest's own frame numbers, -1 where it has none; None for other guests."""
    driver = session.driver
    if not isinstance(driver, XenHypervisor):
        return None
    domain = driver.domain
    frames = np.full(domain.pages_built, -1, dtype=np.int64)
    for frame in domain.owned.machine_array[: domain.pages_built].tolist():
        number = domain.physical(frame) if domain.owns(frame) else -1
        if 0 <= number < len(frames):
            frames[number] = frame
    return frames
