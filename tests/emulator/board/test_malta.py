"""The Malta board: devices at their places, lines, time, the ways a run ends, and YAMON's boot protocol."""

import struct

import pytest

from emulator.board.board import ShutdownKind
from emulator.board.boot import BootError, BootImage, LoadSegment
from emulator.board.malta import COM1, FPGA, GT, LINE_BRIDGE, LINE_TIMER, PCI_IO, REVISION, RTC, Malta
from emulator.board.malta_boot import ENVIRONMENT, place
from emulator.clock import Clock
from emulator.memory import GuestMemory


class Bench:
    """A board with a clock that is set by hand."""

    def __init__(self) -> None:
        self.units = 0
        self.printed = bytearray()
        self.memory = GuestMemory(16 << 20)
        self.clock = Clock(lambda: self.units, 1_000_000_000)
        self.board = Malta(self.memory, self.clock, console=self.printed.extend)

    def port(self, port: int, value: int | None = None) -> int:
        """Read a port, or write one."""
        if value is None:
            return self.board.mmio.read(PCI_IO + port, 1)
        self.board.mmio.write(PCI_IO + port, 1, value)
        return value


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_the_serial_port_prints_through_pci_io_space(bench: Bench) -> None:
    for byte in b"hello":
        bench.port(COM1, byte)
    assert bench.printed == b"hello"


def test_the_timer_of_the_processor_raises_line_7(bench: Bench) -> None:
    changes: list[bool] = []
    bench.board.on_interrupt = changes.append
    bench.board.timer.compare = 1000
    bench.units = 10_000
    bench.clock.run_due()
    assert (bench.board.lines, bench.board.intr, changes) == (LINE_TIMER, True, [True])
    bench.board.timer.compare = 5000
    assert (bench.board.lines, bench.board.intr) == (0, False)


def test_the_interrupt_controllers_raise_line_2_and_are_acknowledged_by_the_system_controller(bench: Bench) -> None:
    for port, value in ((0x20, 0x11), (0x21, 0x40), (0x21, 4), (0x21, 1), (0x21, 0xFE)):
        bench.port(port, value)
    for port, value in ((0x43, 0x34), (0x40, 100), (0x40, 0)):
        bench.port(port, value)
    assert bench.board.idle()
    assert bench.board.lines == LINE_BRIDGE
    assert bench.board.mmio.read(GT + 0xC34, 4) == 0x40
    assert bench.board.lines == 0


def test_an_idle_guests_time_jumps_to_the_next_event(bench: Bench) -> None:
    bench.board.timer.compare = 1_000_000
    assert bench.board.idle()
    assert bench.clock.now() == 10_000_000


def test_polling_the_clock_chip_takes_time(bench: Bench) -> None:
    bench.port(RTC, 0x0A)
    before = bench.clock.now()
    edges = 0
    for _ in range(20_000):
        if bench.port(RTC + 1) & 0x80:
            edges += 1
            while bench.port(RTC + 1) & 0x80:
                pass
        if edges == 2:
            break
    assert edges == 2
    assert bench.clock.now() - before < 3_000_000_000


def test_the_board_resets_and_turns_off(bench: Bench) -> None:
    bench.board.mmio.write(FPGA + 0x500, 4, 0x42)
    assert bench.board.shutdown is not None
    assert bench.board.shutdown.kind is ShutdownKind.RESET
    other = Bench()
    other.board.mmio.write(PCI_IO + 0x1004, 2, 0x2000)
    assert other.board.shutdown is not None
    assert other.board.shutdown.kind is ShutdownKind.POWER_OFF


def test_the_revision_is_read_from_the_boot_rom(bench: Bench) -> None:
    assert bench.board.mmio.read(REVISION, 4) == 0x420


def test_a_state_taken_up_again_is_the_same(bench: Bench) -> None:
    bench.port(COM1 + 1, 3)
    bench.board.timer.compare = 777
    bench.board.mmio.write(GT + 0x48, 4, 0x55)
    saved = bench.board.state
    digest = bench.board.digest()
    other = Bench()
    assert other.board.digest() != digest
    other.board.restore(saved)
    assert other.board.digest() == digest


def image(**changes: object) -> BootImage:
    segment = LoadSegment(0x10_0000, b"kernel", 0x1000)
    values: dict[str, object] = {"segments": (segment,), "entry": 0x10_0040, "initrd": b"", "command_line": "a b"}
    return BootImage(**(values | changes))  # type: ignore[arg-type]


def strings(memory: GuestMemory, pointers: int, order: str = "<") -> list[str]:
    found: list[str] = []
    while True:
        (pointer,) = struct.unpack(order + "I", memory.read_bytes(pointers & 0x1FFF_FFFF, 4))
        if not pointer:
            return found
        text = memory.read_bytes(pointer & 0x1FFF_FFFF, 200)
        found.append(text[: text.index(0)].decode())
        pointers += 4


@pytest.mark.parametrize(("big", "order"), [(False, "<"), (True, ">")])
def test_a_kernel_gets_its_arguments_and_environment(big: bool, order: str) -> None:
    memory = GuestMemory(16 << 20)
    state = place(memory, image(), big_endian=big)
    registers = dict(state.gpr)
    assert state.pc == 0x8010_0040
    assert registers[4] == 2
    assert registers[5] == 0x8000_0000 + ENVIRONMENT
    assert strings(memory, registers[5], order)[1] == "a b"
    assert strings(memory, registers[6], order)[:2] == ["memsize", str(16 << 20)]
    assert memory.read_bytes(0x10_0000, 6) == b"kernel"


def test_an_initramfs_is_named_on_the_command_line() -> None:
    memory = GuestMemory(16 << 20)
    state = place(memory, image(initrd=b"cpio" * 100))
    line = strings(memory, dict(state.gpr)[5])[1]
    start = int(line.split()[0].removeprefix("rd_start="), 16) & 0xFFFF_FFFF
    assert line.split()[1:] == ["rd_size=400", "a", "b"]
    assert memory.read_bytes(start & 0x1FFF_FFFF, 4) == b"cpio"


def test_a_kernel_that_is_linked_into_kseg0_is_placed_where_that_lies() -> None:
    memory = GuestMemory(16 << 20)
    linked = LoadSegment(0x8020_0000, b"there", 0x1000)
    place(memory, image(segments=(linked,), entry=0x8020_0000))
    assert memory.read_bytes(0x20_0000, 5) == b"there"


@pytest.mark.parametrize(
    "changes",
    [
        {"segments": (LoadSegment(0x1000, b"x", 1),)},
        {"segments": (LoadSegment(15 << 20, b"x", 2 << 20),)},
        {"initrd": bytes(16 << 20)},
        {"command_line": "x" * 4096},
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(changes: dict[str, object]) -> None:
    with pytest.raises(BootError, match=r"\w"):
        place(GuestMemory(16 << 20), image(**changes))


def test_more_memory_than_the_board_has_room_for_is_refused() -> None:
    with pytest.raises(BootError, match="256"):
        place(GuestMemory(512 << 20), image())
