"""The serial port, by the sequences with which Linux's 8250 driver finds and drives it."""

import pytest

from emulator.devices.ns16550 import IER, IIR, LCR, LSR, MCR, MSR, RBR, SCR, Ns16550

THR, FCR, DLL, DLM = RBR, IIR, RBR, IER


class Rig:
    """A port with everything that it sends and every change of its request line."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.line: list[bool] = []
        self.port = Ns16550(self.sent.extend, self.line.append)

    def read(self, register: int) -> int:
        return self.port.read(register, 1)

    def write(self, register: int, value: int) -> None:
        self.port.write(register, 1, value)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_linux_finds_the_port_there(rig: Rig) -> None:
    rig.write(IER, 0)
    assert rig.read(IER) & 0x0F == 0
    rig.write(IER, 0x0F)
    assert rig.read(IER) & 0x0F == 0x0F
    rig.write(IER, 0)
    rig.write(MCR, 0x1A)
    assert rig.read(MSR) & 0xF0 == 0x90


def test_linux_takes_the_port_for_a_16550a(rig: Rig) -> None:
    rig.write(LCR, 0xBF)
    rig.write(FCR, 0)
    rig.write(LCR, 0)
    rig.write(FCR, 0x01)
    assert rig.read(IIR) >> 6 == 3
    for lcr in (0x80, 0xBF):  # no EFR behind either
        rig.write(LCR, lcr)
        assert rig.read(IIR) != 0
    rig.write(LCR, 0)
    mcr = rig.read(MCR)
    rig.write(LCR, 0xE0)
    assert not (rig.read(2) ^ mcr) & 0x10  # no EXCR1: flipping MCR.LOOP must not show here
    rig.write(LCR, 0)
    rig.write(MCR, mcr ^ 0x10)
    rig.write(LCR, 0xE0)
    assert not (rig.read(2) ^ mcr) & 0x10
    rig.write(LCR, 0)
    rig.write(MCR, mcr)
    rig.write(FCR, 0x21)
    assert rig.read(IIR) >> 5 == 6
    rig.write(LCR, 0x80)
    rig.write(FCR, 0x21)
    assert rig.read(IIR) >> 5 == 6  # a 16750 would say 7
    rig.write(LCR, 0)
    rig.write(IER, 0x40)
    assert rig.read(IER) & 0x40 == 0  # no Xscale


def test_linux_counts_sixteen_bytes_in_the_fifo(rig: Rig) -> None:
    rig.write(FCR, 0x07)
    rig.write(MCR, 0x10)
    rig.write(LCR, 0x03)
    for value in range(256):
        rig.write(THR, value)
    got = []
    while rig.read(LSR) & 1:
        got.append(rig.read(RBR))
    assert got == list(range(16))
    assert rig.sent == b""


def test_a_full_fifo_in_loopback_reports_an_overrun_once(rig: Rig) -> None:
    rig.write(FCR, 0x01)
    rig.write(MCR, 0x10)
    for value in range(17):
        rig.write(THR, value)
    assert rig.read(LSR) == 0x63
    assert rig.read(LSR) == 0x61


def test_without_fifos_an_overrun_keeps_the_last_byte(rig: Rig) -> None:
    rig.write(MCR, 0x10)
    rig.write(THR, 1)
    rig.write(THR, 2)
    assert rig.read(LSR) & 0x03 == 0x03
    assert rig.read(RBR) == 2
    assert rig.read(LSR) & 0x01 == 0


def test_linux_sees_no_transmitter_bug(rig: Rig) -> None:
    """serial8250_do_startup: the interrupt must come again whenever THRI is enabled anew."""
    rig.write(IER, 0x02)
    first = rig.read(IIR)
    rig.write(IER, 0)
    rig.write(IER, 0x02)
    second = rig.read(IIR)
    rig.write(IER, 0)
    assert (first & 0x0F, second & 0x0F) == (0x02, 0x02)
    assert rig.read(IIR) & 1


def test_reading_iir_answers_the_transmitter_interrupt(rig: Rig) -> None:
    rig.write(MCR, 0x08)
    rig.write(IER, 0x02)
    assert rig.line == [True]
    assert rig.read(IIR) == 0x02
    assert rig.line == [True, False]
    assert rig.read(IIR) == 0x01


def test_each_byte_sent_is_a_new_edge(rig: Rig) -> None:
    rig.write(MCR, 0x08)
    rig.write(IER, 0x02)
    rig.write(THR, 0x41)
    assert rig.line == [True, False, True]
    assert rig.sent == b"A"


def test_sending_with_the_interrupt_disabled_raises_nothing(rig: Rig) -> None:
    rig.write(MCR, 0x08)
    for value in b"hello":
        assert rig.read(LSR) == 0x60
        rig.write(THR, value)
    assert rig.sent == b"hello"
    assert rig.line == []


def test_the_divisor_is_behind_dlab(rig: Rig) -> None:
    rig.write(IER, 0x05)
    rig.write(LCR, 0x83)
    rig.write(DLL, 0x01)
    rig.write(DLM, 0x02)
    assert (rig.read(DLL), rig.read(DLM)) == (1, 2)
    rig.write(LCR, 0x03)
    assert rig.read(IER) == 0x05
    assert rig.sent == b""
    assert rig.port.state.divisor == 0x201


def test_the_scratch_register_keeps_a_byte(rig: Rig) -> None:
    rig.write(SCR, 0xA5)
    assert rig.read(SCR) == 0xA5


def test_received_bytes_request_and_are_read_in_order(rig: Rig) -> None:
    rig.write(MCR, 0x0B)
    rig.write(FCR, 0x81)
    rig.write(IER, 0x05)
    rig.port.feed(b"ls\n")
    assert rig.line == [True]
    assert rig.read(IIR) == 0xCC  # fewer than the trigger level of 8: time-out
    assert bytes(rig.read(RBR) for _ in range(3)) == b"ls\n"
    assert rig.line == [True, False]
    assert rig.read(IIR) == 0xC1


def test_a_reached_trigger_level_is_reported_as_such(rig: Rig) -> None:
    rig.write(FCR, 0x81)
    rig.write(IER, 0x01)
    rig.port.feed(bytes(8))
    assert rig.read(IIR) == 0xC4
    rig.read(RBR)
    assert rig.read(IIR) == 0xCC


def test_no_fed_byte_is_lost_however_many_come_at_once(rig: Rig) -> None:
    rig.write(FCR, 0x01)
    text = bytes(range(256)) * 3
    rig.port.feed(text[:500])
    rig.port.feed(text[500:])
    got = bytearray()
    while rig.read(LSR) & 1:
        got.append(rig.read(RBR))
    assert got == text
    assert rig.port.unread == 0


def test_bytes_fed_before_the_driver_clears_the_fifo_survive_outside_it(rig: Rig) -> None:
    rig.write(FCR, 0x01)
    rig.port.feed(b"0123456789abcdefgh")
    rig.write(FCR, 0x03)
    assert bytes((rig.read(RBR), rig.read(RBR))) == b"gh"


def test_loopback_keeps_the_line_out(rig: Rig) -> None:
    rig.write(MCR, 0x10)
    rig.port.feed(b"x")
    assert rig.read(LSR) & 1 == 0
    rig.write(MCR, 0)
    assert rig.read(RBR) == ord("x")


def test_the_request_needs_out2_as_on_a_pc(rig: Rig) -> None:
    rig.write(IER, 0x02)
    assert rig.line == []
    rig.write(MCR, 0x08)
    assert rig.line == [True]
    rig.write(MCR, 0x18)
    assert rig.line == [True, False]


def test_modem_changes_show_until_read(rig: Rig) -> None:
    assert rig.read(MSR) == 0xB0
    rig.write(MCR, 0x10)
    assert rig.read(MSR) == 0x0B
    rig.write(MCR, 0x14)
    rig.write(MCR, 0x10)
    assert rig.read(MSR) == 0x04  # ring indicator: its end is what counts
    assert rig.read(MSR) == 0


def test_a_modem_change_requests_and_reading_answers(rig: Rig) -> None:
    rig.write(IER, 0x08)
    rig.write(MCR, 0x10)
    rig.write(MCR, 0x08)
    assert rig.read(IIR) == 0x00
    rig.read(MSR)
    assert rig.read(IIR) == 0x01
    assert rig.line == [True, False]


def test_line_errors_are_the_most_urgent(rig: Rig) -> None:
    rig.write(IER, 0x0F)
    rig.write(MCR, 0x10)
    rig.write(THR, 1)
    rig.write(THR, 2)
    causes = []
    for answer in (LSR, RBR, None, MSR):
        causes.append(rig.read(IIR) & 0x0F)
        if answer is not None:
            rig.read(answer)
    assert causes == [0x06, 0x04, 0x02, 0x00]
    assert rig.read(IIR) == 0x01


def test_a_restored_port_answers_as_the_first_would(rig: Rig) -> None:
    rig.write(MCR, 0x0B)
    rig.write(FCR, 0x41)
    rig.write(IER, 0x03)
    rig.port.feed(b"a" * 20)
    other = Rig()
    other.port.restore(rig.port.state)
    assert other.port.state == rig.port.state
    assert other.line == [True]
    registers = [IIR, RBR, LSR, IIR] * 20
    assert [other.read(r) for r in registers] == [rig.read(r) for r in registers]


@pytest.mark.parametrize(("register", "value"), [(IER, 2), (LCR, 0x80), (MCR, 0x10), (IER, 0), (FCR, 1)])
def test_bytes_at_once_are_as_bytes_one_by_one_or_not_taken(register: int, value: int) -> None:
    one, all_ = Rig(), Rig()
    for rig in (one, all_):
        rig.write(MCR, 8)
        rig.write(register, value)
    taken = all_.port.write_all(THR, b"abc")
    for byte in b"abc":
        one.write(THR, byte)
        if not taken:
            all_.write(THR, byte)
    assert taken == ((register, value) in ((IER, 0), (FCR, 1)))
    assert not all_.port.write_all(SCR, b"abc")
    for rig in (one, all_):
        rig.write(IER, 2)
    assert (one.sent, one.line, one.port.state) == (all_.sent, all_.line, all_.port.state)
