"""The PC as a whole: wiring, interrupts, the ends of a run, and the same state from the same accesses."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emulator.board.pc import Pc, Shutdown, ShutdownKind
from emulator.clock import NANOSECONDS, Clock
from emulator.memory import GuestMemory


class Rig:
    """A PC whose time moves by hand."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.ends: list[Shutdown] = []
        self.clock = Clock(lambda: 0, 1)
        self.pc = Pc(GuestMemory(1 << 20), self.clock, console=self.sent.extend, on_shutdown=self.ends.append)

    def out(self, port: int, *values: int) -> None:
        for value in values:
            self.pc.ports.write(port, 1, value)

    def get(self, port: int) -> int:
        return self.pc.ports.read(port, 1)

    def start_linux_interrupts(self) -> None:
        """init_8259A, then everything unmasked."""
        for port, vector, cascade in ((0x20, 0x30, 4), (0xA0, 0x38, 2)):
            self.out(port, 0x11)
            self.out(port + 1, vector, cascade, 0x01, 0x00)

    def wait(self, nanoseconds: int) -> None:
        target = self.clock.now() + nanoseconds
        while (event := self.clock.next_event()) is not None and event <= target:
            self.clock.skip_to(event)
            self.clock.run_due()
        self.clock.skip_to(target)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_the_console_is_at_3f8(rig: Rig) -> None:
    for value in b"hi\n":
        assert rig.get(0x3FD) & 0x60 == 0x60
        rig.out(0x3F8, value)
    assert rig.sent == b"hi\n"


def test_console_input_arrives_as_irq_4(rig: Rig) -> None:
    rig.start_linux_interrupts()
    rig.out(0x3FC, 0x0B)
    rig.out(0x3F9, 0x01)
    rig.pc.feed_console(b"q")
    assert rig.pc.intr
    assert rig.pc.interrupt_pending()
    assert rig.pc.acknowledge() == 0x34
    assert rig.get(0x3F8) == ord("q")
    assert not rig.pc.intr


def test_the_timer_arrives_as_irq_0_once_a_period(rig: Rig) -> None:
    """A guest that answers every tick counts 250 of them a second."""
    rig.start_linux_interrupts()
    rig.out(0x43, 0x34)
    rig.out(0x40, 0x95, 0x12)
    ticks = 0

    def answer(level: bool) -> None:
        nonlocal ticks
        if level:
            assert rig.pc.acknowledge() == 0x30
            rig.out(0x20, 0x60)
            ticks += 1

    if rig.pc.intr:
        answer(True)
    ticks = 0
    rig.pc.on_interrupt = answer
    rig.wait(10 * NANOSECONDS)
    assert ticks == 10 * 1_193_182 // 0x1295
    assert rig.pc.pic.master.withdrawn[0] == 0


def test_ticks_that_nobody_answers_are_counted(rig: Rig) -> None:
    rig.start_linux_interrupts()
    rig.out(0x43, 0x34)
    rig.out(0x40, 0x95, 0x12)
    before = rig.pc.pit.edges
    rig.wait(NANOSECONDS)
    assert rig.pc.acknowledge() == 0x30
    assert not rig.pc.intr
    assert rig.pc.pit.edges - before == 1_193_182 // 0x1295
    assert rig.pc.pic.master.withdrawn[0] == 1_193_182 // 0x1295 - 1


def test_the_clock_chip_arrives_as_irq_8(rig: Rig) -> None:
    rig.start_linux_interrupts()
    rig.out(0x21, 0x01)
    rig.out(0x70, 0x0B)
    rig.out(0x71, 0x12)
    rig.wait(NANOSECONDS)
    assert rig.pc.acknowledge() == 0x38


def test_the_date_at_the_start_is_fixed(rig: Rig) -> None:
    date = []
    for register in (0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00):
        rig.out(0x70, register)
        date.append(rig.get(0x71))
    assert date == [0x20, 0x24, 0x01, 0x01, 0x00, 0x00, 0x00]


@pytest.mark.parametrize(
    ("writes", "end"),
    [
        ([(0x604, 2, 0x2000)], Shutdown(ShutdownKind.POWER_OFF)),
        ([(0x64, 1, 0xFE)], Shutdown(ShutdownKind.RESET)),
        ([(0x92, 1, 0x01)], Shutdown(ShutdownKind.RESET)),
        ([(0xCF9, 1, 0x02), (0xCF9, 1, 0x06)], Shutdown(ShutdownKind.RESET)),
        ([(0xF4, 1, 0x10)], Shutdown(ShutdownKind.DEBUG_EXIT, 0x10)),
        ([(0xF4, 4, 0xABCD)], Shutdown(ShutdownKind.DEBUG_EXIT, 0xABCD)),
    ],
)
def test_each_way_to_end_a_run_ends_it(rig: Rig, writes: list[tuple[int, int, int]], end: Shutdown) -> None:
    for port, size, value in writes:
        assert rig.pc.shutdown is None
        rig.pc.ports.write(port, size, value)
    assert rig.pc.shutdown == end
    assert rig.ends == [end]


def test_only_the_first_end_counts(rig: Rig) -> None:
    rig.out(0xF4, 3)
    rig.out(0x64, 0xFE)
    assert rig.ends == [Shutdown(ShutdownKind.DEBUG_EXIT, 3)]


def test_exit_statuses_are_as_qemu_gives_them() -> None:
    assert Shutdown(ShutdownKind.POWER_OFF).exit_status == 0
    assert Shutdown(ShutdownKind.DEBUG_EXIT, 0).exit_status == 1
    assert Shutdown(ShutdownKind.DEBUG_EXIT, 0x10).exit_status == 33
    assert Shutdown(ShutdownKind.DEBUG_EXIT, 0x1FF).exit_status == 0xFF


def test_no_pci_and_no_second_serial_port(rig: Rig) -> None:
    rig.pc.ports.write(0xCF8, 4, 0x8000_0000)
    assert rig.pc.ports.read(0xCF8, 4) == 0xFFFF_FFFF
    assert rig.get(0x2F9) == 0xFF
    assert rig.pc.shutdown is None


def test_devices_have_their_names_in_the_trace(rig: Rig) -> None:
    seen: list[str] = []
    rig.pc.ports.trace = lambda kind, device, offset, size, value: seen.append(device)
    for port in (0x20, 0xA0, 0x4D0, 0x43, 0x61, 0x64, 0x70, 0x3FF, 0x80, 0xE9):
        rig.out(port, 0)
    assert seen == [
        *("pic-master", "pic-slave", "elcr", "pit", "port61", "i8042", "rtc", "com1", "post", "debug-console")
    ]


PORTS = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x60, 0x70, 0x71, 0x71]
PORTS += [0x80, 0x92, 0xE9, *range(0x3F8, 0x400), 0x604, 0xCF8, 0xCF9, 0x1234]

step = st.one_of(
    st.tuples(st.just("write"), st.sampled_from(PORTS), st.sampled_from((1, 1, 1, 2, 4)), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("write"), st.sampled_from(PORTS), st.just(1), st.integers(0, 0x40)),
    st.tuples(st.just("read"), st.sampled_from(PORTS), st.sampled_from((1, 1, 2, 4)), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 3_000_000), st.just(0), st.just(0)),
    st.tuples(st.just("late"), st.integers(0, 10**12), st.just(0), st.just(0)),
    st.tuples(st.just("feed"), st.integers(0, 255), st.integers(1, 40), st.just(0)),
    st.tuples(st.just("acknowledge"), st.just(0), st.just(0), st.just(0)),
    st.tuples(st.just("idle"), st.just(0), st.just(0), st.just(0)),
)


def perform(rig: Rig, steps: list[tuple[str, int, int, int]]) -> list[object]:
    """Do the steps; returns all that the guest can see."""
    seen: list[object] = []
    for kind, first, second, third in steps:
        if kind == "write":
            rig.pc.ports.write(first, second, third & ((1 << 8 * second) - 1))
        elif kind == "read":
            value = rig.pc.ports.read(first, second)
            assert 0 <= value < 1 << 8 * second
            seen.append(value)
        elif kind == "wait":
            event = rig.clock.next_event()
            rig.clock.skip_to(min(rig.clock.now() + first, event if event is not None else 1 << 80))
            rig.clock.run_due()
        elif kind == "late":
            rig.clock.skip_to(rig.clock.now() + first)
            rig.clock.run_due()
        elif kind == "feed":
            rig.pc.feed_console(bytes((first,)) * second)
        elif kind == "idle":
            assert rig.pc.idle() is rig.pc.intr
            seen.append(rig.clock.now())
        else:
            vector = rig.pc.acknowledge()
            assert 0 <= vector <= 0xFF
            seen.append(vector)
        assert rig.pc.intr is (rig.pc.pic.master.request() >= 0)
        seen.append(rig.pc.intr)
    seen.append(bytes(rig.sent))
    return seen


@settings(max_examples=400, deadline=None)
@given(before=st.lists(step, max_size=40), after=st.lists(step, max_size=40))
def test_any_accesses_are_survived_repeat_exactly_and_resume_from_any_state(
    before: list[tuple[str, int, int, int]], after: list[tuple[str, int, int, int]]
) -> None:
    first, again, resumed = Rig(), Rig(), Rig()
    assert perform(first, before) == perform(again, before)
    saved = first.pc.state
    assert again.pc.state == saved
    hash(saved)
    resumed.pc.restore(saved)
    assert resumed.pc.state == saved
    assert resumed.pc.intr is first.pc.intr
    assert resumed.pc.digest() == first.pc.digest()
    resumed.sent[:] = first.sent
    assert perform(resumed, after) == perform(first, after)
    assert resumed.pc.state == first.pc.state


def answered_ticks(rig: Rig) -> list[tuple[int, int]]:
    """Answer every interrupt from here on; the list fills with time and vector of each."""
    ticks: list[tuple[int, int]] = []

    def answer(level: bool) -> None:
        if level:
            ticks.append((rig.clock.now(), rig.pc.acknowledge()))
            rig.out(0x20, 0x60)

    rig.pc.on_interrupt = answer
    return ticks


def test_a_restored_board_goes_on_to_the_same_ticks() -> None:
    first, second = Rig(), Rig()
    first.start_linux_interrupts()
    first.out(0x43, 0x34)
    first.out(0x40, 0x95, 0x12)
    first.wait(123_456_789)
    first.pc.acknowledge()
    first.out(0x20, 0x60)
    second.pc.restore(first.pc.state)
    ticks = [answered_ticks(first), answered_ticks(second)]
    first.wait(NANOSECONDS)
    second.wait(NANOSECONDS)
    assert ticks[0] == ticks[1]
    assert len(ticks[0]) in (250, 251)


def test_linux_finds_a_running_timer_before_it_programs_one(rig: Rig) -> None:
    """i8254 (arch/x86/lib/kaslr.c) reads back status and count until the count register is loaded."""
    rig.wait(1_000_000)
    rig.out(0x43, 0xC2)
    status, low, high = rig.get(0x40), rig.get(0x40), rig.get(0x40)
    assert not status & 0x40
    assert low | high << 8 == 0x10000 - 1192


def test_firmware_leaves_every_interrupt_masked(rig: Rig) -> None:
    assert (rig.get(0x21), rig.get(0xA1)) == (0xFF, 0xFF)
    rig.wait(NANOSECONDS)
    assert not rig.pc.intr
    rig.out(0x21, 0xFE)
    assert rig.pc.acknowledge() == 0x08


def test_an_idle_cpu_is_woken_by_the_next_tick(rig: Rig) -> None:
    rig.start_linux_interrupts()
    rig.out(0x43, 0x34)
    rig.out(0x40, 0x95, 0x12)
    for tick in range(1, 100):
        assert rig.pc.idle()
        assert rig.clock.now() == -(-(1 + 0x1295 * tick) * NANOSECONDS // 1_193_182)
        assert rig.pc.acknowledge() == 0x30
        rig.out(0x20, 0x60)


def test_an_idle_cpu_that_masks_the_timer_waits_for_input_alone(rig: Rig) -> None:
    rig.start_linux_interrupts()
    rig.out(0x43, 0x34)
    rig.out(0x40, 0x02, 0x00)  # a tick every 1.7 microseconds, which must not be stepped through
    rig.out(0x21, 0x01)
    assert rig.clock.next_event() is not None
    assert rig.pc.next_wake() is None
    assert not rig.pc.idle()
    rig.out(0x3FC, 0x08)
    rig.out(0x3F9, 0x01)
    rig.pc.feed_console(b"x")
    assert rig.pc.idle()
    assert rig.pc.acknowledge() == 0x34


def test_an_idle_cpu_that_never_ends_its_interrupt_is_not_woken_by_it(rig: Rig) -> None:
    rig.start_linux_interrupts()
    rig.out(0x43, 0x34)
    rig.out(0x40, 0x95, 0x12)
    assert rig.pc.idle()
    assert rig.pc.acknowledge() == 0x30
    assert not rig.pc.idle()


def test_an_idle_cpu_is_woken_by_the_clock_chip_over_a_masked_timer(rig: Rig) -> None:
    rig.start_linux_interrupts()
    rig.out(0x21, 0x01)
    rig.out(0x70, 0x0B)
    rig.out(0x71, 0x12)
    assert rig.pc.idle()
    assert rig.clock.now() == NANOSECONDS
    assert rig.pc.acknowledge() == 0x38
