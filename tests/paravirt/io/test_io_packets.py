"""Packets are taken apart only where they are whole, and put together with right checksums."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paravirt.io.packets import (
    ACK,
    FIN,
    PSH,
    TCP,
    UDP,
    Segment,
    checksum,
    completed,
    cut,
    datagram,
    frame_of,
    half_checksum,
    options_of,
    packet_of,
    segment_bytes,
    segment_of,
    with_checksum,
)

ONE, TWO = bytes((10, 0, 2, 15)), bytes((10, 0, 2, 2))
HERE, THERE = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"


def by_words(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def tcp_frame(data: bytes, flags: int = ACK) -> bytes:
    body = segment_bytes(Segment(80, 4000, 0xFFFF_FF00, 7, flags, 500, b"", data))
    return frame_of(THERE, HERE, ONE, TWO, TCP, half_checksum(ONE, TWO, TCP, body))


def right(frame: bytes) -> bool:
    """Whether a frame's transport checksum is."""
    packet = packet_of(frame)
    assert packet is not None
    pseudo = packet.source + packet.to + bytes((0, packet.protocol)) + len(packet.body).to_bytes(2, "big")
    return by_words(pseudo + packet.body) == 0


@given(st.binary(max_size=200))
def test_the_checksum_is_that_of_the_rfc(data: bytes) -> None:
    assert checksum(data) == by_words(data)
    assert checksum(bytes(len(data))) == by_words(bytes(len(data)))
    assert checksum(b"\xff" * len(data)) == by_words(b"\xff" * len(data))


def test_a_checksum_left_to_others_is_filled_in() -> None:
    frame = tcp_frame(b"hello")
    assert not right(frame)
    assert right(completed(frame))
    body = half_checksum(ONE, TWO, UDP, datagram(1, 2, b"odd"))
    assert right(completed(frame_of(THERE, HERE, ONE, TWO, UDP, body)))
    assert right(frame_of(THERE, HERE, ONE, TWO, UDP, with_checksum(ONE, TWO, UDP, datagram(1, 2, b"even"))))


@given(st.integers(1, 9000), st.integers(64, 1460))
def test_a_long_frame_is_cut_into_ones_that_say_the_same(size: int, piece: int) -> None:
    data = bytes(number & 0xFF for number in range(size))
    pieces = list(cut(tcp_frame(data, ACK | PSH | FIN), piece))
    got = bytearray()
    for number, frame in enumerate(pieces):
        packet = packet_of(frame)
        assert packet is not None
        segment = segment_of(packet.body)
        assert segment is not None
        assert right(frame)
        assert len(segment.data) <= piece
        assert segment.sequence == 0xFFFF_FF00 + len(got) & 0xFFFF_FFFF
        assert bool(segment.flags & FIN) == (number == len(pieces) - 1)
        got += segment.data
    assert bytes(got) == data


@given(st.binary(max_size=120))
def test_no_bytes_upset_the_reading(data: bytes) -> None:
    for frame in (data, bytes(12) + b"\x08\0" + data, bytes(12) + b"\x08\0\x45" + data):
        packet = packet_of(frame)
        if packet is not None:
            segment_of(packet.body)
        completed(frame)
        list(cut(frame, 64))
    segment = segment_of(data)
    if segment is not None:
        options_of(segment)


def test_fragments_and_damaged_heads_are_no_packets() -> None:
    frame = bytearray(tcp_frame(b"x"))
    assert packet_of(bytes(frame)) is not None
    frame[22] ^= 1
    assert packet_of(bytes(frame)) is None
    assert packet_of(bytes(tcp_frame(b"x"))[:-1]) is None
