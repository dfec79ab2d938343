"""A guest's frames reach sockets of the host and come back: names, datagrams, and connections that lose nothing."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paravirt.io.packets import (
    ACK,
    FIN,
    RST,
    SYN,
    TCP,
    UDP,
    Packet,
    Segment,
    checksum,
    datagram,
    frame_of,
    packet_of,
    segment_bytes,
    segment_of,
)
from paravirt.io.switch import Switch
from paravirt.io.user import FIRST_GUEST, GATEWAY, NAMES, UserNetwork

STATION = b"\x02\0\0\0\0\x11"
MASK = 0xFFFF_FFFF


class Guest:
    """A guest's end of a switch: it keeps what comes."""

    takes_long = True

    def __init__(self) -> None:
        self.time = 0.0
        self.switch = Switch()
        self.network = UserNetwork(self.switch, lambda: self.time, lambda: "127.0.0.1")
        self.frames: list[tuple[bytes, bool, int]] = []
        self.switch.connect(self)

    def receive(self, frame: bytes, blank: bool, segment: int = 0) -> None:
        self.frames.append((frame, blank, segment))

    def send(self, to: bytes, protocol: int, body: bytes) -> None:
        self.switch.send(self, frame_of(b"\xff" * 6, STATION, FIRST_GUEST, to, protocol, body), True)

    def packets(self) -> list[Packet]:
        found = [packet_of(frame) for frame, _blank, _segment in self.frames]
        self.frames.clear()
        return [packet for packet in found if packet is not None]

    def wait(self, count: int = 1) -> list[Packet]:
        """So many packets that come from the host's sockets, at least."""
        got: list[Packet] = []
        for _ in range(2000):
            self.network.poll()
            got += self.packets()
            if len(got) >= count:
                return got
            self.sleep()
        raise AssertionError(f"{len(got)} packets came, and not {count}")

    def sleep(self) -> None:
        """Until the host's sockets have something, or a little."""
        import select

        select.select([self.network.descriptor], [], [], 0.005)


class Client:
    """A guest's TCP, as small as can be."""

    def __init__(self, guest: Guest, port: int, window: int = 0xFFFF, to: bytes = GATEWAY, mine: int = 4000) -> None:
        self.guest, self.port, self.window, self.to, self.mine = guest, port, window, to, mine
        self.sequence, self.wanted = 1000, 0
        self.data = bytearray()
        self.ended = False

    def put(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        segment = Segment(self.mine, self.port, self.sequence, self.wanted, flags, self.window, options, data)
        self.guest.send(self.to, TCP, segment_bytes(segment))
        self.sequence = self.sequence + len(data) + bool(flags & (SYN | FIN)) & MASK

    def open(self) -> Segment:
        self.put(SYN, options=b"\2\4\5\xb4\1\3\3\0")
        answer = self.segments(self.guest.wait())[0]
        self.wanted = answer.sequence + 1 & MASK
        if not answer.flags & RST:
            self.put(ACK)
        return answer

    def segments(self, packets: list[Packet]) -> list[Segment]:
        found = [segment_of(packet.body) for packet in packets if packet.protocol == TCP]
        return [segment for segment in found if segment is not None]

    def take(self, packets: list[Packet]) -> None:
        """Take data in order, and acknowledge."""
        for segment in self.segments(packets):
            if segment.sequence == self.wanted:
                self.data += segment.data
                self.wanted = self.wanted + len(segment.data) + bool(segment.flags & FIN) & MASK
                self.ended = self.ended or bool(segment.flags & FIN)
            if segment.data or segment.flags & FIN:
                self.put(ACK)


@pytest.fixture
def guest() -> Iterator[Guest]:
    guest = Guest()
    yield guest
    guest.network.close()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


def connected(guest: Guest, server: socket.socket, window: int = 0xFFFF) -> tuple[Client, socket.socket]:
    client = Client(guest, server.getsockname()[1], window)
    answer = client.open()
    assert answer.flags == SYN | ACK
    host, _ = server.accept()
    host.settimeout(10)
    return client, host


def test_bytes_go_both_ways_and_both_ends_close(guest: Guest, server: socket.socket) -> None:
    client, host = connected(guest, server)
    with host:
        client.put(ACK, b"question")
        assert host.recv(100) == b"question"
        sent = bytes(range(256)) * 2000
        host.sendall(sent)
        host.shutdown(socket.SHUT_WR)
        while not client.ended:
            client.take(guest.wait())
        assert bytes(client.data) == sent
        client.put(FIN | ACK)
        assert host.recv(100) == b""
    assert not guest.network.busy


def test_a_guest_without_room_is_sent_no_more_than_it_has(guest: Guest, server: socket.socket) -> None:
    client, host = connected(guest, server, window=1000)
    with host:
        host.sendall(bytes(5000))
        assert sum(len(segment.data) for segment in client.segments(guest.wait())) == 1000
        client.window = 0
        client.wanted += 1000
        client.put(ACK)
        assert not client.segments(guest.packets())
        client.window = 4000
        client.put(ACK)
        assert sum(len(segment.data) for segment in client.segments(guest.wait())) == 4000


def test_what_was_lost_is_sent_again(guest: Guest, server: socket.socket) -> None:
    client, host = connected(guest, server)
    with host:
        host.sendall(b"lost")
        guest.wait()  # and thrown away
        guest.time += 2
        client.take(guest.wait())
        assert bytes(client.data) == b"lost"
        host.sendall(b"again")
        guest.wait()
        for _ in range(3):
            client.put(ACK)
        client.take(guest.packets())
        assert bytes(client.data) == b"lostagain"


def test_what_comes_twice_or_too_early_is_taken_once_and_in_order(guest: Guest, server: socket.socket) -> None:
    client, host = connected(guest, server)
    with host:
        client.put(ACK, b"abc")
        client.sequence -= 3
        client.put(ACK, b"abcdef")
        client.sequence += 10
        client.put(ACK, b"early")
        client.sequence -= 15
        client.put(ACK, b"ghi")
        got = b""
        while len(got) < 9:
            got += host.recv(100)
        assert got == b"abcdefghi"


def test_where_nobody_listens_the_guest_is_refused(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert Client(guest, port).open().flags & RST
    for address in (NAMES, bytes((127, 0, 0, 1)), bytes((10, 0, 2, 99)), bytes((224, 0, 0, 1))):
        assert Client(guest, 80, to=address).open().flags & RST
    assert not guest.network.busy


def test_a_reset_reaches_the_host_and_segments_of_no_connection_are_reset(guest: Guest, server: socket.socket) -> None:
    client, host = connected(guest, server)
    with host:
        client.put(RST)
        assert host.recv(10) == b""
    client.put(ACK, b"who is there?")
    assert client.segments(guest.packets())[-1].flags & RST


def test_a_datagram_is_answered_from_where_it_was_sent(guest: Guest) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind(("127.0.0.1", 0))
        host.settimeout(10)
        port = host.getsockname()[1]
        guest.send(GATEWAY, UDP, datagram(5000, port, b"ask"))
        data, where = host.recvfrom(100)
        assert data == b"ask"
        host.sendto(b"answer", where)
        (packet,) = guest.wait()
        assert (packet.source, packet.to) == (GATEWAY, FIRST_GUEST)
        assert packet.body[:4] == struct.pack(">HH", port, 5000)
        assert packet.body[8:] == b"answer"
    assert guest.network.busy
    guest.time += 60
    assert not guest.network.busy


def test_the_gateway_is_found_and_answers_ping(guest: Guest) -> None:
    ask = bytes.fromhex("0001080006040001") + STATION + FIRST_GUEST + bytes(6) + GATEWAY
    guest.switch.send(guest, b"\xff" * 6 + STATION + b"\x08\x06" + ask)
    assert guest.frames.pop()[0][28:32] == GATEWAY
    message = b"\x08\0\0\0\0\1\0\1payload!"
    message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
    guest.send(GATEWAY, 1, message)
    (packet,) = guest.packets()
    assert packet.body[:1] == b"\0"
    assert packet.body[4:] == message[4:]
    assert not checksum(packet.body)


def dhcp(kind: int, more: bytes = b"", station: bytes = STATION) -> bytes:
    head = struct.pack(">BBBBIHH16x", 1, 1, 6, 0, 0x1234, 0, 0) + station.ljust(16, b"\0") + bytes(192)
    return head + b"\x63\x82\x53\x63" + bytes((53, 1, kind)) + more + b"\xff"


def test_a_guest_that_asks_for_an_address_gets_one_and_keeps_it(guest: Guest) -> None:
    for kind, answer, more in ((1, 2, b""), (3, 5, b"\x32\4" + FIRST_GUEST), (3, 6, b"\x32\4" + GATEWAY)):
        guest.send(b"\xff" * 4, UDP, datagram(68, 67, dhcp(kind, more)))
        (packet,) = guest.packets()
        reply = packet.body[8:]
        assert reply[240:243] == bytes((53, 1, answer))
        assert reply[16:20] == (FIRST_GUEST if answer != 6 else bytes(4))
    guest.send(b"\xff" * 4, UDP, datagram(68, 67, dhcp(1, station=b"\x02\0\0\0\0\x12")))
    assert guest.packets()[0].body[24:28] == bytes((10, 0, 2, 16))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 63),
            st.integers(0, 1 << 21),
            st.integers(0, 1 << 21),
            st.integers(0, 0xFFFF),
            st.binary(max_size=40),
        ),
        max_size=12,
    )
)
def test_no_segments_upset_a_connection(segments: list[tuple[int, int, int, int, bytes]]) -> None:
    guest = Guest()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client, host = connected(guest, server)
        with host:
            host.sendall(b"some data")
            for flags, sequence, acknowledged, window, data in segments:
                segment = Segment(
                    4000, client.port, 1001 + sequence, client.wanted + acknowledged, flags, window, b"", data
                )
                guest.send(GATEWAY, TCP, segment_bytes(segment))
                guest.network.poll()
            guest.time += 5
            guest.network.poll()
    guest.network.close()
    assert not guest.network.busy


@given(st.binary(max_size=400))
def test_no_frames_upset_the_network(data: bytes) -> None:
    guest = Guest()
    for head in (b"\x08\x06", b"\x08\0", b"\x86\xdd"):
        guest.switch.send(guest, b"\xff" * 6 + STATION + head + data)
    guest.send(b"\xff" * 4, UDP, datagram(68, 67, data))
    guest.send(b"\xff" * 4, UDP, datagram(68, 67, dhcp(1)[:240] + data))
    guest.send(GATEWAY, 1, b"\x08" + data)
    guest.network.close()
