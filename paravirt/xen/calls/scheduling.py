"""sched_op, vcpu_op and set_timer_op: waiting, ending, the virtual CPU's state, and its timer.

Room: `paravirt/xen/calls`. There is one virtual CPU; others of a number are not there (`ENOENT`). Times are
nanoseconds of virtual time.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from paravirt.mmu.frame_types import Refused
from paravirt.xen.public import Errno, Shared, Shutdown, VcpuInfo, XenError

if TYPE_CHECKING:
    from paravirt.xen.hypervisor import XenHypervisor

_FUTURE: Final = 1
_RUNNING: Final = 0
_PORTS_POLLED: Final = 128
_JUMPS: Final = 1000
"""Events of the clock that pass in one poll: a guest that waits longer has to ask again."""


def yield_(_hypervisor: XenHypervisor, _argument: int) -> int:
    """Let others run: there are none."""
    return 0


def block(hypervisor: XenHypervisor, _argument: int) -> int:
    """Take events and wait for one."""
    hypervisor.host.view[hypervisor.vcpu.info_at + VcpuInfo.UPCALL_MASK] = 0
    hypervisor.block()
    return 0


def shutdown(hypervisor: XenHypervisor, argument: int) -> int:
    """End, for a reason."""
    reason = hypervisor.access.read_word(argument, 4)
    if reason not in list(Shutdown):
        raise XenError(Errno.EINVAL)
    hypervisor.shut_down(reason)
    return 0


def poll(hypervisor: XenHypervisor, argument: int) -> int:
    """Wait for an event on one of some ports, masked or not, or for a time. On a port not in use nothing comes."""
    ports_at, count, timeout = struct.unpack("<QIxxxxQ", hypervisor.access.read(argument, 24))
    if count > _PORTS_POLLED:
        raise XenError(Errno.EINVAL)
    ports = struct.unpack(f"<{count}I", hypervisor.access.read(ports_at, count * 4)) if count else ()
    events, clock = hypervisor.domain.events, hypervisor.machine.clock
    if any(port >= events.most_ports for port in ports):
        raise XenError(Errno.EINVAL)
    used = [port for port in ports if port in events.ports]
    for _ in range(_JUMPS):
        if any(events.is_pending(port) for port in used) or (timeout and clock.now() >= timeout):
            break
        due = [when for when in (clock.next_event(), timeout or None) if when is not None]
        if not due:
            break
        clock.skip_to(min(due))
        clock.run_due()
    hypervisor.time_skipped()
    hypervisor.time_changed()
    return 0


# -- vcpu_op ------------------------------------------------------------------------------------


def initialise(_hypervisor: XenHypervisor, _argument: int) -> int:
    """The one virtual CPU runs already."""
    raise XenError(Errno.EEXIST)


def up(_hypervisor: XenHypervisor, _argument: int) -> int:
    """It is up."""
    return 0


def is_up(_hypervisor: XenHypervisor, _argument: int) -> int:
    """It is."""
    return 1


def get_runstate(hypervisor: XenHypervisor, argument: int) -> int:
    """How long it has run and waited: it has always run."""
    now = hypervisor.machine.clock.now()
    hypervisor.access.write(argument, struct.pack("<IxxxxQ4Q", _RUNNING, 0, now, 0, 0, 0))
    return 0


def register_runstate(hypervisor: XenHypervisor, argument: int) -> int:
    """The same, in the guest's memory; it is written once, since it tells nothing."""
    return get_runstate(hypervisor, hypervisor.access.read_word(argument))


def set_periodic(hypervisor: XenHypervisor, argument: int) -> int:
    """A timer that comes again and again."""
    period = hypervisor.access.read_word(argument)
    if period < 1_000_000:
        raise XenError(Errno.EINVAL)
    hypervisor.domain.set_timer(None)
    hypervisor.domain.repeat_timer(period)
    hypervisor.time_changed()
    return 0


def stop_periodic(hypervisor: XenHypervisor, _argument: int) -> int:
    """No more."""
    hypervisor.domain.repeat_timer(0)
    return 0


def set_singleshot(hypervisor: XenHypervisor, argument: int) -> int:
    """A timer that comes once."""
    when, flags = struct.unpack("<QI", hypervisor.access.read(argument, 12))
    if flags & _FUTURE and when < hypervisor.machine.clock.now():
        raise XenError(Errno.ETIME)
    hypervisor.domain.set_timer(when)
    hypervisor.time_changed()
    return 0


def stop_singleshot(hypervisor: XenHypervisor, _argument: int) -> int:
    """It comes no more."""
    hypervisor.domain.set_timer(None)
    return 0


def register_info(hypervisor: XenHypervisor, argument: int) -> int:
    """Its information is in a page of the guest's from now on."""
    frame, offset = struct.unpack("<QI", hypervisor.access.read(argument, 12))
    domain = hypervisor.domain
    if offset > 4096 - Shared.VCPU_INFO_SIZE or offset % 8 or domain.info_frame is not None or not domain.owns(frame):
        raise XenError(Errno.EINVAL)
    try:
        domain.frames.use_writable(frame - domain.frames.first)
    except Refused:
        raise XenError(Errno.EINVAL) from None
    domain.info_frame = frame
    domain.settle_tables()
    domain.move_info((frame << 12) + offset)
    return 0


def set_timer_op(hypervisor: XenHypervisor, when: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
    """A timer that comes once, or not at all (0)."""
    hypervisor.domain.set_timer(when or None)
    hypervisor.time_changed()
    return 0
