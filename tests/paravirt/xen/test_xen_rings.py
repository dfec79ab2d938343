"""The console's ring: bytes both ways, and indexes that make no sense."""

from __future__ import annotations

from paravirt.xen.console import Console
from paravirt.xen.events import EventChannels
from paravirt.xen.public import ConsoleRing


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
