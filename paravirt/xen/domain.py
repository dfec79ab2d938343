"""A domain: one guest's memory, tables, event channels, shared information and virtual CPU, and what it asked for.

Room: `paravirt/xen`. A `Domain` is what back ends and other domains see of a guest; how the guest asks for things is in
`paravirt.xen.calls`, and what drives its CPU in `paravirt.xen.hypervisor`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from emulator.clock import Clock, Timer
from emulator.engine.x86 import X86Engine
from emulator.isa.x86.walk import FRAME_MASK
from paravirt.mmu.descriptor_pages import DescriptorPages
from paravirt.mmu.frame_types import NOWHERE, Refusal, Refused
from paravirt.xen.access import GuestAccess
from paravirt.xen.events import EventChannels
from paravirt.xen.grants import GrantTable
from paravirt.xen.host import EXTRA_FRAMES, FORMAT, Host
from paravirt.xen.public import INVALID_FRAME, PAGE, Errno, Shared, VcpuInfo, VcpuTime, Virq, XenError
from paravirt.xen.space import HypervisorSpace
from paravirt.xen.tables import CodeWatch, XenTables
from paravirt.xen.vcpu import Vcpu

if TYPE_CHECKING:
    from paravirt.xen.backend import BackEnd

ERRORS = {
    Refusal.NO_FRAME: Errno.EPERM,
    Refusal.FOREIGN: Errno.EBUSY,
    Refusal.WRITABLE_TABLE: Errno.EBUSY,
}
"""What an update of a last-level entry returns for a refusal; everything else, and any other level, is EINVAL."""


def error_of(refused: Refused, level: int = 1) -> XenError:
    """The hypercall's error for what was refused of an entry of a table of `level`."""
    return XenError(ERRORS.get(refused.reason, Errno.EINVAL) if level == 1 else Errno.EINVAL)


class Domain:
    """One guest on an engine of its own."""

    def __init__(
        self, host: Host, engine: X86Engine, clock: Clock, number: int, pages: int, order: Callable[[int], Any]
    ) -> None:
        """`number`: its domain number; `pages`: of its memory, at pseudo-physical frames 0 and up."""
        self.host = host
        self.engine = engine
        self.clock = clock
        self.number = number
        self.pages = pages
        """Frames it has, now."""
        self.most_pages = self.pages_built = pages
        """Frames it may have."""
        self.released: list[int] = []
        """Machine frames that it has given back."""
        self.info_frame: int | None = None
        """Machine frame of its virtual CPU's information, where the guest has moved that."""
        self.owned = host.own(pages + EXTRA_FRAMES, order)
        self.extra = [self.owned.machine[at] for at in range(pages, pages + EXTRA_FRAMES)]
        """Machine frames beyond its memory."""
        self.frames = host.frames
        self.watch = CodeWatch(host.view, self._forget_code)
        self.access = GuestAccess(host.view)
        self.tables = XenTables(self.frames, self.owned, self.watch, self.access)
        self.descriptor_pages = DescriptorPages(self.frames, self.owned, FORMAT)
        self.space = HypervisorSpace(host, engine)
        self.tables.window.update(self.space.roots)
        self.shared_frame = self.extra.pop()
        shared_at = self.shared_frame << 12
        self.events = EventChannels(host.view, shared_at, number)
        self.vcpu = Vcpu(engine, self.frames, self.access, shared_at)
        self.held: list[int] = []
        """Machine frames that the hypervisor itself writes: they stay data."""
        self.hold(self.shared_frame)
        self.control_frame = 0
        """Machine frame of the control block of event queues."""
        self.grants = GrantTable(self)
        self.back_ends: list[BackEnd] = []
        """The hypervisor's own, of its devices."""
        self.assists: set[int] = set()
        self.name = ""
        self.code_base = self.code_end = 0
        """Where the kernel's image was mapped at first, and how many frames of it there are."""
        self._timer: Timer | None = None
        self._period = 0
        self.timers_set = 0
        host.domains[number] = self
        self._begin_machine_to_physical()
        self._begin_shared()

    def hold(self, frame: int) -> None:
        """The hypervisor writes a frame of the domain's, which stays data. Raises `XenError`."""
        try:
            self.frames.get_writable(self.owned, frame)
        except Refused as refused:
            self.owned.refused[refused.reason] += 1
            raise XenError(Errno.EINVAL) from None
        self.held.append(frame)

    def let_go(self, frame: int) -> None:
        """Undo a `hold`."""
        self.held.remove(frame)
        self.frames.put_writable(frame)

    def _begin_machine_to_physical(self) -> None:
        table = self.host.machine_to_physical
        for number in range(self.pages):
            table[self.owned.machine[number]] = number

    def _begin_shared(self) -> None:
        view, at = self.host.view, self.shared_frame << 12
        view[at : at + 4096] = bytes(4096)
        view[at + Shared.MASK : at + Shared.MASK + 512] = b"\xff" * 512
        view[at + VcpuInfo.UPCALL_MASK] = 1
        self.set_time(at)

    def set_time(self, info_at: int) -> None:
        """Say how the time-stamp counter, in nanoseconds since the machine's start, becomes system time: as it is."""
        view, at = self.host.view, info_at + VcpuInfo.TIME
        view[at : at + VcpuTime.SIZE] = bytes(VcpuTime.SIZE)
        view[at + VcpuTime.MULTIPLIER : at + VcpuTime.MULTIPLIER + 4] = (1 << 31).to_bytes(4, "little")
        view[at + VcpuTime.SHIFT] = 1
        view[at + VcpuTime.VERSION] = 2

    def set_wall_clock(self, seconds: int) -> None:
        """The date at virtual time 0, in seconds since 1970."""
        view, at = self.host.view, self.shared_frame << 12
        for offset, value in (
            (Shared.WALL_VERSION, 2),
            (Shared.WALL_SECONDS, seconds & 0xFFFF_FFFF),
            (Shared.WALL_NANOSECONDS, 0),
            (Shared.WALL_SECONDS_HIGH, seconds >> 32),
        ):
            view[at + offset : at + offset + 4] = value.to_bytes(4, "little")

    def is_mapped(self, frame: int) -> bool:
        """Whether anything but the hypervisor's own hold refers to a frame that is held once."""
        return self.frames.refs[frame - self.frames.first] > 1

    # -- frames ---------------------------------------------------------------------------------

    def machine(self, number: int) -> int:
        """The machine frame behind a pseudo-physical frame, as the domain was built. Raises `XenError`."""
        if 0 <= number < self.owned.count and self.owned.machine[number] != NOWHERE:
            return self.owned.machine[number]
        raise XenError(Errno.EINVAL)

    def free_number(self) -> int:
        """A pseudo-physical frame number, as the host counts them, that has no machine frame."""
        return next(at for at in range(self.pages_built) if self.owned.machine[at] == NOWHERE)

    def owns(self, frame: int) -> bool:
        """Whether a machine frame is the domain's."""
        return 0 <= frame < self.frames.count and self.frames.owner[frame] == self.owned.number

    def physical(self, frame: int) -> int:
        """The pseudo-physical frame that the guest says a machine frame is, or `INVALID_FRAME`."""
        return self.host.machine_to_physical[frame] if 0 <= frame < self.frames.count else INVALID_FRAME

    def page(self, frame: int) -> memoryview:
        """The bytes of a machine frame."""
        return self.host.view[frame << 12 : frame + 1 << 12]

    def move_info(self, info_at: int) -> None:
        """The virtual CPU's information is at another machine address, which holds a copy of it."""
        view, old = self.host.view, self.vcpu.info_at
        view[info_at : info_at + Shared.VCPU_INFO_SIZE] = view[old : old + Shared.VCPU_INFO_SIZE]
        self.vcpu.info_at = self.events.info_at = info_at
        self.host.words[info_at + VcpuInfo.SELECTOR >> 3] = (1 << 64) - 1  # nothing may be lost: look at all
        view[info_at + VcpuInfo.UPCALL_PENDING] = 1

    # -- after changes --------------------------------------------------------------------------

    def settle_tables(self) -> None:
        """Tables were changed: forget what was made of them, where it may matter."""
        if self.tables.suspects:
            self.tables.settle()
        if self.frames.flush_due:
            self.flush()

    def _forget_code(self, frame: int) -> None:
        """The contents of a frame that may have been executed changed. Of the kernel's image the address is known; code
        anywhere else goes with all the rest."""
        number = self.physical(frame)
        address = self.code_base + number * PAGE & INVALID_FRAME
        if number < self.code_end and self._executes(address, frame):
            self.engine.code_changed(address, PAGE)
        else:
            self.engine.flush_code()

    def _executes(self, address: int, frame: int) -> bool:
        """Whether guest-virtual `address` is this frame, executable."""
        try:
            entry = self.host.words[self.access.entry_address(address) >> 3]
        except XenError:
            return False
        return entry & 1 != 0 and not entry >> 63 and (entry & FRAME_MASK) >> 12 == frame

    def flush(self) -> None:
        """Forget all translations of addresses."""
        for domain in self.host.domains.values():
            domain.engine.flush_tlb()
            if domain.vcpu.breakpoints.armed:
                domain.vcpu.arm_breakpoints()
        self.frames.flushed()

    # -- time -----------------------------------------------------------------------------------

    def set_timer(self, when: int | None) -> None:
        """Have the timer's interrupt come at this virtual time in nanoseconds, or not at all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if when is not None:
            self.timers_set += 1
            self._timer = self.clock.at(when, self._ring)

    def repeat_timer(self, period: int) -> None:
        """Have the timer's interrupt come every so many nanoseconds besides, or not (0)."""
        running, self._period = self._period, period
        if period and not running:
            self.clock.at(self.clock.now() + period, self._tick)

    def _tick(self) -> None:
        if self._period:
            self.events.raise_virq(Virq.TIMER)
            self.clock.at(self.clock.now() + self._period, self._tick)

    def _ring(self) -> None:
        self._timer = None
        self.events.raise_virq(Virq.TIMER)

    @property
    def timer_when(self) -> int | None:
        """When the timer's interrupt comes."""
        return None if self._timer is None else self._timer.when
