"""Event channels: numbered ports by which the hypervisor, and other domains, tell a guest that something happened.

Room: `paravirt/xen`. A port's other end is a virtual interrupt, another port, or a function of the hypervisor's own (a
back end). Two-level bitmaps in the shared information page, or queues
(`fifo`), say what is pending and what is masked (event_channel.h).
`EventChannels` decides; how a guest asks is in `paravirt.xen.calls.events`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from paravirt.xen.fifo import MOST_PORTS, Fifo
from paravirt.xen.public import PORTS, VIRQS, Errno, Shared, VcpuInfo, XenError


class PortKind(IntEnum):
    """What a port is (EVTCHNSTAT of event_channel.h)."""

    CLOSED = 0
    UNBOUND = 1
    INTERDOMAIN = 2
    PIRQ = 3
    VIRQ = 4
    IPI = 5


@dataclass(slots=True)
class Port:
    """One port of a domain."""

    kind: PortKind = PortKind.CLOSED
    remote_domain: int = 0
    remote_port: int = 0
    remote: EventChannels | None = None
    """The other end's channels, where it is another guest's."""
    virq: int = 0
    vcpu: int = 0
    backend: Callable[[], None] | None = None
    """Called when the guest sends: the other end is the hypervisor's own."""


class EventChannels:
    """The ports of one domain."""

    def __init__(self, view: memoryview, shared_at: int, domain: int) -> None:
        """`shared_at`: machine address of the shared information page; `domain`: whose they are."""
        self.view = view
        self.words = view.cast("Q")
        self.shared_at = shared_at
        self.info_at = shared_at
        """Machine address of the virtual CPU's information, which the guest may move."""
        self.domain = domain
        self.ports: dict[int, Port] = {}
        self._lowest = 1
        """Every port below is in use."""
        self.fifo: Fifo | None = None
        """Queues, where the guest has asked for them in place of the bitmaps."""
        self.most_ports = PORTS
        self.delivered = 0
        """Events set pending so far."""
        self.on_event: Callable[[], None] = lambda: None
        """Called when the guest must look: an event is pending and not masked."""

    # -- ports ----------------------------------------------------------------------------------

    def get(self, port: int) -> Port:
        """A port in use. Raises `XenError` where there is none."""
        found = self.ports.get(port)
        if found is None:
            raise XenError(Errno.EINVAL)
        return found

    def _allocate(self, port: Port) -> int:
        for number in range(self._lowest, self.most_ports):
            if number not in self.ports:
                self.ports[number] = port
                self._lowest = number + 1
                return number
        raise XenError(Errno.ENOSPC)

    def allocate_unbound(self, remote_domain: int) -> int:
        """A port that `remote_domain` may bind to."""
        return self._allocate(Port(PortKind.UNBOUND, remote_domain))

    def allocate_backend(self, remote_domain: int, called: Callable[[], None]) -> int:
        """A port whose other end is the hypervisor's own."""
        return self._allocate(Port(PortKind.INTERDOMAIN, remote_domain, backend=called))

    def bind_backend(self, number: int, called: Callable[[], None]) -> Port:
        """A port that the guest offers to domain 0 has its other end in the hypervisor. Raises `XenError`."""
        port = self.get(number)
        if port.kind is not PortKind.UNBOUND or port.remote_domain:
            raise XenError(Errno.EINVAL)
        port.kind, port.backend = PortKind.INTERDOMAIN, called
        return port

    def unbind_backend(self, number: int) -> None:
        """It has none any more, and is offered again. Raises `XenError`."""
        port = self.get(number)
        port.kind, port.backend = PortKind.UNBOUND, None

    def bind_virq(self, virq: int, vcpu: int) -> int:
        """A port for a virtual interrupt. Raises `XenError`."""
        if not 0 <= virq < VIRQS:
            raise XenError(Errno.EINVAL)
        if vcpu:
            raise XenError(Errno.ENOENT)
        if any(port.kind is PortKind.VIRQ and port.virq == virq for port in self.ports.values()):
            raise XenError(Errno.EEXIST)
        return self._allocate(Port(PortKind.VIRQ, virq=virq))

    def bind_ipi(self, vcpu: int) -> int:
        """A port by which the guest interrupts itself. Raises `XenError`."""
        if vcpu:
            raise XenError(Errno.ENOENT)
        return self._allocate(Port(PortKind.IPI))

    def bind_interdomain(self, remote: EventChannels, remote_port: int) -> int:
        """A port whose other end is a port that `remote` offers to this domain. Raises `XenError`."""
        other = remote.get(remote_port)
        if other.kind is not PortKind.UNBOUND or other.remote_domain != self.domain:
            raise XenError(Errno.EINVAL)
        number = self._allocate(Port(PortKind.INTERDOMAIN, remote.domain, remote_port, remote))
        other.kind, other.remote, other.remote_port = PortKind.INTERDOMAIN, self, number
        self.set_pending(number)
        return number

    def close(self, number: int) -> None:
        """A port is used no more; its other end is unbound again. Raises `XenError`."""
        port = self.get(number)
        if port.remote is not None:
            other = port.remote.ports.get(port.remote_port)
            if other is not None:
                other.kind, other.remote = PortKind.UNBOUND, None
        del self.ports[number]
        self._lowest = min(self._lowest, number)
        if self.fifo is not None:
            self.fifo.clear(number)
            return
        word, bit = self.shared_at + Shared.PENDING + (number >> 6) * 8, 1 << (number & 63)
        self.words[word >> 3] &= ~bit

    def reset(self) -> None:
        """Close all ports."""
        for number in sorted(self.ports):
            self.close(number)
        self.fifo, self.most_ports, self._lowest = None, PORTS, 1

    def begin_queues(self, control_at: int) -> None:
        """Events go to queues from now on, whose control block is at a machine address; what waits is taken along.
        Raises `XenError`."""
        if self.fifo is not None:
            raise XenError(Errno.EINVAL)
        waiting = [number for number in sorted(self.ports) if self.is_pending(number)]
        self.fifo, self.most_ports = Fifo(self.view, control_at, self._mark), MOST_PORTS
        for number in waiting:
            self.fifo.set_pending(number)

    def _mark(self) -> None:
        self.view[self.info_at + VcpuInfo.UPCALL_PENDING] = 1
        self.on_event()

    # -- events ---------------------------------------------------------------------------------

    def send(self, number: int) -> None:
        """The guest tells the other end of a port. Raises `XenError`."""
        port = self.get(number)
        if port.kind is PortKind.INTERDOMAIN:
            if port.backend is not None:
                port.backend()
            elif port.remote is not None:
                port.remote.set_pending(port.remote_port)
        elif port.kind is PortKind.IPI:
            self.set_pending(number)
        elif port.kind is not PortKind.UNBOUND:
            raise XenError(Errno.EINVAL)

    def raise_virq(self, virq: int) -> None:
        """A virtual interrupt comes."""
        for number, port in self.ports.items():
            if port.kind is PortKind.VIRQ and port.virq == virq:
                self.set_pending(number)
                return

    def set_pending(self, number: int) -> None:
        """Tell the guest of an event on one of its ports."""
        if self.fifo is not None:
            self.delivered += self.fifo.set_pending(number)
            return
        words = self.words
        at = self.shared_at + Shared.PENDING + (number >> 6) * 8 >> 3
        bit = 1 << (number & 63)
        if words[at] & bit:
            return
        words[at] |= bit
        self.delivered += 1
        if not words[at + (Shared.MASK - Shared.PENDING >> 3)] & bit:
            self._select(number)

    def unmask(self, number: int) -> None:
        """Take a port's mask away, and tell the guest of what waited behind it. Raises `XenError`."""
        self.get(number)
        if self.fifo is not None:
            self.fifo.unmask(number)
            return
        words = self.words
        at = self.shared_at + Shared.MASK + (number >> 6) * 8 >> 3
        bit = 1 << (number & 63)
        words[at] &= ~bit
        if words[at - (Shared.MASK - Shared.PENDING >> 3)] & bit:
            self._select(number)

    def _select(self, number: int) -> None:
        at = self.info_at + VcpuInfo.SELECTOR >> 3
        self.words[at] |= 1 << (number >> 6)
        self._mark()

    def is_masked(self, number: int) -> bool:
        """Whether the guest has a port masked."""
        if self.fifo is not None:
            return self.fifo.is_masked(number)
        at = self.shared_at + Shared.MASK + (number >> 6) * 8 >> 3
        return self.words[at] >> (number & 63) & 1 != 0

    def is_pending(self, number: int) -> bool:
        """Whether an event on a port waits."""
        if self.fifo is not None:
            return self.fifo.is_pending(number)
        at = self.shared_at + Shared.PENDING + (number >> 6) * 8 >> 3
        return self.words[at] >> (number & 63) & 1 != 0
