"""The network back end: frames between two guests, to a host that answers, and front ends that break the protocol."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from emulator.machine import Machine
from paravirt.io.packets import (
    TCP,
    Segment,
    checksum,
    completed,
    cut,
    frame_of,
    half_checksum,
    segment_bytes,
)
from paravirt.io.switch import Responder, Switch
from paravirt.xen.audit import violations
from paravirt.xen.backend import State
from paravirt.xen.board import XEN_PV
from paravirt.xen.builder import Piece, XenKernel
from paravirt.xen.ending import end
from paravirt.xen.host import Host
from paravirt.xen.hypervisor import XenHypervisor
from paravirt.xen.network import NetworkBackEnd

BASE = 0xFFFF_FFFF_8000_0000
PIECES = (Piece(0x100000, memoryview(b"\xeb\xfe"), 0x1000, True), Piece(0x101000, memoryview(b""), 0x40000, False))
KERNEL = XenKernel("network", PIECES, BASE + 0x100000, virtual_base=BASE)
TX, RX, DATA, ROOM = BASE + 0x102000, BASE + 0x103000, BASE + 0x110000, BASE + 0x120000
MORE, EXTRA = 4, 8


class Front:
    """A front end whose guest does not run."""

    def __init__(self, host: Host, machine: Machine, number: int, switch: Switch) -> None:
        self.guest = XenHypervisor(machine, 1024, number=number, host=host)
        self.guest.load(KERNEL)
        self.domain = self.guest.domain
        self.station = bytes((2, 0, 0, 0, 1, number))
        self.back = NetworkBackEnd(self.domain, switch, self.station)
        grants = self.domain.grants
        for reference, address in ((8, TX), (9, RX)):
            grants.permit(reference, 0, self.frame(address))
        for page in range(4):
            grants.permit(10 + page, 0, self.frame(DATA + page * 4096), read_only=True)
            grants.permit(20 + page, 0, self.frame(ROOM + page * 4096))
        self.tx, self.rx = (self.domain.page(self.frame(address)) for address in (TX, RX))
        self.sent = self.offered = self.taken = 0
        self.port = self.domain.events.allocate_unbound(0)
        self.connect()

    def connect(self) -> None:
        for page in (self.tx, self.rx):
            page[:] = bytes(4096)
        self.sent = self.offered = self.taken = 0
        about = {"tx-ring-ref": "8", "rx-ring-ref": "9", "event-channel": str(self.port), "request-rx-copy": "1"}
        for name, value in {**about, "state": "4"}.items():
            self.say(name, value)

    def say(self, name: str, value: str) -> None:
        self.domain.host.store.put(f"{self.back.front}/{name}", value)

    def state(self) -> State:
        return self.back.state

    def frame(self, address: int) -> int:
        return self.guest.access.translate(address) >> 12

    def room(self, *pages: int) -> None:
        """Offer pages to receive into."""
        for page in pages:
            struct.pack_into("<HxxI", self.rx, 64 + self.offered % 256 * 8, page, 20 + page)
            self.offered += 1
        self.rx[:4] = self.offered.to_bytes(4, "little")
        self.domain.events.send(self.port)

    def slots(self, *slots: tuple[int, int, int, int]) -> list[int]:
        """Send slots (grant, offset, flags, size); the statuses of the answers."""
        first = self.sent
        for slot in slots:
            grant, offset, flags, size = slot
            struct.pack_into("<IHHHH", self.tx, 64 + self.sent % 256 * 12, grant, offset, flags, self.sent, size)
            self.sent += 1
        self.tx[:4] = self.sent.to_bytes(4, "little")
        self.domain.events.send(self.port)
        answered = int.from_bytes(self.tx[8:12], "little")
        return [struct.unpack_from("<h", self.tx, 64 + at % 256 * 12 + 2)[0] for at in range(first, answered)]

    def send(self, frame: bytes, flags: int = 0) -> list[int]:
        self.guest.access.write(DATA, frame)
        pieces = range(0, len(frame), 4096)
        sizes = [len(frame), *(min(4096, len(frame) - at) for at in pieces[1:])]
        slots = [(10 + number, 0, MORE, size) for number, size in enumerate(sizes)]
        slots[0] = (slots[0][0], 0, slots[0][2] | flags, slots[0][3])
        slots[-1] = (slots[-1][0], 0, slots[-1][2] & ~MORE, slots[-1][3])
        return self.slots(*slots)

    def received(self) -> bytes:
        """What came, in the pages in their order."""
        produced, data = int.from_bytes(self.rx[8:12], "little"), b""
        for number in range(self.taken, produced):
            page, offset, _flags, size = struct.unpack_from("<HHHh", self.rx, 64 + number % 256 * 8)
            data += self.guest.access.read(ROOM + page * 4096 + offset, max(size, 0))
        self.taken = produced
        return data


class Net:
    """Two guests on one switch."""

    def __init__(self) -> None:
        size = Host.machine_size(8 << 20) + (64 << 12)
        first = Machine(size, lambda _data: None, platform=XEN_PV)
        second = Machine(size, lambda _data: None, platform=XEN_PV, memory=first.memory)
        host, self.switch = Host(first.memory), Switch()
        self.machines = (first, second)
        self.one, self.two = Front(host, first, 1, self.switch), Front(host, second, 2, self.switch)


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    yield made
    for front in (made.one, made.two):
        assert violations(front.domain) == []
    for machine in made.machines:
        machine.close()


def test_a_frame_arrives_at_the_other_guest_whole(net: Net) -> None:
    net.two.room(0, 1, 2)
    frame = net.two.station + net.one.station + b"\x88\xb5" + bytes(number * 7 & 255 for number in range(9000))
    assert net.one.send(frame) == [0, 0, 0]
    assert net.two.received() == frame
    assert net.one.received() == b""


def test_frames_wait_for_room_and_are_dropped_beyond_a_limit(net: Net) -> None:
    frame = net.two.station + net.one.station + b"\x88\xb5" + b"x" * 50
    for _ in range(300):
        net.one.send(frame)
    assert net.two.back.dropped == 44
    net.two.room(0, 1)
    assert net.two.received() == frame * 2
    assert net.two.back.received == 2


def test_what_cannot_be_sent_is_answered_with_an_error(net: Net) -> None:
    assert net.one.slots((400, 0, 0, 60)) == [-1]
    assert net.one.slots((10, 4090, 0, 60)) == [-1]
    assert net.one.slots((10, 0, 0, 0)) == [-1]
    assert net.one.slots((10, 0, MORE, 60), (11, 0, 0, 60)) == [-1, -1]  # the first one's size is that of all
    assert net.one.back.sent == 0
    assert net.one.state() is State.CONNECTED


@pytest.mark.parametrize("slots", [[(10, 0, EXTRA, 60), (0, 0, 0, 0)], [(10, 0, MORE, 60)], [(10, 0, MORE, 60)] * 30])
def test_a_front_end_that_breaks_the_protocol_is_disconnected_and_may_connect_anew(
    net: Net, slots: list[tuple[int, int, int, int]]
) -> None:
    net.one.slots(*slots)
    assert net.one.state() is State.CLOSED
    assert net.one.back.broken
    assert not net.one.domain.grants.held
    net.one.say("state", "1")
    net.one.connect()
    assert net.one.state() is State.CONNECTED
    net.two.room(0)
    net.one.send(net.two.station + net.one.station + b"\x88\xb5again")
    assert net.two.received().endswith(b"again")


def test_a_page_that_may_not_be_written_is_not(net: Net) -> None:
    net.two.domain.grants.permit(20, 0, net.two.guest.vcpu.kernel_root)
    net.two.room(0)
    net.one.send(net.two.station + net.one.station + b"\x88\xb5" + b"x" * 50)
    assert net.two.received() == b""
    assert net.two.back.refused == 1


def test_a_guest_that_is_gone_is_left_and_others_go_on(net: Net) -> None:
    responder = Responder(net.switch, bytes((10, 0, 0, 1)))
    end(net.one.domain)
    assert net.one.state() is State.CLOSED
    assert not net.one.domain.grants.held
    assert not net.one.domain.events.ports
    frame = net.one.station + net.two.station + b"\x88\xb5" + b"x" * 50
    assert net.two.send(frame) == [0]
    ask = bytes.fromhex("0001080006040001") + net.two.station + bytes(10) + bytes((10, 0, 0, 1))
    net.two.send(b"\xff" * 6 + net.two.station + b"\x08\x06" + ask)
    assert responder.answered == 1


def test_a_host_answers_who_it_is_and_echoes(net: Net) -> None:
    responder = Responder(net.switch, bytes((10, 0, 0, 1)))
    net.one.room(0, 1, 2, 3)
    mine = net.one.station
    ask = bytes.fromhex("0001080006040001") + mine + bytes((10, 0, 0, 2)) + bytes(6) + bytes((10, 0, 0, 1))
    net.one.send(b"\xff" * 6 + mine + b"\x08\x06" + ask)
    reply = net.one.received()
    station = reply[6:12]
    assert reply[28:32] == bytes((10, 0, 0, 1))
    message = b"\x08\0\0\0\0\1\0\1payload!"
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(message), 1, 0, 64, 1, 0)
    head += bytes((10, 0, 0, 2)) + bytes((10, 0, 0, 1))
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    net.one.send(station + mine + b"\x08\0" + head + message)
    echoed = net.one.received()[14:]
    assert echoed[12:20] == bytes((10, 0, 0, 1)) + bytes((10, 0, 0, 2))
    assert echoed[20:21] == b"\0"
    assert echoed[24:] == message[4:]
    assert not checksum(echoed[:20])
    assert not checksum(echoed[20:])
    assert responder.answered == 2
    for size in range(1, 42):
        net.switch.send(net.one.back, (station + mine + b"\x08\0" + head + message)[:size])
    assert responder.answered == 2


HERE, THERE = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))


def long_frame(net: Net, size: int) -> bytes:
    """A TCP frame from the first guest to the second, its checksum not filled in."""
    segment = segment_bytes(Segment(80, 90, 1, 2, 16, 500, b"", bytes(number % 251 for number in range(size))))
    body = half_checksum(HERE, THERE, TCP, segment)
    return frame_of(net.two.station, net.one.station, HERE, THERE, TCP, body)


def send_long(net: Net, frame: bytes, segment: int) -> list[int]:
    net.one.guest.access.write(DATA, frame)
    extra = (1 | segment << 16, 1, 0, 0)
    return net.one.slots((10, 0, MORE | EXTRA | 1, len(frame)), extra, (11, 0, 0, len(frame) - 4096))


def offers(front: Front, **values: str) -> None:
    """Connect anew, with more in the store."""
    front.say("state", "6")
    front.say("state", "1")
    for name, value in values.items():
        front.say(name.replace("_", "-"), value)
    front.connect()


def test_a_frame_that_is_still_to_be_cut_stays_whole_between_guests_that_take_it(net: Net) -> None:
    offers(net.two, feature_gso_tcpv4="1", feature_sg="1")
    net.two.room(0, 3, 1, 2)
    frame = long_frame(net, 5000)
    assert send_long(net, frame, 1000) == [0, 1, 0]
    first, extra, second = (struct.unpack_from("<HHHh", net.two.rx, 64 + at * 8) for at in range(3))
    assert first[2] & (EXTRA | MORE | 3) == EXTRA | MORE | 3  # and its checksum is still blank
    assert struct.unpack_from("<BBHB", net.two.rx, 72) == (1, 0, 1000, 1)
    assert (first[3], second[3]) == (4096, len(frame) - 4096)
    assert extra != second
    data = net.two.guest.access.read(ROOM, 4096) + net.two.guest.access.read(ROOM + 4096, len(frame) - 4096)
    assert data == frame
    assert net.one.back.long == net.two.back.long == 1


def test_it_is_cut_and_has_its_checksums_for_a_guest_that_does_not(net: Net) -> None:
    offers(net.two, feature_no_csum_offload="1")
    net.two.room(0, 1, 2)
    frame = long_frame(net, 4500)
    assert send_long(net, frame, 1500) == [0, 1, 0]
    pieces = []
    for at in range(3):
        page, _offset, flags, size = struct.unpack_from("<HHHh", net.two.rx, 64 + at * 8)
        assert not flags
        pieces.append(net.two.guest.access.read(ROOM + page * 4096, size))
    assert pieces == list(cut(frame, 1500))
    short = long_frame(net, 10)
    net.two.room(3)
    net.one.send(short, 1)
    page, _offset, flags, size = struct.unpack_from("<HHHh", net.two.rx, 64 + 3 * 8)
    assert not flags
    assert net.two.guest.access.read(ROOM + page * 4096, size) == completed(short) != short


@pytest.mark.parametrize(
    "extra", [(2 | 1000 << 16, 1), (1 | 1000 << 16, 2), (1 | 0x101 << 8, 1), (1, 1), (1 | 63 << 16, 1)]
)
def test_extra_information_that_was_not_offered_ends_the_connection(net: Net, extra: tuple[int, int]) -> None:
    net.one.guest.access.write(DATA, long_frame(net, 100))
    net.one.slots((10, 0, EXTRA, 154), (*extra, 0, 0))
    assert net.one.state() is State.CLOSED
    assert "extra information" in net.one.back.broken


def test_more_queues_than_are_offered_are_refused(net: Net) -> None:
    offers(net.one, multi_queue_num_queues="2")
    assert net.one.state() is State.CLOSED
    assert net.one.back.broken == "it asks for 2 queues, and one is offered"
