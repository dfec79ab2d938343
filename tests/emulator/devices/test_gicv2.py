"""The GICv2 by its specification: enabling, pending, priorities, preemption, both ways to end, software's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emulator.devices import gicv2 as g
from emulator.devices.gicv2 import SPURIOUS, Gicv2

LINE = 40


class Controller:
    """A controller switched on, with LINE enabled at priority 0xA0."""

    def __init__(self) -> None:
        self.request: list[bool] = []
        self.gic = Gicv2(self.request.append)
        self.distribute(g.D_CTLR, 1)
        self.cpu(g.C_PMR, 0xF0)
        self.cpu(g.C_CTLR, 1)
        self.enable(LINE)

    def distribute(self, offset: int, value: int, size: int = 4) -> None:
        self.gic.distributor.write(offset, size, value)

    def cpu(self, offset: int, value: int) -> None:
        self.gic.interface.write(offset, 4, value)

    def enable(self, number: int, priority: int = 0xA0) -> None:
        self.distribute(g.D_SET_ENABLE + number // 32 * 4, 1 << number % 32)
        self.distribute(g.D_PRIORITY + number, priority, 1)

    def take(self) -> int:
        return self.gic.interface.read(g.C_IAR, 4)


@pytest.fixture
def controller() -> Controller:
    return Controller()


def test_a_level_requests_until_it_falls(controller: Controller) -> None:
    line = controller.gic.line(LINE)
    line(True)
    line(True)
    line(False)
    assert controller.request == [True, False]
    assert controller.take() == SPURIOUS


def test_an_interrupt_is_taken_once_and_again_after_its_end_while_its_level_stays(controller: Controller) -> None:
    controller.gic.line(LINE)(True)
    assert controller.take() == LINE
    assert controller.request == [True, False]
    assert controller.take() == SPURIOUS
    controller.cpu(g.C_EOIR, LINE)
    assert controller.request == [True, False, True]
    assert controller.take() == LINE


def test_an_edge_is_remembered_and_taken_once(controller: Controller) -> None:
    controller.distribute(g.D_CONFIGURATION + LINE // 16 * 4, 2 << LINE % 16 * 2)
    line = controller.gic.line(LINE)
    line(True)
    line(False)
    assert controller.take() == LINE
    controller.cpu(g.C_EOIR, LINE)
    assert controller.take() == SPURIOUS


@pytest.mark.parametrize("what", ["disabled", "masked by priority", "distributor off", "interface off"])
def test_nothing_is_requested_where_it_may_not(controller: Controller, what: str) -> None:
    if what == "disabled":
        controller.distribute(g.D_CLEAR_ENABLE + LINE // 32 * 4, 1 << LINE % 32)
    elif what == "masked by priority":
        controller.cpu(g.C_PMR, 0xA0)
    elif what == "distributor off":
        controller.distribute(g.D_CTLR, 0)
    else:
        controller.cpu(g.C_CTLR, 0)
    assert not controller.gic.would_request(LINE)
    controller.gic.line(LINE)(True)
    assert controller.request == []
    assert controller.gic.distributor.read(g.D_SET_PENDING + LINE // 32 * 4, 4) == 1 << LINE % 32


def test_of_two_the_higher_priority_comes_first_and_then_the_lower_number(controller: Controller) -> None:
    for number, priority in ((60, 0xA0), (61, 0x80), (62, 0x80)):
        controller.enable(number, priority)
        controller.gic.line(number)(True)
    controller.gic.line(LINE)(True)
    taken = []
    for _ in range(4):
        taken.append(controller.take())
        controller.gic.line(taken[-1])(False)
        controller.cpu(g.C_EOIR, taken[-1])
    assert taken == [61, 62, LINE, 60]


def test_only_a_higher_group_priority_preempts(controller: Controller) -> None:
    controller.gic.line(LINE)(True)
    assert controller.take() == LINE
    controller.enable(50, 0xA0)
    controller.gic.line(50)(True)
    assert controller.take() == SPURIOUS
    controller.enable(51, 0x90)
    controller.gic.line(51)(True)
    assert controller.gic.interface.read(g.C_RPR, 4) == 0xA0
    assert controller.take() == 51
    assert controller.gic.interface.read(g.C_RPR, 4) == 0x90
    controller.cpu(g.C_BPR, 7)  # every priority in one group
    controller.enable(52, 0x10)
    controller.gic.line(52)(True)
    assert controller.take() == SPURIOUS


def test_with_eoimode_the_priority_drops_first_and_dir_ends(controller: Controller) -> None:
    controller.cpu(g.C_CTLR, 0x201)
    controller.gic.line(LINE)(True)
    assert controller.take() == LINE
    controller.cpu(g.C_EOIR, LINE)
    assert controller.gic.interface.read(g.C_RPR, 4) == 0xFF
    assert controller.take() == SPURIOUS
    controller.cpu(g.C_DIR, LINE)
    assert controller.take() == LINE


def test_a_software_generated_interrupt_reaches_the_cpu_that_sends_it(controller: Controller) -> None:
    controller.distribute(g.D_PRIORITY + 5, 0x40, 1)
    controller.distribute(g.D_SGI, 2 << 24 | 5)
    assert controller.take() == 5
    controller.cpu(g.C_EOIR, 5)
    controller.distribute(g.D_SGI, 1 << 24 | 5)  # to all others: there are none
    assert controller.take() == SPURIOUS
    controller.distribute(g.D_SGI, 1 << 16 | 7)
    assert controller.take() == 7


def test_software_sets_and_clears_what_is_pending(controller: Controller) -> None:
    controller.distribute(g.D_SET_PENDING + LINE // 32 * 4, 1 << LINE % 32)
    assert controller.request == [True]
    controller.distribute(g.D_CLEAR_PENDING + LINE // 32 * 4, 1 << LINE % 32)
    assert controller.request == [True, False]


def test_it_says_how_many_interrupts_and_which_architecture_it_has(controller: Controller) -> None:
    assert (controller.gic.distributor.read(g.D_TYPER, 4) & 31) * 32 + 32 == g.LINES
    assert controller.gic.distributor.read(0xFE8, 4) >> 4 & 15 == 2
    assert controller.gic.distributor.read(g.D_TARGETS, 4) == 0x0101_0101


ACCESSES = st.tuples(st.sampled_from("dci"), st.integers(0, 0x3FF).map(lambda n: n * 4), st.integers(0, 0xFFFF_FFFF))


@given(st.lists(ACCESSES, max_size=60))
def test_any_accesses_repeat_and_a_restored_controller_is_the_same(accesses: list[tuple[str, int, int]]) -> None:
    def run(gic: Gicv2, some: list[tuple[str, int, int]]) -> list[int]:
        seen = []
        for where, offset, value in some:
            if where == "i":
                gic.line(value % g.LINES)(bool(offset & 4))
            else:
                window = gic.distributor if where == "d" else gic.interface
                window.write(offset, 4, value)
                seen.append(window.read(offset, 4))
        return seen

    half = len(accesses) // 2
    lines: list[bool] = []
    one, other = Gicv2(lambda _level: None), Gicv2(lambda _level: None)
    first = run(one, accesses[:half])
    assert run(other, accesses[:half]) == first
    assert one.state == other.state
    third = Gicv2(lines.append)
    third.restore(one.state)
    assert third.state == one.state
    assert run(third, accesses[half:]) == run(one, accesses[half:])
    assert third.state == one.state
