"""The GT-64120's way to PCI configuration space, the PIIX4's power switch, and the board's own registers."""

import pytest

from emulator.devices import gt64120 as gt
from emulator.devices import malta_fpga as fpga
from emulator.devices import piix4
from emulator.devices.pci import PciBus, PciFunction


@pytest.fixture
def bus() -> PciBus:
    made = PciBus()
    made.functions[10, 3] = PciFunction("one", 0x8086, 0x7113, 0x068000)
    return made


def controller(bus: PciBus) -> gt.Gt64120:
    return gt.Gt64120(bus, lambda: 0x23)


def select(chip: gt.Gt64120, device: int, function: int, register: int) -> None:
    chip.write(gt.CONFIG_ADDRESS, 4, 1 << 31 | device << 11 | function << 8 | register)


def test_a_function_is_found_by_its_number(bus: PciBus) -> None:
    chip = controller(bus)
    select(chip, 10, 3, 0)
    assert chip.read(gt.CONFIG_DATA, 4) == 0x7113_8086
    assert chip.read(gt.CONFIG_DATA + 2, 2) == 0x7113
    select(chip, 11, 0, 0)
    assert chip.read(gt.CONFIG_DATA, 4) == 0xFFFF_FFFF


def test_nothing_answers_without_the_enable_bit(bus: PciBus) -> None:
    chip = controller(bus)
    chip.write(gt.CONFIG_ADDRESS, 4, 10 << 11 | 3 << 8)
    assert chip.read(gt.CONFIG_DATA, 4) == 0xFFFF_FFFF


def test_a_write_changes_only_what_may_be_written(bus: PciBus) -> None:
    chip = controller(bus)
    select(chip, 10, 3, 0)
    chip.write(gt.CONFIG_DATA, 4, 0)
    assert chip.read(gt.CONFIG_DATA, 4) == 0x7113_8086
    select(chip, 10, 3, 4)
    chip.write(gt.CONFIG_DATA, 2, 0xFFFF)
    assert chip.read(gt.CONFIG_DATA, 2) == 0x0147


def test_reading_the_acknowledge_register_acknowledges(bus: PciBus) -> None:
    assert controller(bus).read(gt.ACKNOWLEDGE, 4) == 0x23


def test_registers_keep_what_is_written_and_causes_are_taken_away(bus: PciBus) -> None:
    chip = controller(bus)
    chip.write(0x48, 4, 0x123)
    assert chip.read(0x48, 4) == 0x123
    chip.write(gt.INTERRUPT_CAUSE, 4, 0xFFFF_FFFF)
    assert chip.read(gt.INTERRUPT_CAUSE, 4) == 0
    other = controller(bus)
    other.restore(chip.state)
    assert other.state == chip.state


def test_a_suspend_to_off_turns_the_machine_off() -> None:
    calls: list[int] = []
    power = piix4.Piix4Power(lambda: calls.append(1))
    power.write(piix4.CONTROL, 2, piix4.SUSPEND_ENABLE | 1 << 10)
    assert calls == []
    power.write(piix4.CONTROL, 2, piix4.SUSPEND_ENABLE)
    assert calls == [1]


def test_status_bits_are_taken_away_by_writing_them() -> None:
    power = piix4.Piix4Power(lambda: None)
    power.write(piix4.STATUS, 2, 0xFFFF)
    assert power.read(piix4.STATUS, 2) == 0
    power.write(piix4.ENABLE, 2, 0x0120)
    assert power.read(piix4.ENABLE, 2) == 0x0120


def test_the_power_function_says_where_its_registers_are() -> None:
    assert piix4.power(0x1000).read(piix4.BASE_REGISTER, 4) == 0x1001


def test_software_resets_the_board_by_the_word_for_it() -> None:
    calls: list[int] = []
    board = fpga.MaltaFpga(lambda: calls.append(1))
    board.write(fpga.SOFT_RESET, 4, 0x41)
    assert calls == []
    board.write(fpga.SOFT_RESET, 4, fpga.GO_RESET)
    assert calls == [1]


@pytest.mark.parametrize(("big", "status"), [(False, 0x10), (True, 0x12)])
def test_the_status_register_says_the_byte_order(big: bool, status: int) -> None:
    assert fpga.MaltaFpga(lambda: None, big_endian=big).read(fpga.STATUS, 4) == status


def test_the_revision_names_a_core_board_with_this_controller() -> None:
    assert fpga.Revision().read(0, 4) >> 10 & 0x3F == 1
