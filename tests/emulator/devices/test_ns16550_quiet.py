"""When a serial port says that its line status is known, and that a byte written does nothing that can be seen."""

from __future__ import annotations

from emulator.devices.ns16550 import (
    FCR_ENABLE,
    IER,
    IER_RECEIVED,
    IER_TRANSMITTER,
    IIR,
    LSR,
    LSR_TRANSMITTER_EMPTY,
    MCR,
    MCR_LOOP,
    RBR,
    Ns16550,
)

QUIET, STATUS_ONLY, NOTHING = (LSR_TRANSMITTER_EMPTY, True), (LSR_TRANSMITTER_EMPTY, False), (-1, False)


def watched() -> tuple[Ns16550, list[tuple[int, bool]]]:
    told: list[tuple[int, bool]] = []
    port = Ns16550(lambda _: None, lambda _: None)
    port.watch_quiet(lambda status, posts: told.append((status, posts)))
    return port, told


def test_it_is_told_at_once_and_when_it_changes() -> None:
    port, told = watched()
    port.write(RBR, 1, 0x41)
    port.write(IER, 1, IER_RECEIVED)
    assert told == [QUIET]
    port.write(IER, 1, IER_TRANSMITTER)
    port.write(IER, 1, 0)
    assert told == [QUIET, STATUS_ONLY, QUIET]


def test_input_is_seen_by_a_read_until_it_has_been_taken() -> None:
    port, told = watched()
    port.write(IIR, 1, FCR_ENABLE)
    port.feed(b"ab")
    assert told[-1] == NOTHING
    port.read(RBR, 1)
    assert told[-1] == NOTHING
    port.read(RBR, 1)
    assert told[-1] == QUIET
    assert port.read(LSR, 1) == LSR_TRANSMITTER_EMPTY


def test_in_loopback_a_byte_written_changes_the_status() -> None:
    port, told = watched()
    port.write(MCR, 1, MCR_LOOP)
    assert told[-1] == NOTHING
    for value in range(3):
        port.write(RBR, 1, value)  # more than there is room for
    port.write(MCR, 1, 0)
    assert told[-1] == NOTHING
    port.read(LSR, 1)  # the overrun
    port.read(RBR, 1)
    assert told[-1] == QUIET
