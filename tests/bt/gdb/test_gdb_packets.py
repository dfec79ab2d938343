"""Framing: what was sent comes out, in whatever pieces; nothing that comes in fails."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bt.gdb.packets import LONGEST, Kind, Reader, packet


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(1, 7))
def test_packets_come_out_as_they_were_sent_in_whatever_pieces(payloads: list[bytes], step: int) -> None:
    stream = b"+".join(map(packet, payloads))
    reader = Reader()
    found = [one for at in range(0, len(stream), step) for one in reader.feed(stream[at : at + step])]
    assert found == [(Kind.PACKET, payload) for payload in payloads]


@given(st.binary(max_size=400))
def test_behind_any_garbage_a_packet_is_read(garbage: bytes) -> None:
    reader = Reader()
    list(reader.feed(garbage + b"#00"))
    list(reader.feed(b"$#00"))
    assert list(reader.feed(packet(b"g")))[-1] == (Kind.PACKET, b"g")


def test_a_wrong_checksum_and_an_endless_packet_are_damaged() -> None:
    reader = Reader()
    assert list(reader.feed(b"$g#00")) == [(Kind.DAMAGED, b"")]
    assert list(reader.feed(b"$" + b"x" * (LONGEST + 1))) == [(Kind.DAMAGED, b"")]
    assert list(reader.feed(b"\x03")) == [(Kind.INTERRUPT, b"")]
