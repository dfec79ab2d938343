"""The interrupt controllers, by the sequences of Linux's arch/x86/kernel/i8259.c and the data sheet."""

import pytest

from emulator.devices.i8259 import I8259Pair


class Rig:
    """The pair as a PC has it, initialised as Linux does it: vectors 0x30-0x3f."""

    def __init__(self) -> None:
        self.line: list[bool] = []
        self.pair = I8259Pair(self.line.append)
        self.irq = {n: self.pair.line(n) for n in range(16) if n != 2}
        self.initialise()

    def master(self, offset: int, value: int) -> None:
        self.pair.master.write(offset, 1, value)

    def slave(self, offset: int, value: int) -> None:
        self.pair.slave.write(offset, 1, value)

    def initialise(self, icw4: int = 0x01) -> None:
        self.master(1, 0xFF)
        for offset, value in ((0, 0x11), (1, 0x30), (1, 0x04), (1, icw4)):
            self.master(offset, value)
        for offset, value in ((0, 0x11), (1, 0x38), (1, 0x02), (1, icw4 & ~0x10)):
            self.slave(offset, value)
        self.master(1, 0)
        self.slave(1, 0)

    def linux_acknowledge(self, irq: int) -> None:
        """mask_and_ack_8259A: mask, then specific end of interrupt, slave first."""
        if irq & 8:
            self.pair.slave.read(1, 1)
            self.slave(1, self.pair.slave.read(1, 1) | 1 << (irq & 7))
            self.slave(0, 0x60 + (irq & 7))
            self.master(0, 0x62)
        else:
            self.pair.master.read(1, 1)
            self.master(1, self.pair.master.read(1, 1) | 1 << irq)
            self.master(0, 0x60 + irq)

    def isr(self) -> tuple[int, int]:
        self.master(0, 0x0B)
        self.slave(0, 0x0B)
        value = (self.pair.master.read(0, 1), self.pair.slave.read(0, 1))
        self.master(0, 0x0A)
        self.slave(0, 0x0A)
        return value


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_linux_finds_the_controller_there(rig: Rig) -> None:
    rig.slave(1, 0xFF)
    rig.master(1, 0xFB)
    assert rig.pair.master.read(1, 1) == 0xFB


def test_a_fresh_controller_keeps_its_mask_too() -> None:
    pair = I8259Pair(lambda level: None)
    pair.master.write(1, 1, 0xFB)
    assert pair.master.read(1, 1) == 0xFB


@pytest.mark.parametrize("irq", [n for n in range(16) if n != 2])
def test_each_irq_gives_its_vector(rig: Rig, irq: int) -> None:
    rig.irq[irq](True)
    assert rig.pair.pending()
    assert rig.pair.acknowledge() == 0x30 + irq
    assert rig.isr() == ((4, 1 << (irq & 7)) if irq & 8 else (1 << irq, 0))
    assert not rig.pair.pending()


def test_linux_serves_an_edge_once(rig: Rig) -> None:
    rig.irq[4](True)
    assert rig.pair.acknowledge() == 0x34
    rig.linux_acknowledge(4)
    rig.master(1, 0)
    assert not rig.pair.pending()
    rig.irq[4](False)
    rig.irq[4](True)
    assert rig.pair.pending()


def test_linux_serves_a_slave_edge_once(rig: Rig) -> None:
    rig.irq[8](True)
    assert rig.pair.acknowledge() == 0x38
    rig.linux_acknowledge(8)
    rig.slave(1, 0)
    assert not rig.pair.pending()
    assert rig.isr() == (0, 0)


def test_a_masked_request_waits_for_its_mask(rig: Rig) -> None:
    rig.master(1, 0x10)
    rig.irq[4](True)
    assert not rig.pair.pending()
    assert rig.pair.master.read(0, 1) == 0x10
    rig.master(1, 0)
    assert rig.pair.acknowledge() == 0x34


def test_the_slave_needs_the_masters_cascade_unmasked(rig: Rig) -> None:
    rig.master(1, 0x04)
    rig.irq[12](True)
    assert not rig.pair.pending()
    rig.master(1, 0)
    assert rig.pair.acknowledge() == 0x3C


def test_the_most_urgent_goes_first_and_keeps_the_others_out(rig: Rig) -> None:
    for irq in (7, 15, 1, 8, 3):
        rig.irq[irq](True)
    order = []
    while rig.pair.pending():
        vector = rig.pair.acknowledge()
        order.append(vector - 0x30)
        assert not rig.pair.pending()
        if order[-1] & 8:
            rig.slave(0, 0x20)
        rig.master(0, 0x20)
    assert order == [1, 8, 15, 3, 7]


def test_a_more_urgent_request_interrupts_the_service(rig: Rig) -> None:
    rig.irq[4](True)
    rig.pair.acknowledge()
    rig.irq[0](True)
    assert rig.pair.acknowledge() == 0x30
    assert rig.isr() == (0x11, 0)
    rig.master(0, 0x20)
    assert rig.isr() == (0x10, 0)


def test_a_second_slave_request_is_not_lost_during_the_first(rig: Rig) -> None:
    rig.irq[10](True)
    assert rig.pair.acknowledge() == 0x3A
    rig.irq[9](True)
    rig.irq[11](True)
    rig.slave(0, 0x62)
    rig.master(0, 0x62)
    assert rig.pair.acknowledge() == 0x39
    rig.slave(0, 0x61)
    rig.master(0, 0x62)
    assert rig.pair.acknowledge() == 0x3B


def test_special_fully_nested_mode_lets_the_slave_interrupt_itself(rig: Rig) -> None:
    rig.initialise(icw4=0x11)
    rig.irq[12](True)
    assert rig.pair.acknowledge() == 0x3C
    rig.irq[5](True)
    assert not rig.pair.pending()
    rig.irq[8](True)
    assert rig.pair.acknowledge() == 0x38


def test_a_request_that_goes_away_is_spurious_on_the_master(rig: Rig) -> None:
    rig.irq[4](True)
    rig.irq[4](False)
    assert not rig.pair.pending()
    assert rig.line == [True, False]
    assert rig.pair.acknowledge() == 0x37
    assert rig.isr() == (0, 0)
    assert rig.pair.master.withdrawn[4] == 1


def test_a_slave_request_masked_meanwhile_is_spurious_on_the_slave(rig: Rig) -> None:
    rig.irq[9](True)
    slave = rig.pair.slave
    rig.pair.slave._output = lambda level: None  # the wire is slower than the mask
    rig.slave(1, 0xFF)
    assert rig.pair.acknowledge() == 0x3F
    assert slave.state.isr == 0
    assert rig.pair.master.state.isr == 4


def test_an_answered_request_does_not_count_as_withdrawn(rig: Rig) -> None:
    rig.irq[0](True)
    rig.pair.acknowledge()
    rig.master(0, 0x60)
    rig.irq[0](False)
    assert rig.pair.master.withdrawn[0] == 0


def test_a_level_triggered_input_requests_until_it_is_lowered(rig: Rig) -> None:
    rig.pair.trigger_control.write(1, 1, 0xFF)
    assert rig.pair.trigger_control.read(1, 1) == 0xDE
    rig.irq[11](True)
    for _ in range(3):
        assert rig.pair.acknowledge() == 0x3B
        rig.slave(0, 0x63)
        rig.master(0, 0x62)
    rig.irq[11](False)
    assert not rig.pair.pending()


def test_the_timer_and_the_cascade_cannot_be_made_level_triggered(rig: Rig) -> None:
    rig.pair.trigger_control.write(0, 1, 0xFF)
    assert rig.pair.trigger_control.read(0, 1) == 0xF8


def test_automatic_end_of_interrupt_leaves_nothing_in_service(rig: Rig) -> None:
    rig.initialise(icw4=0x03)
    rig.irq[3](True)
    assert rig.pair.acknowledge() == 0x33
    assert rig.isr() == (0, 0)
    rig.irq[3](False)
    rig.irq[3](True)
    assert rig.pair.acknowledge() == 0x33


def test_rotation_puts_the_served_input_last(rig: Rig) -> None:
    rig.irq[3](True)
    rig.pair.acknowledge()
    rig.master(0, 0xA0)
    for irq in (1, 4):
        rig.irq[irq](True)
    rig.irq[3](False)
    rig.irq[3](True)
    order = []
    while rig.pair.pending():
        order.append(rig.pair.acknowledge() - 0x30)
        rig.master(0, 0x20)
    assert order == [4, 1, 3]


def test_set_priority_and_specific_rotation_name_the_last(rig: Rig) -> None:
    rig.master(0, 0xC4)
    assert rig.pair.master.state.lowest == 4
    rig.irq[6](True)
    rig.pair.acknowledge()
    rig.master(0, 0xE6)
    assert rig.pair.master.state.lowest == 6
    assert rig.isr() == (0, 0)


def test_rotation_on_automatic_end_of_interrupt(rig: Rig) -> None:
    rig.initialise(icw4=0x03)
    rig.master(0, 0x80)
    rig.irq[5](True)
    rig.pair.acknowledge()
    assert rig.pair.master.state.lowest == 5
    rig.master(0, 0x00)
    rig.irq[3](True)
    rig.pair.acknowledge()
    assert rig.pair.master.state.lowest == 5


def test_special_mask_mode_lets_less_urgent_inputs_through(rig: Rig) -> None:
    rig.irq[1](True)
    rig.pair.acknowledge()
    rig.irq[6](True)
    assert not rig.pair.pending()
    rig.master(0, 0x68)
    rig.master(1, 0x02)
    assert rig.pair.acknowledge() == 0x36
    rig.master(0, 0x48)
    assert rig.pair.master.state.special_mask is False


def test_a_poll_serves_like_an_acknowledge(rig: Rig) -> None:
    rig.irq[5](True)
    rig.master(0, 0x0C)
    assert rig.pair.master.read(0, 1) == 0x85
    assert rig.isr() == (0x20, 0)
    rig.master(0, 0x0C)
    assert rig.pair.master.read(0, 1) == 0x00


def test_initialisation_forgets_mask_service_and_edges(rig: Rig) -> None:
    rig.irq[3](True)
    rig.irq[1](True)
    rig.pair.acknowledge()
    rig.master(1, 0x55)
    rig.master(0, 0x11)
    assert not rig.pair.pending()
    rig.master(1, 0x20)
    rig.master(1, 0x04)
    rig.master(1, 0x01)
    assert rig.pair.master.read(1, 1) == 0
    assert rig.isr() == (0, 0)
    assert not rig.pair.pending()
    rig.irq[3](False)
    rig.irq[3](True)
    assert rig.pair.acknowledge() == 0x23


def test_a_single_controller_takes_no_icw3(rig: Rig) -> None:
    rig.master(0, 0x12)
    rig.master(1, 0x40)
    rig.master(1, 0xFE)  # IMR already
    assert rig.pair.master.read(1, 1) == 0xFE
    rig.irq[0](True)
    assert rig.pair.acknowledge() == 0x40


def test_the_cascade_has_no_line_of_its_own(rig: Rig) -> None:
    for irq in (2, 16, -1):
        with pytest.raises(ValueError, match="no input"):
            rig.pair.line(irq)


def test_a_restored_pair_requests_as_the_first_did(rig: Rig) -> None:
    rig.irq[3](True)
    rig.irq[12](True)
    rig.pair.acknowledge()
    other = Rig()
    other.line.clear()
    other.pair.restore(rig.pair.state)
    assert other.pair.state == rig.pair.state
    for each in (rig, other):
        each.slave(0, 0x64)
        each.master(0, 0x62)
    assert other.pair.acknowledge() == rig.pair.acknowledge() == 0x33
    assert other.pair.state == rig.pair.state
