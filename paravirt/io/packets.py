"""Ethernet, IPv4, TCP and UDP as bytes: taken apart and put together, with checksums, and long frames cut to size.

Room: `paravirt/io`. What comes from a guest may say anything: what does not fit its own lengths is None. It knows no
socket and no ring. (RFC 791, 768, 9293, 1071.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

IPV4, ARP = 0x0800, 0x0806
ICMP, TCP, UDP = 1, 6, 17
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
_ETHERNET: Final = 14
_HEAD = struct.Struct(">BBHHHBBH4s4s")
_TCP_HEAD = struct.Struct(">HHIIBBHHH")
_DO_NOT_FRAGMENT: Final = 0x4000
_CHECKSUM_AT: Final = {TCP: 16, UDP: 6}


def checksum(data: bytes) -> int:
    """The Internet checksum of RFC 1071. A word's place does not matter to a sum in which 2^16 is 1."""
    if len(data) & 1:
        data += b"\0"
    return 0xFFFF - (int.from_bytes(data, "big") % 0xFFFF or (0xFFFF if any(data) else 0))


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv4 packet that is whole."""

    station: bytes
    """Ethernet address of who sent it."""
    source: bytes
    to: bytes
    """Four bytes each."""
    protocol: int
    body: bytes


def packet_of(frame: bytes) -> Packet | None:
    """The packet in an Ethernet frame; None for what is none, is damaged, or is a fragment."""
    if len(frame) < _ETHERNET + 20 or int.from_bytes(frame[12:14], "big") != IPV4:
        return None
    head = (frame[14] & 15) * 4
    total = int.from_bytes(frame[16:18], "big")
    if frame[14] >> 4 != 4 or not 20 <= head <= total <= len(frame) - _ETHERNET:
        return None
    if checksum(frame[14 : 14 + head]) or int.from_bytes(frame[20:22], "big") & 0x3FFF:
        return None
    return Packet(frame[6:12], frame[26:30], frame[30:34], frame[23], frame[14 + head : 14 + total])


def frame_of(to: bytes, station: bytes, source: bytes, target: bytes, protocol: int, body: bytes) -> bytes:
    """An Ethernet frame around a packet; `body` has its checksum, where it wants one."""
    head = _HEAD.pack(0x45, 0, 20 + len(body), 0, _DO_NOT_FRAGMENT, 64, protocol, 0, source, target)
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return to + station + IPV4.to_bytes(2, "big") + head + body


def _pseudo(source: bytes, target: bytes, protocol: int, size: int) -> bytes:
    return source + target + bytes((0, protocol)) + size.to_bytes(2, "big")


def with_checksum(source: bytes, target: bytes, protocol: int, body: bytes) -> bytes:
    """A TCP or UDP body with its checksum filled in."""
    at = _CHECKSUM_AT[protocol]
    blank = body[:at] + b"\0\0" + body[at + 2 :]
    found = checksum(_pseudo(source, target, protocol, len(body) & 0xFFFF) + blank)
    if protocol == UDP and not found:
        found = 0xFFFF
    return body[:at] + found.to_bytes(2, "big") + body[at + 2 :]


def half_checksum(source: bytes, target: bytes, protocol: int, body: bytes) -> bytes:
    """A body in whose checksum field only the addresses are summed: who sends it on has to fill in the rest."""
    at = _CHECKSUM_AT[protocol]
    summed = 0xFFFF - checksum(_pseudo(source, target, protocol, len(body) & 0xFFFF))
    return body[:at] + summed.to_bytes(2, "big") + body[at + 2 :]


def datagram(source_port: int, target_port: int, data: bytes) -> bytes:
    """A UDP body, its checksum not filled in."""
    return struct.pack(">HHHH", source_port, target_port, 8 + len(data), 0) + data


@dataclass(frozen=True, slots=True)
class Segment:
    """A TCP segment."""

    source_port: int
    target_port: int
    sequence: int
    acknowledged: int
    flags: int
    window: int
    options: bytes
    data: bytes


def segment_of(body: bytes) -> Segment | None:
    """The segment in a TCP body; None for what is none."""
    if len(body) < 20:
        return None
    source, target, sequence, acknowledged, offset, flags, window, _sum, _urgent = _TCP_HEAD.unpack_from(body)
    head = (offset >> 4) * 4
    if not 20 <= head <= len(body):
        return None
    return Segment(source, target, sequence, acknowledged, flags, window, body[20:head], body[head:])


def segment_bytes(segment: Segment) -> bytes:
    """A TCP body, its checksum not filled in; options are whole words."""
    offset = 5 + len(segment.options) // 4 << 4
    head = _TCP_HEAD.pack(
        segment.source_port,
        segment.target_port,
        segment.sequence & 0xFFFF_FFFF,
        segment.acknowledged & 0xFFFF_FFFF,
        offset,
        segment.flags,
        segment.window,
        0,
        0,
    )
    return head + segment.options + segment.data


def options_of(segment: Segment) -> dict[int, bytes]:
    """TCP options by number; what is damaged ends them."""
    found: dict[int, bytes] = {}
    at, options = 0, segment.options
    while at < len(options) and options[at]:
        if options[at] == 1:
            at += 1
            continue
        size = options[at + 1] if at + 1 < len(options) else 0
        if size < 2 or at + size > len(options):
            break
        found[options[at]] = options[at + 2 : at + size]
        at += size
    return found


def completed(frame: bytes) -> bytes:
    """A frame whose transport checksum was left to others, with that filled in."""
    packet = packet_of(frame)
    if packet is None or packet.protocol not in _CHECKSUM_AT or len(packet.body) < _CHECKSUM_AT[packet.protocol] + 2:
        return frame
    body = with_checksum(packet.source, packet.to, packet.protocol, packet.body)
    start = _ETHERNET + (frame[14] & 15) * 4
    return frame[:start] + body + frame[start + len(body) :]


def cut(frame: bytes, size: int) -> Iterator[bytes]:
    """A long TCP frame as frames of at most `size` bytes of data each, checksums filled in; others as they are."""
    packet = packet_of(frame)
    segment = segment_of(packet.body) if packet is not None and packet.protocol == TCP else None
    if packet is None or segment is None or len(segment.data) <= size:
        yield completed(frame)
        return
    number = int.from_bytes(frame[18:20], "big")
    for at in range(0, len(segment.data), size):
        data = segment.data[at : at + size]
        last = at + len(data) == len(segment.data)
        flags = segment.flags if last else segment.flags & ~(FIN | PSH)
        one = Segment(
            segment.source_port,
            segment.target_port,
            segment.sequence + at,
            segment.acknowledged,
            flags,
            segment.window,
            segment.options,
            data,
        )
        body = with_checksum(packet.source, packet.to, TCP, segment_bytes(one))
        made = frame_of(frame[:6], packet.station, packet.source, packet.to, TCP, body)
        head = made[14:18] + (number + at // size & 0xFFFF).to_bytes(2, "big") + made[20:24] + b"\0\0" + made[26:34]
        yield made[:14] + head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + made[34:]


__all__ = [
    "Packet",
    "Segment",
    "checksum",
    "completed",
    "cut",
    "datagram",
    "frame_of",
    "half_checksum",
    "options_of",
    "packet_of",
    "segment_bytes",
    "segment_of",
    "with_checksum",
]
