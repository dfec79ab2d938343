"""The console's ring and the store's: bytes both ways, and indexes that make no sense."""

from __future__ import annotations

import struct

import pytest

from paravirt.xen.console import Console
from paravirt.xen.events import EventChannels
from paravirt.xen.public import ConsoleRing
from paravirt.xen.store import Store


def console() -> tuple[Console, memoryview, bytearray]:
    printed, page = bytearray(), memoryview(bytearray(4096))
    made = Console(EventChannels(memoryview(bytearray(4096)), 0, 1), printed.extend)
    made.connect(page)
    return made, page, printed


def put(page: memoryview, data: bytes) -> None:
    words = page.cast("I")
    at = words[ConsoleRing.OUTPUT_PRODUCED >> 2]
    for number, byte in enumerate(data):
        page[ConsoleRing.OUTPUT + (at + number) % ConsoleRing.OUTPUT_SIZE] = byte
    words[ConsoleRing.OUTPUT_PRODUCED >> 2] = at + len(data) & 0xFFFF_FFFF


def test_what_is_printed_arrives_over_the_ends_of_ring_and_index() -> None:
    made, page, printed = console()
    words = page.cast("I")
    words[ConsoleRing.OUTPUT_PRODUCED >> 2] = words[ConsoleRing.OUTPUT_CONSUMED >> 2] = 0xFFFF_FFFE
    for part in (b"over the end", b"x" * 2048, b"again"):
        put(page, part)
        made.kicked()
    assert bytes(printed) == b"over the end" + b"x" * 2048 + b"again"
    assert words[ConsoleRing.OUTPUT_CONSUMED >> 2] == words[ConsoleRing.OUTPUT_PRODUCED >> 2]


def test_an_index_that_claims_more_than_the_ring_holds_is_read_as_full() -> None:
    made, page, printed = console()
    page.cast("I")[ConsoleRing.OUTPUT_PRODUCED >> 2] = 0x8000_0000
    made.kicked()
    assert len(printed) == ConsoleRing.OUTPUT_SIZE


def test_input_waits_for_room() -> None:
    made, page, _ = console()
    made.feed(bytes(range(256)) * 5)
    words = page.cast("I")
    assert words[ConsoleRing.INPUT_PRODUCED >> 2] == 1024
    assert made.unread == 1280
    words[ConsoleRing.INPUT_CONSUMED >> 2] = 1000
    made.kicked()
    assert words[ConsoleRing.INPUT_PRODUCED >> 2] == 1280
    assert page[0:256] == bytes(range(256))
    assert made.unread == 280


HEADER = struct.Struct("<IIII")


class Guest:
    """A guest's end of the store's ring."""

    def __init__(self) -> None:
        self.page = memoryview(bytearray(4096))
        self.words = self.page.cast("I")
        self.store = Store(EventChannels(memoryview(bytearray(4096)), 0, 1), "/local/domain/1")
        self.store.connect(self.page)

    def send(self, data: bytes) -> None:
        at = self.words[2052 >> 2]
        for number, byte in enumerate(data):
            self.page[(at + number) % 1024] = byte
        self.words[2052 >> 2] = at + len(data)
        self.store.kicked()

    def replies(self) -> list[tuple[int, bytes]]:
        consumed, produced = self.words[2056 >> 2], self.words[2060 >> 2]
        data = bytes(self.page[1024 + at % 1024] for at in range(consumed, produced))
        self.words[2056 >> 2] = produced
        found = []
        while data:
            kind, _number, _transaction, size = HEADER.unpack_from(data)
            found.append((kind, data[16 : 16 + size]))
            data = data[16 + size :]
        return found

    def ask(self, kind: int, *parts: bytes) -> list[tuple[int, bytes]]:
        payload = b"".join(parts)
        self.send(HEADER.pack(kind, 1, 0, len(payload)) + payload)
        return self.replies()


def test_what_is_written_can_be_read_and_listed() -> None:
    guest = Guest()
    assert guest.ask(11, b"device/vbd/1\0", b"one") == [(11, b"OK\0")]
    assert guest.ask(2, b"/local/domain/1/device/vbd/1\0") == [(2, b"one")]
    assert guest.ask(1, b"device\0") == [(1, b"vbd\0")]
    assert guest.ask(13, b"device\0") == [(13, b"OK\0")]
    assert guest.ask(2, b"device/vbd/1\0") == [(16, b"ENOENT\0")]


def test_a_watch_is_told_at_once_and_at_every_change() -> None:
    guest = Guest()
    assert guest.ask(4, b"a\0", b"token\0") == [(4, b"OK\0"), (15, b"a\0token\0")]
    assert guest.ask(11, b"a/b\0", b"1") == [(11, b"OK\0"), (15, b"a/b\0token\0")]
    assert guest.ask(11, b"ab\0", b"1") == [(11, b"OK\0")]
    assert guest.ask(5, b"a\0", b"token\0") == [(5, b"OK\0")]
    assert guest.ask(11, b"a/b\0", b"2") == [(11, b"OK\0")]


def test_a_request_may_come_in_pieces() -> None:
    guest = Guest()
    whole = HEADER.pack(11, 1, 0, 4) + b"x\0yz"
    for byte in whole[:-1]:
        guest.send(bytes([byte]))
    assert guest.replies() == []
    guest.send(whole[-1:])
    assert guest.replies() == [(11, b"OK\0")]


@pytest.mark.parametrize("kind", [2, 1, 4, 5, 11, 12, 13, 99])
@pytest.mark.parametrize("payload", [b"", b"\0", b"\xff\xff\0\xff", b"nothing\0"])
def test_nonsense_gets_an_answer(kind: int, payload: bytes) -> None:
    assert Guest().ask(kind, payload)


def test_a_size_that_cannot_be_is_the_end_of_what_was_sent() -> None:
    guest = Guest()
    guest.send(HEADER.pack(2, 1, 0, 1 << 30))
    assert guest.replies() == []
    assert guest.ask(1, b"device\0") == [(16, b"ENOENT\0")]
