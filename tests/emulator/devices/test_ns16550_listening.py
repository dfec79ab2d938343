"""When a guest has asked the serial port for input."""

from emulator.devices.ns16550 import IER, LSR, MCR, MCR_LOOP, MCR_OUT2, RBR, Ns16550


def port() -> Ns16550:
    return Ns16550(lambda _data: None, lambda _level: None)


def test_a_port_that_nobody_has_set_up_does_not_listen() -> None:
    assert not port().listening


def test_a_driver_listens_when_received_data_interrupt_reaches_the_processor() -> None:
    com = port()
    com.write(IER, 1, 0x0F)
    assert not com.listening, "a probe for registers"
    com.write(MCR, 1, MCR_OUT2 | MCR_LOOP)
    assert not com.listening, "a test in loopback"
    com.write(MCR, 1, MCR_OUT2)
    assert com.listening
    com.write(IER, 1, 0)
    assert not com.listening


def test_a_driver_that_waits_for_the_line_status_listens() -> None:
    com = port()
    for _ in range(100):
        com.read(LSR, 1)
    assert com.listening


def test_a_driver_that_only_transmits_does_not_listen() -> None:
    com = port()
    for byte in range(100):
        com.read(LSR, 1)
        com.write(RBR, 1, byte)
    assert not com.listening
