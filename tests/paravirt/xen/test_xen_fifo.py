"""Event queues: order, priorities, masks, ports without a word yet, and a guest that writes nonsense into its words."""

from __future__ import annotations

import random
import struct

import pytest

from emulator.machine import Machine
from paravirt.xen.audit import violations
from paravirt.xen.board import XEN_PV
from paravirt.xen.builder import Piece, XenKernel
from paravirt.xen.events import EventChannels
from paravirt.xen.fifo import LINKED, MASKED, PENDING, Fifo
from paravirt.xen.host import Host
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.public import Errno, VcpuInfo

BASE = 0xFFFF_FFFF_8000_0000
ARGUMENT, CONTROL, ARRAY = BASE + 0x101000, BASE + 0x102000, BASE + 0x103000
EVENT = 32


class Guest:
    """A guest's end of queues in pages 1 (control) and 2 (words) of a small memory; page 0 is its shared page."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(3 * 4096))
        self.words = self.view.cast("I")
        self.events = EventChannels(self.view, 0, 1)
        self.events.begin_queues(4096)
        assert self.events.fifo is not None
        self.fifo: Fifo = self.events.fifo
        self.fifo.expand(2)

    def take(self) -> list[int]:
        """Ports in the order in which the guest takes them: by queue, each to its end."""
        found = []
        for queue in range(16):
            if not self.words[1024] >> queue & 1:
                continue
            self.words[1024] &= ~(1 << queue)
            port = self.words[1024 + 2 + queue]
            while port:
                word = self.words[2048 + port]
                self.words[2048 + port] = word & ~(0x1FFFF | LINKED | PENDING)
                found.append(port)
                port = word & 0x1FFFF
        return found


def test_events_are_taken_in_the_order_in_which_they_came() -> None:
    guest = Guest()
    ports = [guest.events.bind_ipi(0) for _ in range(5)]
    for port in (ports[3], ports[0], ports[4], ports[0]):
        guest.events.send(port)
    assert guest.view[VcpuInfo.UPCALL_PENDING] == 1
    assert guest.take() == [ports[3], ports[0], ports[4]]
    guest.events.send(ports[4])
    assert guest.take() == [ports[4]]
    assert guest.events.delivered == 4


def test_a_higher_priority_goes_first_and_a_port_may_change_its_queue() -> None:
    guest = Guest()
    one, two = guest.events.bind_ipi(0), guest.events.bind_ipi(0)
    guest.fifo.priorities[two] = 0
    guest.events.send(one)
    guest.events.send(two)
    assert guest.take() == [two, one]
    guest.fifo.priorities[one] = 0
    guest.events.send(one)
    guest.fifo.priorities[two] = 7
    guest.events.send(two)
    assert guest.take() == [one, two]


def test_a_masked_event_waits_and_is_queued_when_it_is_unmasked() -> None:
    guest = Guest()
    port = guest.events.bind_ipi(0)
    guest.words[2048 + port] = MASKED
    guest.events.send(port)
    assert guest.take() == []
    assert guest.events.is_pending(port)
    guest.events.unmask(port)
    assert guest.take() == [port]
    guest.events.send(port)
    guest.events.close(port)
    assert not guest.words[2048 + port] & PENDING


def test_a_port_without_a_word_gets_its_event_with_the_word() -> None:
    view = memoryview(bytearray(3 * 4096))
    fifo = Fifo(view, 4096, lambda: None)
    assert fifo.set_pending(5)
    assert not fifo.set_pending(5)
    assert fifo.is_pending(5)
    fifo.expand(2)
    assert view.cast("I")[2048 + 5] == PENDING | LINKED


def test_nonsense_in_the_words_harms_nobody_else() -> None:
    guest = Guest()
    source = random.Random(1)
    ports = [guest.events.bind_ipi(0) for _ in range(20)]
    before = bytes(guest.view[:4096])
    for _ in range(2000):
        guest.words[source.randrange(1024, 3072)] = source.getrandbits(32)
        guest.events.send(source.choice(ports))
        guest.events.unmask(source.choice(ports))
    after = bytearray(guest.view[:4096])
    after[VcpuInfo.UPCALL_PENDING] = before[VcpuInfo.UPCALL_PENDING]
    assert bytes(after) == before


def test_a_guest_gives_pages_for_its_queues_which_stay_data() -> None:
    pieces = (Piece(0x100000, memoryview(b"\xeb\xfe"), 0x1000, True), Piece(0x101000, memoryview(b""), 0x8000, False))
    machine = Machine(Host.machine_size(4 << 20), lambda _data: None, platform=XEN_PV)
    guest = XenHypervisor(machine, 1024)
    guest.load(XenKernel("fifo", pieces, BASE + 0x100000, virtual_base=BASE))
    access, domain = guest.access, guest.domain

    def ask(operation: int, request: bytes) -> int | None:
        access.write(ARGUMENT, request)
        return guest.call(EVENT, operation, ARGUMENT, 0, 0, 0)

    control, array = (access.translate(address) >> 12 for address in (CONTROL, ARRAY))
    assert ask(12, struct.pack("<Q", array)) == -Errno.ENOSYS
    assert ask(13, struct.pack("<II", 1, 1)) == -Errno.ENOSYS
    for frame, offset, vcpu, errno in (
        (control, 4, 0, Errno.EINVAL),
        (control, 4096 - 64, 0, Errno.EINVAL),
        (control, 0, 1, Errno.ENOENT),
        (guest.vcpu.kernel_root, 0, 0, Errno.EINVAL),
        (1 << 40, 0, 0, Errno.EINVAL),
    ):
        assert ask(11, struct.pack("<QIIQ", frame, offset, vcpu, 0)) == -errno
    assert ask(11, struct.pack("<QIIQ", control, 64, 0, 0)) == 0
    assert access.read_word(ARGUMENT + 16, 1) == 17
    assert ask(11, struct.pack("<QIIQ", control, 64, 0, 0)) == -Errno.EINVAL
    assert ask(12, struct.pack("<Q", guest.vcpu.kernel_root)) == -Errno.EINVAL
    assert ask(12, struct.pack("<Q", array)) == 0
    assert ask(13, struct.pack("<II", 1, 16)) == -Errno.EINVAL
    assert ask(13, struct.pack("<II", 99, 1)) == -Errno.EINVAL
    assert ask(13, struct.pack("<II", 1, 3)) == 0
    assert guest.call(26, 0, array, 0, 0, 0) is not None
    domain.events.set_pending(1)
    assert access.read_word(ARRAY + 4, 4) == PENDING | LINKED
    assert access.read_word(CONTROL + 64 + 8 + 3 * 4, 4) == 1
    assert violations(domain) == []
    assert ask(10, struct.pack("<H", 0x7FF0)) == 0
    assert domain.events.fifo is None
    assert violations(domain) == []
    machine.close()


@pytest.mark.parametrize("port", [4096, 100_000])
def test_there_are_more_ports_than_the_bitmaps_have(port: int) -> None:
    guest = Guest()
    guest.events._lowest = port
    assert guest.events.bind_ipi(0) == port
    guest.events.send(port)
    assert guest.events.is_pending(port)
