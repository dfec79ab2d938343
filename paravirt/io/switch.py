"""Ethernet without wires: a switch that learns where addresses are, and a host that answers ARP and ping.

Room: `paravirt/io`. Frames are handed on at once, in the order in which they came; nothing leaves the process. A frame
from a guest may have its transport checksum not filled in; that is said beside it, and kept so between guests.
"""

from __future__ import annotations

from typing import Final, Protocol

MOST_FRAME: Final = 65_549
"""Bytes of the longest frame: an IP packet behind an Ethernet header."""
LEAST_FRAME: Final = 14
_MOST_ADDRESSES: Final = 1024
_ARP, _IPV4, _ICMP = 0x0806, 0x0800, 1


class Port(Protocol):
    """Who is connected to a switch."""

    def receive(self, frame: bytes, blank: bool) -> None:
        """A frame arrives; `blank`: its transport checksum was not filled in."""
        ...


class Switch:
    """One segment of a network."""

    def __init__(self) -> None:
        self.ports: list[Port] = []
        self._known: dict[bytes, Port] = {}

    def connect(self, port: Port) -> None:
        """Plug in."""
        self.ports.append(port)

    def disconnect(self, port: Port) -> None:
        """Unplug; harmless where it was not plugged in."""
        self.ports = [other for other in self.ports if other is not port]
        self._known = {address: where for address, where in self._known.items() if where is not port}

    def send(self, sender: Port, frame: bytes, blank: bool = False) -> None:
        """Hand a frame on to whom it is for, or to everybody else."""
        if not LEAST_FRAME <= len(frame) <= MOST_FRAME:
            return
        to, source = frame[:6], frame[6:12]
        if not source[0] & 1 and (source in self._known or len(self._known) < _MOST_ADDRESSES):
            self._known[source] = sender
        known = None if to[0] & 1 else self._known.get(to)
        for port in list(self.ports) if known is None else [known]:
            if port is not sender:
                port.receive(frame, blank)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big") for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Responder:
    """A host at the other end: it answers who it is, and echoes."""

    def __init__(self, switch: Switch, address: bytes, station: bytes = b"\x02\0\0\0\0\x01") -> None:
        """`address`: four bytes of IPv4; `station`: its Ethernet address."""
        self._switch, self._address, self._station = switch, address, station
        self.answered = 0
        switch.connect(self)

    def receive(self, frame: bytes, blank: bool) -> None:
        """As `Port.receive`."""
        kind = int.from_bytes(frame[12:14], "big")
        body = frame[14:]
        reply = self._arp(body) if kind == _ARP else self._echo(body) if kind == _IPV4 else b""
        if reply:
            self.answered += 1
            self._switch.send(self, frame[6:12] + self._station + frame[12:14] + reply)

    def _arp(self, body: bytes) -> bytes:
        if len(body) < 28 or body[:8] != bytes.fromhex("0001080006040001") or body[24:28] != self._address:
            return b""
        return body[:6] + b"\0\2" + self._station + self._address + body[8:18]

    def _echo(self, body: bytes) -> bytes:
        size = (body[0] & 15) * 4 if body else 0
        total = int.from_bytes(body[2:4], "big")
        if body[:1] < b"\x45" or body[0] >> 4 != 4 or not 20 <= size <= total - 8 <= len(body) - 8:
            return b""
        if body[9] != _ICMP or body[16:20] != self._address or body[size] != 8 or checksum(body[:size]):
            return b""
        message = b"\0\0\0\0" + body[size + 4 : total]
        message = message[:2] + checksum(message).to_bytes(2, "big") + message[4:]
        head = body[:2] + body[2:8] + b"\x40\1\0\0" + self._address + body[12:16] + body[20:size]
        return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + message
