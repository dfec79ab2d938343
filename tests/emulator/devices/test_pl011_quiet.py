"""When a PL011 says that its flags are known, and that a byte written does nothing that can be seen but the output."""

from __future__ import annotations

from emulator.devices.pl011 import (
    CR,
    CR_ENABLE,
    CR_LOOP,
    CR_RECEIVE,
    CR_TRANSMIT,
    DR,
    FR,
    FR_RECEIVER_EMPTY,
    FR_TRANSMITTER_EMPTY,
    IMSC,
    INT_RECEIVE,
    INT_TRANSMIT,
    Pl011,
)

IDLE = FR_TRANSMITTER_EMPTY | FR_RECEIVER_EMPTY
ON = CR_ENABLE | CR_TRANSMIT | CR_RECEIVE


def watched() -> tuple[Pl011, list[tuple[int, bool]]]:
    told: list[tuple[int, bool]] = []
    port = Pl011(lambda _: None, lambda _: None)
    port.watch_quiet(lambda status, posts: told.append((status, posts)))
    return port, told


def test_bytes_are_posted_while_the_transmitter_is_on_and_its_interrupt_is_not() -> None:
    port, told = watched()
    assert told == [(IDLE, False)]
    port.write(CR, 4, ON)
    port.write(DR, 4, 0x41)
    port.write(IMSC, 4, INT_RECEIVE)
    port.write(IMSC, 4, INT_TRANSMIT)
    port.write(IMSC, 4, 0)
    port.write(CR, 4, CR_ENABLE | CR_RECEIVE)
    assert told[1:] == [(IDLE, True), (IDLE, False), (IDLE, True), (IDLE, False)]


def test_input_is_seen_by_a_read_until_it_has_been_taken() -> None:
    port, told = watched()
    port.write(CR, 4, ON)
    port.feed(b"ab")
    assert told[-1] == (-1, False)
    port.read(DR, 4)
    assert told[-1] == (-1, False)
    port.read(DR, 4)
    assert told[-1] == (IDLE, True)
    assert port.read(FR, 4) == IDLE


def test_in_loopback_a_byte_written_can_be_read() -> None:
    port, told = watched()
    port.write(CR, 4, ON | CR_LOOP)
    assert told[-1] == (-1, False)
    port.write(DR, 4, 0x41)
    port.write(CR, 4, ON)
    assert told[-1] == (-1, False)
    assert port.read(DR, 4) == 0x41
    assert told[-1] == (IDLE, True)


def test_what_is_told_is_of_the_state_that_is_taken_up() -> None:
    port, told = watched()
    idle = port.state
    port.write(CR, 4, ON)
    port.feed(b"a")
    port.restore(idle)
    assert told[-1] == (IDLE, False)
