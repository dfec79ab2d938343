"""The registers that end a run: each does so on exactly the write that a PC's software makes."""

import pytest

from emulator.devices.debug_exit import DebugExit
from emulator.devices.power import KeyboardController, PostPort, PowerControl, ResetControl, SystemControlA


class Count:
    """Counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> None:
        self.calls += 1


@pytest.fixture
def act() -> Count:
    return Count()


def test_sleep_enable_with_type_0_powers_off(act: Count) -> None:
    power = PowerControl(act)
    power.write(0, 2, 0x0001)
    power.write(0, 2, 0x3400)
    assert act.calls == 0
    power.write(0, 2, 0x2000)
    assert act.calls == 1
    assert power.read(0, 2) == 0


def test_a_shell_can_power_off_by_the_upper_byte(act: Count) -> None:
    """printf '\\040' into /dev/port at 0x605 is a byte write."""
    power = PowerControl(act)
    power.write(0, 1, 0x55)
    assert act.calls == 0
    power.write(1, 1, 0x20)
    assert act.calls == 1
    assert (power.read(0, 2), power.read(0, 1), power.read(1, 1)) == (0x55, 0x55, 0)
    power.write(1, 1, 0x14)
    assert (power.read(1, 1), act.calls) == (0x14, 1)


def test_linux_resets_by_the_chip_set(act: Count) -> None:
    """native_machine_emergency_restart, BOOT_CF9_FORCE: bit 1 first, then bit 2 as well."""
    reset = ResetControl(act)
    reset.write(0, 1, reset.read(0, 1) & ~0x06 | 0x02)
    assert act.calls == 0
    reset.write(0, 1, reset.read(0, 1) | 0x04)
    assert act.calls == 1
    assert reset.read(0, 1) == 0x06
    reset.write(0, 1, 0x06)
    assert act.calls == 1


def test_port_92_resets_on_the_rising_bit_and_keeps_a20_open(act: Count) -> None:
    port = SystemControlA(act)
    assert port.read(0, 1) & 2
    port.write(0, 1, 0x02)
    assert act.calls == 0
    port.write(0, 1, 0x03)
    assert act.calls == 1


def test_linux_gives_up_on_the_keyboard_controller(act: Count) -> None:
    """i8042_flush reads while the output buffer is full, at most 16 times, and then finds no controller."""
    keyboard = KeyboardController(act)
    assert all(keyboard.read(4, 1) & 1 and keyboard.read(0, 1) == 0xFF for _ in range(17))


def test_linux_resets_by_the_keyboard_controller_without_waiting(act: Count) -> None:
    keyboard = KeyboardController(act)
    assert not keyboard.read(4, 1) & 2  # kb_wait
    keyboard.write(4, 1, 0xFE)
    assert act.calls == 1


def test_other_keyboard_commands_do_nothing(act: Count) -> None:
    keyboard = KeyboardController(act)
    for command in (0x20, 0x60, 0xAA, 0xAD, 0xFF, 0xF1):
        keyboard.write(4, 1, command)
        keyboard.write(0, 1, 0x00)
    assert act.calls == 0
    keyboard.write(4, 1, 0xD1)
    keyboard.write(0, 1, 0x03)
    assert act.calls == 0
    keyboard.write(4, 1, 0xD1)
    keyboard.write(0, 1, 0xFE)
    assert act.calls == 1


def test_a_debug_exit_carries_the_value_written() -> None:
    left: list[int] = []
    device = DebugExit(left.append)
    device.write(0, 1, 0x21)
    device.write(0, 4, 0x1234_5678)
    device.write(1, 1, 0x55)
    assert left == [0x21, 0x1234_5678]
    assert device.read(0, 4) == 0


def test_a_post_port_keeps_a_byte() -> None:
    port = PostPort("post")
    port.write(0, 1, 0x5A)
    assert port.read(0, 1) == 0x5A


def test_registers_are_restored_without_their_effect(act: Count) -> None:
    reset, other = ResetControl(act), ResetControl(act)
    reset.write(0, 1, 0x06)
    other.restore(reset.state)
    assert act.calls == 1
    assert other.state == reset.state
