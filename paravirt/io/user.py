"""A network in user mode: guests reach the host, and what the host reaches, through its ordinary sockets.

Room: `paravirt/io`. The gateway 10.0.2.2 is the host itself (its loopback), 10.0.2.3 answers questions for names as
the host's own server of names does; guests have addresses from 10.0.2.15 on, by DHCP or by hand. ARP, ping of the
gateway, UDP and TCP (`tcp.Flow`); only guests open connections, and it needs neither a device nor a privilege.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable
from typing import Final

from paravirt.io.dhcp import CLIENT_PORT, SERVER_PORT, Leases
from paravirt.io.packets import (
    ACK,
    ARP,
    FIN,
    ICMP,
    RST,
    SYN,
    TCP,
    UDP,
    Packet,
    Segment,
    checksum,
    datagram,
    frame_of,
    half_checksum,
    packet_of,
    segment_bytes,
    segment_of,
    with_checksum,
)
from paravirt.io.switch import Switch
from paravirt.io.tcp import Flow

NETWORK: Final = bytes((10, 0, 2))
GATEWAY, NAMES, FIRST_GUEST = NETWORK + b"\2", NETWORK + b"\3", NETWORK + b"\x0f"
STATION: Final = b"\x52\x55" + GATEWAY
_LOOPBACK: Final = "127.0.0.1"
_NAME_PORT: Final = 53
_MOST_FLOWS, _MOST_DATAGRAM_SOCKETS, _MOST_DATAGRAM = 512, 256, 1472
_QUIET: Final = 10.0
"""Seconds for which an answer to a datagram may be waited for."""

Key = tuple[bytes, int, bytes, int]
"""Address and port of the guest, and of the other end."""


class _Asked:
    """A socket by which a guest's datagrams go, and answers come back."""

    def __init__(self, address: tuple[str, int], station: bytes, key: Key) -> None:
        self.station, self.key = station, key
        self.last = 0.0
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.connect(address)


class UserNetwork:
    """The host's end of one switch."""

    takes_long = True

    def __init__(
        self, switch: Switch, now: Callable[[], float] = time.monotonic, names: Callable[[], str] | None = None
    ) -> None:
        """`names` says where the host's own server of names is; `now` counts seconds."""
        self._switch, self._now = switch, now
        self._names = names or name_server
        self._leases = Leases(GATEWAY, NAMES, FIRST_GUEST, 200)
        self._flows: dict[Key, Flow] = {}
        self._asked: dict[Key, _Asked] = {}
        self._selector = selectors.DefaultSelector()
        self._watched: dict[Key, int] = {}
        self.connections = self.datagrams = self.refused = 0
        """So many connections were made, datagrams sent out, and requests not granted."""
        switch.connect(self)

    # -- `Outside` ------------------------------------------------------------------------------

    @property
    def descriptor(self) -> int:
        """As `Outside.descriptor`."""
        return self._selector.fileno() if isinstance(self._selector, selectors.EpollSelector) else -1

    @property
    def busy(self) -> bool:
        """As `Outside.busy`."""
        now = self._now()
        return bool(self._flows) or any(now - asked.last < _QUIET for asked in self._asked.values())

    def poll(self) -> None:
        """As `Outside.poll`."""
        if not self._flows and not self._asked:
            return
        now = self._now()
        for found, events in self._selector.select(0):
            readable, writable = bool(events & selectors.EVENT_READ), bool(events & selectors.EVENT_WRITE)
            if isinstance(found.data, _Asked):
                self._answered(found.data, now)
            elif (flow := self._flows.get(found.data)) is not None:
                flow.ready(readable, writable, now)
                self._settle(found.data, flow)
        for key, flow in list(self._flows.items()):
            flow.look(now)
            self._settle(key, flow)

    def close(self) -> None:
        """As `Outside.close`."""
        for key, flow in list(self._flows.items()):
            flow.close()
            self._settle(key, flow)
        for asked in list(self._asked.values()):
            self._drop(asked)
        self._selector.close()
        self._switch.disconnect(self)

    # -- `Port` ---------------------------------------------------------------------------------

    def receive(self, frame: bytes, blank: bool, segment: int = 0) -> None:
        """As `Port.receive`. Checksums of what comes from within the process are not looked at."""
        if int.from_bytes(frame[12:14], "big") == ARP:
            self._resolve(frame)
            return
        packet = packet_of(frame)
        if packet is None:
            return
        if packet.protocol == TCP:
            self._take_segment(packet)
        elif packet.protocol == UDP:
            self._take_datagram(packet)
        elif packet.protocol == ICMP and packet.to == GATEWAY and packet.body[:1] == b"\x08" and len(packet.body) >= 8:
            message = b"\0\0\0\0" + packet.body[4:]
            message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
            self._send(packet.station, packet.to, packet.source, ICMP, message)

    def _resolve(self, frame: bytes) -> None:
        body = frame[14:]
        if len(body) < 28 or body[:8] != bytes.fromhex("0001080006040001") or body[24:28] not in (GATEWAY, NAMES):
            return
        reply = body[:6] + b"\0\2" + STATION + body[24:28] + body[8:18]
        self._switch.send(self, body[8:14] + STATION + frame[12:14] + reply)

    def _send(self, station: bytes, source: bytes, target: bytes, protocol: int, body: bytes) -> None:
        self._switch.send(self, frame_of(station, STATION, source, target, protocol, body))

    def _outside(self, address: bytes, port: int, protocol: int) -> tuple[str, int] | None:
        """Where the host finds what a guest means by an address; None where it is not to be had."""
        if address == GATEWAY:
            return _LOOPBACK, port
        if address == NAMES:
            return (self._names(), port) if port == _NAME_PORT else None
        if address[:3] == NETWORK or address[0] in (0, 127) or address[0] >= 224 or not port:
            return None
        return socket.inet_ntoa(address), port

    # -- datagrams ------------------------------------------------------------------------------

    def _take_datagram(self, packet: Packet) -> None:
        if len(packet.body) < 8:
            return
        source, target, size = (int.from_bytes(packet.body[at : at + 2], "big") for at in (0, 2, 4))
        if not 8 <= size <= len(packet.body):
            return
        data = packet.body[8:size]
        if target == SERVER_PORT:
            reply = self._leases.answer(data)
            if reply:
                body = with_checksum(GATEWAY, b"\xff" * 4, UDP, datagram(SERVER_PORT, CLIENT_PORT, reply))
                self._send(packet.station, GATEWAY, b"\xff" * 4, UDP, body)
            return
        key = packet.source, source, packet.to, target
        asked = self._asked.get(key)
        if asked is None:
            asked = self._ask(key, packet)
            if asked is None:
                self.refused += 1
                return
        asked.last = self._now()
        self.datagrams += 1
        try:
            asked.socket.send(data)
        except OSError:
            self.refused += 1

    def _ask(self, key: Key, packet: Packet) -> _Asked | None:
        address = self._outside(packet.to, key[3], UDP)
        if address is None:
            return None
        if len(self._asked) >= _MOST_DATAGRAM_SOCKETS:
            self._drop(min(self._asked.values(), key=lambda asked: asked.last))
        try:
            asked = _Asked(address, packet.station, key)
        except OSError:
            return None
        self._asked[key] = asked
        self._selector.register(asked.socket, selectors.EVENT_READ, asked)
        return asked

    def _drop(self, asked: _Asked) -> None:
        self._selector.unregister(asked.socket)
        asked.socket.close()
        del self._asked[asked.key]

    def _answered(self, asked: _Asked, now: float) -> None:
        try:
            data = asked.socket.recv(65_535)
        except OSError:
            return
        asked.last = now
        guest, port, other, other_port = asked.key
        if len(data) > _MOST_DATAGRAM:
            self.refused += 1  # it would have to be sent in fragments
            return
        self._send(asked.station, other, guest, UDP, with_checksum(other, guest, UDP, datagram(other_port, port, data)))

    # -- connections ----------------------------------------------------------------------------

    def _take_segment(self, packet: Packet) -> None:
        segment = segment_of(packet.body)
        if segment is None:
            return
        key = packet.source, segment.source_port, packet.to, segment.target_port
        flow = self._flows.get(key)
        if flow is None:
            if segment.flags & (SYN | ACK | RST) == SYN:
                self._connect(key, packet, segment)
            elif not segment.flags & RST:
                self._reset(key, packet, segment)
            return
        flow.take(segment, self._now())
        self._settle(key, flow)

    def _connect(self, key: Key, packet: Packet, segment: Segment) -> None:
        address = self._outside(packet.to, segment.target_port, TCP)
        if address is None or len(self._flows) == _MOST_FLOWS:
            self._reset(key, packet, segment)
            return
        station, source, target = packet.station, packet.to, packet.source

        def send(answer: Segment, size: int) -> None:
            body = half_checksum(source, target, TCP, segment_bytes(answer))
            frame = frame_of(station, STATION, source, target, TCP, body)
            self._switch.send(self, frame, True, size)

        self.connections += 1
        try:
            flow = Flow(segment, address, send, self.connections * 64_000)
        except OSError:
            self._reset(key, packet, segment)
            return
        self._flows[key] = flow
        self._settle(key, flow)

    def _reset(self, key: Key, packet: Packet, segment: Segment) -> None:
        """There is no such connection."""
        self.refused += 1
        size = len(segment.data) + bool(segment.flags & SYN) + bool(segment.flags & FIN)
        mine = segment.acknowledged if segment.flags & ACK else 0
        answer = Segment(key[3], key[1], mine, segment.sequence + size, RST | ACK, 0, b"", b"")
        body = with_checksum(packet.to, packet.source, TCP, segment_bytes(answer))
        self._send(packet.station, packet.to, packet.source, TCP, body)

    def _settle(self, key: Key, flow: Flow) -> None:
        """Wait for what a connection waits for."""
        before = self._watched.get(key, 0)
        wanted = 0
        if not flow.done:
            wanted = selectors.EVENT_READ * flow.wants_read | selectors.EVENT_WRITE * flow.wants_write
        if flow.done:
            self._flows.pop(key, None)
        if wanted == before:
            return
        if not before:
            self._selector.register(flow.socket, wanted, key)
        elif not wanted:
            self._selector.unregister(flow.socket)  # also one that is closed already
        else:
            self._selector.modify(flow.socket, wanted, key)
        if wanted:
            self._watched[key] = wanted
        else:
            self._watched.pop(key, None)


def name_server() -> str:
    """Where the host itself asks for names; its own loopback where it does not say."""
    try:
        with open("/etc/resolv.conf", encoding="ascii", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver" and words[1].count(".") == 3:
                    return words[1]
    except OSError:
        pass
    return _LOOPBACK


__all__ = ["FIRST_GUEST", "GATEWAY", "NAMES", "UserNetwork"]
