"""The PL011 by what Linux's driver does with it: identity, output, input, interrupts, state."""

import pytest

from emulator.devices import pl011 as p
from emulator.devices.pl011 import Pl011


class Port:
    """A serial port with its two ends."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.line: list[bool] = []
        self.chip = Pl011(self.sent.extend, self.line.append)

    def on(self, fifo: bool = True, mask: int = 0) -> Pl011:
        self.chip.write(p.LCRH, 4, 0x60 | (p.LCRH_FIFO if fifo else 0))
        self.chip.write(p.CR, 4, p.CR_ENABLE | p.CR_TRANSMIT | p.CR_RECEIVE)
        self.chip.write(p.IMSC, 4, mask)
        return self.chip


def test_its_identity_is_that_of_an_arm_pl011() -> None:
    chip = Port().chip
    identity = [chip.read(p.ID + 4 * number, 4) for number in range(8)]
    assert identity[:2] == [0x11, 0x10]
    assert identity[4:] == [0x0D, 0xF0, 0x05, 0xB1]


def test_bytes_are_sent_at_once_while_it_is_on() -> None:
    port = Port()
    port.chip.write(p.DR, 4, ord("x"))
    assert port.sent == b""
    port.on().write(p.DR, 4, ord("a"))
    port.chip.write(p.DR, 1, 0x100 | ord("b"))
    assert port.sent == b"ab"
    assert port.chip.read(p.FR, 4) == p.FR_TRANSMITTER_EMPTY | p.FR_RECEIVER_EMPTY


@pytest.mark.parametrize("control", [p.CR_ENABLE | p.CR_TRANSMIT, p.CR_ENABLE | p.CR_TRANSMIT | p.CR_LOOP, 0])
@pytest.mark.parametrize("mask", [0, p.INT_TRANSMIT])
def test_bytes_sent_together_are_as_many_sent_one_by_one(control: int, mask: int) -> None:
    one, many = Port(), Port()
    for port in (one, many):
        port.on(mask=mask).write(p.CR, 4, control | p.CR_RECEIVE)
    many.chip.transmit(b"several")
    for value in b"several":
        one.chip.write(p.DR, 4, value)
    assert (many.sent, many.line, many.chip.state) == (one.sent, one.line, one.chip.state)


def test_received_bytes_wait_and_are_read_in_order() -> None:
    port = Port()
    port.chip.feed(b"early")
    chip = port.on()
    chip.feed(b" and late, more than the chip holds")
    text = bytearray()
    while not chip.read(p.FR, 4) & p.FR_RECEIVER_EMPTY:
        text.append(chip.read(p.DR, 4))
    assert text == b"early and late, more than the chip holds"
    assert chip.unread == 0


def test_the_receive_interrupt_follows_the_fill_level_and_the_timeout_what_is_left() -> None:
    port = Port()
    chip = port.on(mask=p.INT_RECEIVE)
    chip.feed(b"1234567")
    assert port.line == []
    chip.feed(b"8")  # half of the FIFO, as after a reset
    assert port.line == [True]
    chip.read(p.DR, 4)
    assert port.line == [True, False]
    chip.write(p.IMSC, 4, p.INT_TIMEOUT)
    assert port.line == [True, False, True]
    assert chip.read(p.MIS, 4) == p.INT_TIMEOUT
    for _ in range(7):
        chip.read(p.DR, 4)
    assert port.line[-1] is False


def test_the_transmit_interrupt_stays_until_it_is_cleared() -> None:
    port = Port()
    chip = port.on(mask=p.INT_TRANSMIT)
    chip.write(p.DR, 4, 0x41)
    assert port.line == [True]
    chip.write(p.ICR, 4, p.INT_TRANSMIT)
    assert port.line == [True, False]
    assert chip.read(p.RIS, 4) == 0


def test_in_loopback_what_is_sent_is_received() -> None:
    port = Port()
    chip = port.on()
    chip.write(p.CR, 4, p.CR_ENABLE | p.CR_TRANSMIT | p.CR_RECEIVE | p.CR_LOOP)
    chip.write(p.DR, 4, 0x5A)
    assert port.sent == b""
    assert chip.read(p.DR, 4) == 0x5A


def test_registers_keep_what_is_written() -> None:
    chip = Port().chip
    for register, value in ((p.IBRD, 13), (p.FBRD, 1), (p.LCRH, 0x70), (p.IFLS, 0x12), (p.IMSC, 0x50), (p.DMACR, 7)):
        chip.write(register, 4, value)
        assert chip.read(register, 4) == value


def test_only_a_driver_that_waits_for_input_listens() -> None:
    port = Port()
    chip = port.on()
    for _ in range(40):
        chip.read(p.FR, 4)
        chip.write(p.DR, 4, 0x2E)
    assert not chip.listening
    for _ in range(40):
        chip.read(p.FR, 4)
    assert chip.listening


def test_a_restored_port_goes_on_where_it_was() -> None:
    port = Port()
    port.on(mask=p.INT_TIMEOUT).feed(b"abcdefghijklmnopqrstuvwxyz")
    port.chip.read(p.DR, 4)
    state = port.chip.state
    other = Port()
    other.chip.restore(state)
    assert other.chip.state == state
    assert other.line == [True]
    assert other.chip.read(p.DR, 4) == ord("b")
