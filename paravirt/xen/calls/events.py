"""event_channel_op: ports are allocated, bound, sent to, masked and closed.

Room: `paravirt/xen/calls`. Arguments as event_channel.h has them; what a port does is `paravirt.xen.events`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from paravirt.xen.calls.memory import own_domain
from paravirt.xen.events import PortKind
from paravirt.xen.fifo import CONTROL_SIZE, LINK_BITS, MOST_PORTS, QUEUES, WORDS, Fifo
from paravirt.xen.public import DOMID_SELF, Errno, XenError

if TYPE_CHECKING:
    from paravirt.xen.hypervisor import XenHypervisor


def bind_interdomain(hypervisor: XenHypervisor, argument: int) -> int:
    """A port to a port that another domain offers."""
    access = hypervisor.access
    who, remote_port = access.read_word(argument, 2), access.read_word(argument + 4, 4)
    if who == DOMID_SELF:
        who = hypervisor.domain.number
    other = hypervisor.host.channels_of(who)
    access.translate(argument + 8, True)
    access.write_word(argument + 8, hypervisor.domain.events.bind_interdomain(other, remote_port), 4)
    return 0


def bind_virq(hypervisor: XenHypervisor, argument: int) -> int:
    """A port for a virtual interrupt."""
    access = hypervisor.access
    virq, vcpu = struct.unpack("<II", access.read(argument, 8))
    access.translate(argument + 8, True)
    access.write_word(argument + 8, hypervisor.domain.events.bind_virq(virq, vcpu), 4)
    return 0


def bind_pirq(_hypervisor: XenHypervisor, _argument: int) -> int:
    """There are no interrupts of devices."""
    raise XenError(Errno.EINVAL)


def bind_ipi(hypervisor: XenHypervisor, argument: int) -> int:
    """A port to oneself."""
    access = hypervisor.access
    vcpu = access.read_word(argument, 4)
    access.translate(argument + 4, True)
    access.write_word(argument + 4, hypervisor.domain.events.bind_ipi(vcpu), 4)
    return 0


def close(hypervisor: XenHypervisor, argument: int) -> int:
    """A port is used no more."""
    hypervisor.domain.events.close(hypervisor.access.read_word(argument, 4))
    return 0


def send(hypervisor: XenHypervisor, argument: int) -> int:
    """Tell the other end."""
    hypervisor.domain.events.send(hypervisor.access.read_word(argument, 4))
    return 0


def status(hypervisor: XenHypervisor, argument: int) -> int:
    """What a port is."""
    access = hypervisor.access
    who, port = access.read_word(argument, 2), access.read_word(argument + 4, 4)
    domain = own_domain(hypervisor, who)
    if port >= domain.events.most_ports:
        raise XenError(Errno.EINVAL)
    found = domain.events.ports.get(port)
    kind = PortKind.CLOSED if found is None else found.kind
    detail = bytes(8)
    if found is not None:
        if kind is PortKind.VIRQ:
            detail = struct.pack("<Q", found.virq)
        elif kind is PortKind.UNBOUND:
            detail = struct.pack("<Q", found.remote_domain)
        elif kind is PortKind.INTERDOMAIN:
            detail = struct.pack("<HxxI", found.remote_domain, found.remote_port)
    access.write(argument + 8, struct.pack("<II", kind, 0) + detail)
    return 0


def alloc_unbound(hypervisor: XenHypervisor, argument: int) -> int:
    """A port that another domain may bind to."""
    access = hypervisor.access
    who, remote = struct.unpack("<HH", access.read(argument, 4))
    domain = own_domain(hypervisor, who)
    access.translate(argument + 4, True)
    number = domain.events.allocate_unbound(domain.number if remote == DOMID_SELF else remote)
    access.write_word(argument + 4, number, 4)
    return 0


def bind_vcpu(hypervisor: XenHypervisor, argument: int) -> int:
    """A port's events go to a virtual CPU: there is one."""
    port, vcpu = struct.unpack("<II", hypervisor.access.read(argument, 8))
    if vcpu:
        raise XenError(Errno.ENOENT)
    hypervisor.domain.events.get(port)
    return 0


def unmask(hypervisor: XenHypervisor, argument: int) -> int:
    """Take a port's mask away."""
    hypervisor.domain.events.unmask(hypervisor.access.read_word(argument, 4))
    return 0


def reset(hypervisor: XenHypervisor, argument: int) -> int:
    """Close all ports."""
    domain = own_domain(hypervisor, hypervisor.access.read_word(argument, 2))
    queues = domain.events.fifo
    domain.events.reset()
    if queues is not None:
        for frame in (domain.control_frame, *queues.frames):
            domain.let_go(frame)
    return 0


# -- queues -------------------------------------------------------------------------------------


def init_control(hypervisor: XenHypervisor, argument: int) -> int:
    """Events go to queues in the guest's own pages from now on."""
    access, domain = hypervisor.access, hypervisor.domain
    frame, offset, vcpu = struct.unpack("<QII", access.read(argument, 16))
    if vcpu:
        raise XenError(Errno.ENOENT)
    if offset & 7 or offset > 4096 - CONTROL_SIZE or domain.events.fifo is not None:
        raise XenError(Errno.EINVAL)
    access.translate(argument + 16, True)
    domain.hold(frame)
    domain.control_frame = frame
    start = frame * 4096 + offset
    hypervisor.host.view[start : start + CONTROL_SIZE] = bytes(CONTROL_SIZE)
    domain.events.begin_queues(start)
    access.write_word(argument + 16, LINK_BITS, 1)
    return 0


def _queues(hypervisor: XenHypervisor) -> Fifo:
    queues = hypervisor.domain.events.fifo
    if queues is None:
        raise XenError(Errno.ENOSYS)
    return queues


def expand_array(hypervisor: XenHypervisor, argument: int) -> int:
    """A page with the words of the next ports."""
    queues = _queues(hypervisor)
    frame = hypervisor.access.read_word(argument)
    if len(queues.frames) * WORDS >= MOST_PORTS:
        raise XenError(Errno.ENOSPC)
    hypervisor.domain.hold(frame)
    queues.expand(frame)
    return 0


def set_priority(hypervisor: XenHypervisor, argument: int) -> int:
    """Which queue a port's events go to."""
    port, priority = struct.unpack("<II", hypervisor.access.read(argument, 8))
    queues = _queues(hypervisor)
    hypervisor.domain.events.get(port)
    if priority >= QUEUES:
        raise XenError(Errno.EINVAL)
    queues.priorities[port] = priority
    return 0
