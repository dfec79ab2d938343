"""The framing of gdb's remote protocol: bytes to packets and back.

Room: `bt/gdb`. Whatever comes in is one of four things, and nothing that comes in can fail: garbage between packets is
passed over, what is longer than any packet is forgotten, a wrong checksum is asked for again.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Final

LONGEST: Final = 0x4000
"""Bytes of the longest packet, as it is sent."""
_ESCAPE, _FLIP = 0x7D, 0x20


class Kind(Enum):
    """What was received."""

    PACKET = "packet"
    INTERRUPT = "interrupt"
    """Ctrl-C."""
    AGAIN = "again"
    """The last answer came damaged: send it again."""
    DAMAGED = "damaged"
    """A packet with a wrong checksum, or too long."""


class Reader:
    """Takes bytes as they come, in whatever pieces."""

    def __init__(self) -> None:
        self._packet: bytearray | None = None
        self._sum = b""
        self._closing = False
        self.checks = True
        """Checksums are looked at."""

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """What these bytes complete."""
        end, whole = len(data) - 3, self._packet is None and data[:1] == b"$"
        if whole and 0 < end == data.find(b"#") <= LONGEST and data.count(b"$") == 1:
            self._sum = data[-2:]
            yield self._complete(data[1:-3])  # one packet and nothing else, as nearly always
            return
        for byte in data:
            if self._packet is None:
                if byte == 0x24:  # $
                    self._packet, self._closing, self._sum = bytearray(), False, b""
                elif byte == 0x03:
                    yield Kind.INTERRUPT, b""
                elif byte == 0x2D:  # -
                    yield Kind.AGAIN, b""
            elif self._closing:
                self._sum += bytes((byte,))
                if len(self._sum) == 2:
                    packet, self._packet = bytes(self._packet), None
                    yield self._complete(packet)
            elif byte == 0x23:  # #
                self._closing = True
            elif byte == 0x24:  # a packet was broken off
                self._packet = bytearray()
                yield Kind.DAMAGED, b""
            elif len(self._packet) >= LONGEST:
                self._packet = None
                yield Kind.DAMAGED, b""
            else:
                self._packet.append(byte)

    def _complete(self, packet: bytes) -> tuple[Kind, bytes]:
        if self.checks:
            try:
                wanted = int(self._sum, 16)
            except ValueError:
                return Kind.DAMAGED, b""
            if wanted != sum(packet) & 0xFF:
                return Kind.DAMAGED, b""
        return Kind.PACKET, unescape(packet)


def unescape(data: bytes) -> bytes:
    """Bytes as they were before `escape`."""
    if _ESCAPE not in data:
        return data
    result, flip = bytearray(), False
    for byte in data:
        if byte == _ESCAPE and not flip:
            flip = True
        else:
            result.append(byte ^ _FLIP if flip else byte)
            flip = False
    return bytes(result)


def escape(data: bytes) -> bytes:
    """Bytes as they may stand in a packet."""
    if not any(byte in data for byte in b"#$}*"):
        return data
    result = bytearray()
    for byte in data:
        if byte in b"#$}*":
            result += bytes((_ESCAPE, byte ^ _FLIP))
        else:
            result.append(byte)
    return bytes(result)


def packet(payload: bytes) -> bytes:
    """A packet as it is sent."""
    body = escape(payload)
    return b"$%s#%02x" % (body, sum(body) & 0xFF)
