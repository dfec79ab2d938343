"""Ethernet without wires: a switch that learns where addresses are, and a host that answers ARP and ping.

Room: `paravirt/io`. Frames are handed on at once, in the order in which they came. A frame from a guest may have its
transport checksum not filled in, and may be longer than a cable takes, to be cut; both are said beside it, and kept so
for whoever takes that.
"""

from __future__ import annotations

from typing import Final, Protocol

from paravirt.io.packets import checksum, cut

MOST_FRAME: Final = 65_549
"""Bytes of the longest frame: an IP packet behind an Ethernet header."""
LEAST_FRAME: Final = 14
_MOST_ADDRESSES: Final = 1024
_ARP, _IPV4, _ICMP = 0x0806, 0x0800, 1


class Port(Protocol):
    """Who is connected to a switch."""

    @property
    def takes_long(self) -> bool:
        """It takes TCP frames that are still to be cut."""
        ...

    def receive(self, frame: bytes, blank: bool, segment: int = 0) -> None:
        """A frame arrives; `blank`: its transport checksum was not filled in, but with the sum of the addresses.

        `segment`: where it is longer than a cable takes, the bytes of data to cut it to; else 0.
        """
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

    def send(self, sender: Port, frame: bytes, blank: bool = False, segment: int = 0) -> None:
        """Hand a frame on to whom it is for, or to everybody else; it is cut for who does not take it whole."""
        if not LEAST_FRAME <= len(frame) <= MOST_FRAME:
            return
        to, source = frame[:6], frame[6:12]
        if not source[0] & 1 and (source in self._known or len(self._known) < _MOST_ADDRESSES):
            self._known[source] = sender
        known = None if to[0] & 1 else self._known.get(to)
        for port in list(self.ports) if known is None else [known]:
            if port is sender:
                continue
            if not segment or port.takes_long:
                port.receive(frame, blank, segment)
                continue
            for piece in cut(frame, segment):
                port.receive(piece, False)


class Responder:
    """A host at the other end: it answers who it is, and echoes."""

    takes_long = False

    def __init__(self, switch: Switch, address: bytes, station: bytes = b"\x02\0\0\0\0\x01") -> None:
        """`address`: four bytes of IPv4; `station`: its Ethernet address."""
        self._switch, self._address, self._station = switch, address, station
        self.answered = 0
        switch.connect(self)

    def receive(self, frame: bytes, _blank: bool, _segment: int = 0) -> None:
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
